"""Meshes, train states, checkpoints, metrics and the loop of every stage."""
