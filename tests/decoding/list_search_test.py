"""Beam search over lists against brute force."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from rerank_rl import types
from rerank_rl.decoding import list_search

BATCH, COUNT, SLOTS = 3, 5, 3


def _tables(seed=0):
  rng = np.random.default_rng(seed)
  alone = rng.normal(size=(BATCH, COUNT)).astype(np.float32)
  after = rng.normal(size=(BATCH, COUNT, COUNT)).astype(np.float32)
  return alone, after


def _request(count=(5, 5, 5), size=(3, 3, 3)):
  candidates = np.tile(np.arange(COUNT, dtype=np.int32), (BATCH, 1))
  candidates[candidates >= np.array(count)[:, None]] = types.PAD
  zeros = np.zeros((BATCH, COUNT), np.float32)
  return types.Request(
    zeros[:, :0],
    candidates,
    candidates,
    zeros,
    np.array(size, np.int32),
  )


def _score(alone, after):
  """Worth (k + 1) * alone plus a term for each item above."""

  def score(placed, k):
    pairs = jax.vmap(lambda a, p: a[jnp.maximum(p, 0)])(after, placed)
    pairs = jnp.where((placed >= 0)[..., None], pairs, 0).sum(2)
    return (k + 1) * alone[:, None] + pairs

  return score


def _worth(alone, after, slate):
  total = 0.0
  for k, item in enumerate(slate):
    total += (k + 1) * alone[item] + sum(after[j, item] for j in slate[:k])
  return total


def _everything(row, count, size):
  alone, after = (x[row] for x in _tables())
  slates = itertools.permutations(range(count), size)
  return sorted(slates, key=lambda s: -_worth(alone, after, s))


def test_a_wide_beam_finds_the_best_slates_in_order():
  found = list_search.search(_score(*_tables()), _request(), SLOTS, 60)
  for row in range(BATCH):
    expected = _everything(row, COUNT, SLOTS)
    assert [tuple(s) for s in np.asarray(found[row]).tolist()] == expected


def test_width_one_is_greedy():
  alone, after = _tables()
  score = _score(alone, after)
  found = np.asarray(list_search.search(score, _request(), SLOTS))[:, 0]
  for row in range(BATCH):
    slate = []
    for _ in range(SLOTS):
      rest = [i for i in range(COUNT) if i not in slate]
      slate.append(
        max(rest, key=lambda i: _worth(alone[row], after[row], slate + [i]))
      )
    assert found[row].tolist() == slate


def test_padding_short_slates_and_short_candidate_lists():
  request = _request(count=(4, 2, 5), size=(3, 3, 1))
  found = np.asarray(list_search.search(_score(*_tables()), request, SLOTS, 30))
  for row, (count, size) in enumerate([(4, 3), (2, 2), (5, 1)]):
    expected = _everything(row, count, size)
    got = found[row].tolist()
    for slate, want in zip(got, expected):
      assert slate == list(want) + [types.PAD] * (SLOTS - size)
    assert all(s == [types.PAD] * SLOTS for s in got[len(expected) :])


def test_is_jittable_and_keeps_the_scorer_dtype():
  alone, after = _tables()
  run = jax.jit(
    lambda a: list_search.search(_score(a, after), _request(), SLOTS, 2)
  )
  found = run(alone)
  assert found.dtype == jnp.int32 and found.shape == (BATCH, 2, SLOTS)


def test_a_plan_keeps_values_and_what_every_candidate_would_have_gained():
  tables = _tables()
  plan = list_search.plan(_score(*tables), _request(), SLOTS, 6)
  for row in range(BATCH):
    alone, after = (x[row] for x in tables)
    for slate, value, gain in zip(
      plan.slate[row], plan.value[row], plan.gain[row]
    ):
      slate = slate.tolist()
      np.testing.assert_allclose(value, _worth(alone, after, slate), rtol=1e-5)
      for k in range(SLOTS):
        for item in set(range(COUNT)) - set(slate[:k]):
          before, now = slate[:k], slate[:k] + [item]
          step = _worth(alone, after, now) - _worth(alone, after, before)
          np.testing.assert_allclose(gain[k, item], step, atol=1e-5)


def test_a_plan_says_where_there_is_no_slate():
  request = _request(count=(2, 5, 5))
  plan = list_search.plan(_score(*_tables()), request, SLOTS, 4)
  assert (np.asarray(plan.value[0]) > list_search.NEVER).tolist() == [
    True,
    True,
    False,
    False,
  ]
