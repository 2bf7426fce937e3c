"""The rivals of protocols.md, on the same parts and the same budget."""
