"""The response model: reading on equals reading again, nothing else leaks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rerank_rl.models.response import ResponseModel
from rerank_rl.types import PAD, Impression, Request

B, WINDOW, ITEMS, SLOTS = 3, 5, 30, 4
MODEL = ResponseModel(SLOTS, signals=2, window=WINDOW, dim=8, layers=3)
APPLY = jax.jit(MODEL.apply, static_argnames="method")


def _request(history):
  candidates = jnp.broadcast_to(jnp.arange(10), (len(history), 10))
  return Request(
    user=jax.random.normal(jax.random.key(1), (len(history), 3)),
    history=history,
    candidates=candidates,
    scores=jnp.zeros(candidates.shape),
    size=jnp.full(len(history), SLOTS),
  )


@pytest.fixture(scope="module")
def fitted():
  """Features and parameters that are not the initial ones."""
  features = jax.random.normal(jax.random.key(2), (ITEMS, 6))
  history = jnp.full((B, WINDOW), PAD)
  slate = jnp.zeros((B, 1, SLOTS), jnp.int32)
  init = jax.jit(MODEL.init)
  params = init(jax.random.key(3), features, _request(history), slate)
  random = np.random.default_rng(4)
  moved = jax.tree.map(
    lambda x: np.float32(x + 0.3 * random.normal(size=x.shape)),
    params["params"],
  )
  return features, moved


def _read(fitted, rows, parts):
  """The state after items i32[B, E], read in parts; PAD is not clicked."""
  features, params = fitted
  ask = lambda method, *args: APPLY({"params": params}, *args, method=method)
  table = ask("table", features)
  memory = MODEL.apply({"params": params}, len(rows), method="blank")
  for part in np.split(rows, np.cumsum(parts)[:-1], axis=1):
    part = jnp.asarray(part)
    items = table[jnp.maximum(part, 0)]
    memory = ask("extend", memory, items, part != PAD)
  return np.asarray(memory.state), memory


def test_reading_on_equals_reading_from_the_start(fitted):
  """Windows slide, some items are not clicked, users click unequally many."""
  random = np.random.default_rng(0)
  rows = random.integers(0, ITEMS, (B, 24))
  rows[random.random(rows.shape) < 0.4] = PAD
  rows[0, :9] = PAD
  whole, _ = _read(fitted, rows, [24])
  for parts in ([7, 4, 4, 4, 5], [1] * 24, [20, 4]):
    step, memory = _read(fitted, rows, parts)
    np.testing.assert_allclose(step, whole, atol=1e-5)
    want = np.minimum((rows != PAD).sum(1), WINDOW)
    np.testing.assert_array_equal(memory.count, want)


def test_items_that_were_not_clicked_leave_no_trace(fitted):
  rows = np.array([[3, PAD, 7, PAD, PAD, 2]])
  dense, _ = _read(fitted, np.array([[3, 7, 2]]), [3])
  np.testing.assert_allclose(_read(fitted, rows, [6])[0], dense, atol=1e-5)
  features, _ = fitted
  other = (features.at[0].set(9.0), fitted[1])  # What PAD's rows read.
  np.testing.assert_allclose(_read(other, rows, [6])[0], dense, atol=1e-5)


def test_what_lies_beyond_every_window_is_forgotten(fitted):
  """Three blocks see W - 1 clicks back each."""
  random = np.random.default_rng(1)
  reach = 3 * (WINDOW - 1) + 1
  rows = random.integers(0, ITEMS, (B, reach + 2))
  changed = rows.copy()
  changed[:, :2] = (changed[:, :2] + 1) % ITEMS
  same = lambda x: _read(fitted, x, [x.shape[1]])[0]
  np.testing.assert_allclose(same(changed), same(rows), atol=1e-6)
  changed[:, 2] = (changed[:, 2] + 1) % ITEMS
  assert np.abs(same(changed) - same(rows)).max() > 1e-6


def test_an_answer_sees_the_items_above_and_none_below(fitted):
  features, params = fitted
  request = _request(jnp.array([[PAD, PAD, 4, 5, 6]]))
  slate = jnp.array([[[2, 7, 1, 3], [2, 7, 9, 8], [7, 2, 1, 3]]])
  out = APPLY({"params": params}, features, request, slate)
  assert out.shape == (1, 3, SLOTS, 2)
  np.testing.assert_allclose(out[0, 0, :2], out[0, 1, :2], atol=1e-5)
  assert np.abs(out[0, 0, 2:] - out[0, 2, 2:]).max() > 1e-3


def test_the_penalty_is_the_log_loss_of_its_own_answers(fitted):
  """-log of the probability of what was said, once a shown place and signal."""
  features, params = fitted
  request = _request(jnp.array([[PAD, PAD, 4, 5, 6], [1, 2, 3, 4, 5]]))
  slate = jnp.array([[2, 7, 1, 3], [5, 0, PAD, PAD]])
  said = np.random.default_rng(5).random((2, SLOTS, 2)) < 0.5
  none = jnp.zeros((2, 0))
  log = Impression(request, slate, jnp.float32(said), none, none)

  @jax.jit
  def both(params):
    own = {"params": params}
    logits = MODEL.apply(own, features, request, slate[:, None])
    return logits, MODEL.apply(own, features, log, method="penalty")

  logits, (terms, counted) = both(params)
  p = 1 / (1 + np.exp(-np.float64(logits[:, 0])))
  assert p.min() < 0.4 and p.max() > 0.6
  want = -np.log(np.where(said, p, 1 - p))
  np.testing.assert_allclose(terms, want, rtol=1e-4, atol=1e-5)
  shown = np.broadcast_to(slate[..., None] != PAD, terms.shape)
  np.testing.assert_array_equal(counted, shown)
