"""Generative rerankers trained with reinforcement learning, in JAX."""
