"""Item factors and a pointwise ranker, fitted on training interactions.

The ranker is a feature of the prompt and the `ranker_order` row of reports,
never a way to draw candidates: a retriever that ranks what it drew tells
which candidates were logged.
"""

import numpy as np
import scipy.sparse
import scipy.sparse.linalg

from rerank_rl.types import PAD

_SHRINKAGE = 10.0  # Interactions added to each item before normalising.
_CHUNK = 4096  # Requests scored at once; bounds memory.


def interactions(
  user: np.ndarray, item: np.ndarray, shape: tuple[int, int]
) -> scipy.sparse.csr_matrix:
  """f32 0/1 matrix [users, M] of who met what, from pairs that may repeat."""
  ones = np.ones(user.size, np.float32)
  matrix = scipy.sparse.csr_matrix((ones, (user, item)), shape)
  matrix.sum_duplicates()
  matrix.data[:] = 1
  return matrix


def item_factors(matrix: scipy.sparse.csr_matrix, width: int) -> np.ndarray:
  """Item factors of a truncated SVD of the normalised interactions.

  X = D_u^-1/2 A D_i^-1/2 = U S V^T (degrees shrunk); an item's factors are
  its row of V S^1/2. The first one, close to the items' popularity, is kept.

  Args:
    matrix: 0/1 matrix [users, M].
    width: factors, <= min(users, M).

  Returns:
    f32[M, width], strongest first; zeros for items that nobody met.
  """
  users = np.asarray(matrix.sum(1)).ravel() + _SHRINKAGE
  items = np.asarray(matrix.sum(0)).ravel() + _SHRINKAGE
  scaled = (
    scipy.sparse.diags(users**-0.5) @ matrix @ scipy.sparse.diags(items**-0.5)
  )
  if width < min(scaled.shape):
    start = np.full(min(scaled.shape), 1.0)  # Fixed, so that runs repeat.
    _, strength, right = scipy.sparse.linalg.svds(scaled, width, v0=start)
  else:  # Arnoldi's iterations cannot find all of them.
    _, strength, right = np.linalg.svd(scaled.toarray(), full_matrices=False)
  order = np.argsort(-strength)
  factors = right[order].T * np.sqrt(strength[order])
  largest = np.abs(factors).argmax(0)
  sign = np.sign(factors[largest, np.arange(width)])
  factors = factors * sign
  factors[np.asarray(matrix.sum(0)).ravel() == 0] = 0
  return factors.astype(np.float32)


class CoVisits:
  """How an item goes with a history, counting every user but the row's own.

  sim(i | h) = 1/|h| sum_{j in h} (C_ij - own_i) / sqrt((n_i - own_i + s)
  (n_j + s)), with C the users who met both, n the users who met one, s a
  shrinkage and own_i = 1 if the row's user is counted in C_ij. Without the
  correction a training row's own target would raise its own score.
  """

  def __init__(self, matrix: scipy.sparse.csr_matrix):
    counts = (matrix.T @ matrix).toarray().astype(np.float32)
    self.count = np.diagonal(counts).copy()
    np.fill_diagonal(counts, 0)
    self._root = (self.count + _SHRINKAGE) ** -0.5
    items = self.count.size
    # One more row and column of zeros: where PAD (-1) leads.
    self._table = np.zeros((items + 1, items + 1), np.float32)
    self._table[:items, :items] = counts * self._root[:, None]
    self._matrix = matrix

  def __call__(
    self,
    owner: np.ndarray,
    history: np.ndarray,
    candidates: np.ndarray,
    trained: np.ndarray,
  ) -> np.ndarray:
    """Two statistics of each candidate.

    Args:
      owner: i64[n], rows of the interaction matrix.
      history: i32[n, H], PAD where empty.
      candidates: i32[n, N], no PAD.
      trained: bool[n], whether the row's own slate is in the matrix.

    Returns:
      f32[n, N, 2]: log(sim + .001) and log(1 + n_i - own_i).
    """
    result = np.empty((*candidates.shape, 2), np.float32)
    for low in range(0, owner.size, _CHUNK):
      rows = slice(low, low + _CHUNK)
      result[rows] = self._chunk(
        owner[rows], history[rows], candidates[rows], trained[rows]
      )
    return result

  def _chunk(self, owner, history, candidates, trained):
    own = np.zeros(candidates.shape, np.float32)
    fit = np.flatnonzero(trained)
    if fit.size:
      own[fit] = self._own(owner[fit], candidates[fit])
    items = self.count.size
    place = np.where(history == PAD, items, history).astype(np.int64)
    both = np.zeros(candidates.shape, np.float32)
    table = self._table.ravel()
    for column in range(history.shape[1]):
      both += table[
        place[:, column, None] * (items + 1) + candidates.astype(np.int64)
      ]
    real = history != PAD
    roots = np.where(real, self._root[np.where(real, history, 0)], 0)
    count = self.count[candidates] - own
    both = np.maximum(both - own * roots.sum(1, keepdims=True), 0)
    sim = both / np.sqrt(count + _SHRINKAGE)
    sim = sim / np.maximum(real.sum(1, keepdims=True), 1)
    return np.stack([np.log(sim + 1e-3), np.log1p(count)], -1)

  def _own(self, owner: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """f32[n, N]: whether the row's own user is counted for the candidate."""
    rows = np.broadcast_to(owner[:, None], candidates.shape)
    found = self._matrix[rows.ravel(), candidates.ravel()]
    return np.asarray(found).reshape(candidates.shape)


def fit_logistic(
  features: np.ndarray, labels: np.ndarray, steps: int = 12
) -> np.ndarray:
  """Weights of a logistic regression by Newton's method, ridge 1e-3.

  Args:
    features: f[n, F], no constant column.
    labels: bool[n].
    steps: Newton steps.

  Returns:
    f64[F + 1], the last one the intercept.
  """
  x = np.c_[features, np.ones(features.shape[0])].astype(np.float64)
  weights = np.zeros(x.shape[1])
  ridge = 1e-3 * x.shape[0] * np.eye(x.shape[1])
  ridge[-1, -1] = 0
  for _ in range(steps):
    p = 1 / (1 + np.exp(-np.clip(x @ weights, -30, 30)))
    gradient = x.T @ (p - labels) + ridge @ weights
    hessian = (x * (p * (1 - p))[:, None]).T @ x + ridge
    step = np.linalg.solve(hessian + 1e-9 * np.eye(x.shape[1]), gradient)
    weights = weights - step
  return weights
