"""What a slate is worth: list rewards."""
