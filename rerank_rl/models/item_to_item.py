"""What comes next, linearly and in closed form: SLIT's item-to-item matrix.

M. Choi et al., "Session-aware Linear Item-Item Models for Session-based
Recommendation", WWW 2021. Every place of a sequence is a past, a row of S in
which recent items weigh more, and the item that came next, a row of T:

  B = argmin |T - S B|^2 + penalty |B|^2 = (S'S + penalty I)^-1 S'T

Letters: M items, n pasts, H history.
"""

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
import scipy.sparse

from rerank_rl.config import ConfigError, ItemToItemConfig
from rerank_rl.data.sequences import Windows
from rerank_rl.types import Array

MOST = 30_000  # Items; two dense matrices of so many are 7 GB.


def check(num_items: int) -> None:
  """Raises ConfigError: too many items for dense matrices."""
  if num_items > MOST:
    raise ConfigError(
      f"the stage 'evaluators' takes catalogues of at most {MOST:,} items, not "
      f"{num_items:,}; leave it out of config.stages, with "
      "config.rl.reward='labels' and config.rl.credit='ranking'."
    )


def fit(
  windows: Windows, num_items: int, config: ItemToItemConfig
) -> np.ndarray:
  """B f32[M, M]: row i tells what follows item i.

  A past's items weigh decay^age; it does not reach beyond a packed sequence.

  Args:
    windows: packed sequences with their targets.
    num_items: M.
    config: its numbers.
  """
  asked = windows.target >= 0
  number = np.cumsum(asked).reshape(asked.shape) - 1
  shape = (int(number[-1, -1]) + 1, num_items)
  found = []
  for age in range(asked.shape[1]):
    # What `roll` brings from a row's other end has a place before `age`.
    real = asked & (windows.place >= age)
    weight = np.full(real.sum(), config.decay**age, np.float32)
    found.append((weight, number[real], np.roll(windows.item, age, 1)[real]))
  weight, row, column = map(np.concatenate, zip(*found, strict=True))
  past = scipy.sparse.csr_array((weight, (row, column)), shape)
  one = np.ones(shape[0], np.float32)
  ahead = (one, (number[asked], windows.target[asked]))
  gram = (past.T @ past).toarray()
  gram[np.diag_indices(num_items)] += config.penalty
  return scipy.linalg.solve(
    gram,
    (past.T @ scipy.sparse.csr_array(ahead, shape)).toarray(),
    overwrite_a=True,
    overwrite_b=True,
    assume_a="pos",
  )


def scores(matrix: Array, windows: Windows, decay: float) -> jax.Array:
  """What follows each history, f32[n, M]: sum of decay^age B[item].

  Args:
    matrix: B.
    windows: rows of one sequence that ends in the last column.
    decay: of what is past.
  """
  age = jnp.arange(windows.item.shape[1])[::-1]
  weight = jnp.where(windows.place >= 0, decay ** age[None], 0.0)
  follows = matrix[jnp.maximum(windows.item, 0)]
  return jnp.einsum("nh,nhm->nm", weight.astype(matrix.dtype), follows)
