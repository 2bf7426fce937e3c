"""Entry points: flags only."""
