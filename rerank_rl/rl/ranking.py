"""Policy gradients for whole rankings of what a search has found.

Letters: W items that are ranked, S lists that are drawn, k places of a list.
"""

import jax
import jax.numpy as jnp

from rerank_rl.decoding import legality
from rerank_rl.rl import credit
from rerank_rl.simulation.reward import discounts
from rerank_rl.types import Array


def plackett_luce(
  score: Array, gain: Array, where: Array, places: int, lists: int, key: Array
) -> tuple[Array, Array]:
  """The score function of DCG, by lists drawn item by item.

    p(y_k | y_<k) = exp(score) / sum of exp(score) over what is left,
    c(i) = mean over lists of sum_k A_k (1[y_k = i] - p(i | y_<k)),

  where A_k is the DCG from place k on minus the lists' mean of it: what stands
  above has been earned. sum_i c(i) grad score(i) estimates the gradient of the
  expected DCG, times (S - 1) / S for the baseline's own lists.

  Args:
    score: f32[B, W], each item's.
    gain: f32[B, W], its worth at place 1.
    where: bool[B, W], items that there are.
    places: k, that count; where fewer items are, so many.
    lists: S.
    key: PRNG key.

  Returns:
    (c f32[B, W], the lists' mean DCG f32[B]).
  """
  B, W = score.shape
  places = min(places, W)
  score = jnp.where(where, score, legality.NEGATIVE)[:, None]
  noise = jax.random.gumbel(key, (B, lists, W), score.dtype)
  _, order = jax.lax.top_k(score + noise, places)
  worth = jnp.take_along_axis(jnp.where(where, gain, 0)[:, None], order, -1)
  worth *= discounts(places, worth.dtype)[None, None]
  ahead = credit.still_to_come(worth)
  advantage = credit.centre(ahead, jnp.ones(ahead.shape, bool))
  chosen = jax.nn.one_hot(order, W, dtype=score.dtype)
  gone = jnp.cumsum(chosen, axis=2) - chosen > 0
  share = jax.nn.softmax(
    jnp.where(gone, 2 * legality.NEGATIVE, score[:, :, None]), axis=-1
  )
  each = ((chosen - share) * advantage[..., None]).sum(2)
  return jnp.where(where, each.mean(1), 0), worth.sum(-1).mean(1)
