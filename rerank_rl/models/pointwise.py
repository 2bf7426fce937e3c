"""A control: the list evaluator's network without the list."""

import jax.numpy as jnp

from rerank_rl.models import evaluator


class PointwiseEvaluator(evaluator.ListEvaluator):
  """Expected feedback of an item wherever it stands, whatever is above it.

  The same towers and the same reading of the request; positions and the items
  above are hidden, and there is no examination (`cascade` is not used).
  """

  def _judge(self, target, above, place, train):
    alone = above.replace(mask=jnp.zeros_like(above.mask))
    click, go = super()._judge(target, alone, jnp.zeros_like(place), train)
    return click, jnp.full_like(go, 100.0)  # Reads on for certain.
