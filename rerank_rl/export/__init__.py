"""What serves: a trained policy as a bundle that JAX alone can load."""
