"""Rivals, on the same parts and the same budget."""
