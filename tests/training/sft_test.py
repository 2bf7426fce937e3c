"""The stage `sft`: what it takes for demonstrations."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from rerank_rl.training.stages import sft
from rerank_rl.types import PAD, Impression, Outcome, Request

N, K = 5, 3
SCORES = np.float32([0.5, -1, 1, 0, -0.4])


def _log(request, slate, feedback) -> Impression:
  unknown = np.full(slate.shape, np.nan, np.float32)
  return Impression(request, slate, feedback, unknown, unknown[:, :0])


def _requests(counts, sizes) -> Request:
  """Requests with so many candidates for so many slots."""
  rows = np.arange(N, dtype=np.int32)[None]
  real = rows < counts[:, None]
  return Request(
    user=np.zeros((counts.size, 0), np.float32),
    history=np.zeros((counts.size, 1), np.int32),
    candidates=np.where(real, rows, PAD),
    scores=np.where(real, SCORES, np.float32(0)),
    size=sizes,
  )


def test_relevant_items_come_first_and_keep_their_order():
  slate = np.array(
    [[4, 1, 3, 0], [4, 1, 3, 0], [2, 0, PAD, PAD], [3, 2, 1, PAD]], np.int32
  )
  click = np.array([[0, 1, 0, 1], [0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]])
  # Another signal says the opposite, and has no say.
  feedback = np.stack([click, 1 - click], -1).astype(np.float32)
  feedback[slate == PAD] = 0
  batch = _log(_requests(np.full(4, N), np.full(4, 4)), slate, feedback)
  demonstrate = sft.RULES["relevant_first"](None)
  found = jax.jit(demonstrate)(batch, jax.random.key(0))
  wanted = [[1, 0, 4, 3], [4, 1, 3, 0], [0, 2, PAD, PAD], [1, 3, 2, PAD]]
  np.testing.assert_array_equal(found, wanted)


KINDS = 3  # Of requests: whole, for fewer slots, with fewer candidates.


@functools.cache
def _shown(copies: int) -> Impression:
  kinds = lambda *x: np.tile(np.array(x, np.int32), copies)
  slate = np.array([[1, 4, 3], [3, 1, PAD], [1, 0, PAD]], np.int32)
  slate = np.tile(slate, (copies, 1))
  request = _requests(kinds(N, N - 1, 2), kinds(K, 2, K))
  return _log(request, slate, np.zeros((*slate.shape, 1), np.float32))


def _liking(worth):
  """A reward: `worth` of the logged slate and of slates, f[B, G]."""

  def reward(batch, slate):
    liked = worth(batch.slate[:, None], slate)
    return Outcome(liked, jnp.zeros(slate.shape), 0 * liked)

  return reward


@functools.partial(jax.jit, static_argnums=(0, 1))
def _best_draw(samples, worth, batch, key):
  return sft._best_draw(samples, _liking(worth), batch, key)


def _new(shown, slate):
  return (slate != shown).any(-1) * 1.0


def _taste(shown, slate):
  """Tells any two slates apart."""
  del shown
  return jnp.sin(slate @ jnp.array([5.0, 3.0, 1.0]))


def _old(shown, slate):
  return 1 - _new(shown, slate)


def test_draws_follow_the_rankers_scores_without_replacement():
  """One draw, and a judge that takes whatever was not shown."""
  batch = _shown(4000)
  found = np.asarray(_best_draw(1, _new, batch, jax.random.key(0)))
  for kind, (count, length) in enumerate(((N, K), (N - 1, 2), (2, 2))):
    slates = found[kind::KINDS]
    assert (slates[:, length:] == PAD).all()
    seen = {}
    for slate in map(tuple, slates[:, :length].tolist()):
      seen[slate] = seen.get(slate, 0) + 1
    total = 0.0
    for slate, times in seen.items():
      assert len({*slate}) == length and {*slate} <= {*range(count)}
      mass, chance = np.exp(SCORES[:count].astype(np.float64)), 1.0
      for item in slate:
        chance *= mass[item] / mass.sum()
        mass[item] = 0
      total += chance
      error = 4.5 * np.sqrt(chance * (1 - chance) / 4000)
      assert abs(times / 4000 - chance) < error + 1e-3, slate
    assert total > 0.98  # Hardly a slate that was never drawn.


def test_the_demonstration_is_what_the_judge_likes_best():
  batch = _shown(40)
  key = jax.random.key
  found = np.asarray(_best_draw(64, _taste, batch, key(1)))
  taste = jax.jit(_taste)
  shown, worth = (np.asarray(taste(0, x)) for x in (batch.slate, found))
  assert (worth >= shown).all() and (worth > shown).mean() > 0.3
  # Of the two orders of two items, both are among 64 draws.
  rest = found[2::KINDS]
  others = np.stack([rest[:, 1], rest[:, 0], rest[:, 2]], 1)
  assert (np.sin(others @ np.array([5, 3, 1])) < worth[2::KINDS]).all()
  # What was shown is among what there is to choose from.
  kept = _best_draw(64, _old, batch, key(1))
  np.testing.assert_array_equal(kept, batch.slate)
