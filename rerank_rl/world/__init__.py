"""The synthetic world: items, users, the click law and exact utilities."""
