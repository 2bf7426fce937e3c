"""What a slate is worth, and what users do whom it is shown to."""
