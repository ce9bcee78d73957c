"""What a person looks at in the morning."""
