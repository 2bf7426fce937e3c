"""The stages of a run: each takes a Setting and returns it with more."""
