"""What the judged fit is worth beside its rivals, and whether the night may go live."""
