"""Every network of the library; the only home of Flax Linen."""
