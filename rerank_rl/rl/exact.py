"""Oracles for trees small enough to enumerate; on the host, in 64 bits."""

import numpy as np


def uniform_values(tokens: np.ndarray, reward: np.ndarray) -> np.ndarray:
  """Q of the uniformly random policy, by one pass from the leaves up.

    Q(leaf edge) = R(leaf); Q(e) = mean over e's children of Q(child)

  (ROVER: with a binary reward, greedy on Q is optimal. It need not be with
  a graded one.)

  Args:
    tokens: i32[M, T], every leaf of the tree, once.
    reward: f32[M], what each is worth.

  Returns:
    f64[M, T], the Q of each edge on each path.

  Raises:
    ValueError: a leaf is given twice.
  """
  M, T = tokens.shape
  out = np.zeros((M, T))
  distinct = len(np.unique(tokens, axis=0))
  if distinct != M:
    raise ValueError(f"{M - distinct} of {M} leaves are given twice.")
  out[:, T - 1] = reward
  for t in range(T - 2, -1, -1):
    child, first, inverse = np.unique(
      tokens[:, : t + 2], axis=0, return_index=True, return_inverse=True
    )
    _, parent = np.unique(child[:, : t + 1], axis=0, return_inverse=True)
    parent = parent.reshape(-1)
    total = np.bincount(parent, weights=out[first, t + 1])
    out[:, t] = (total / np.bincount(parent))[parent][inverse.reshape(-1)]
  return out
