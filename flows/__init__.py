"""When, and in what order. No logic about data lives here: flows call tasks, never models."""
