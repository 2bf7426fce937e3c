import functools
import itertools

import jax
import numpy as np
import pytest

from rerank_rl.config import WorldConfig
from rerank_rl.types import PAD
from rerank_rl.world import click_law, utility
from rerank_rl.world import world as world_lib

TINY = WorldConfig(
  num_items=60, num_candidates=8, slate_size=4, num_topics=5, latent_dim=4
)


@functools.cache
def requests(config=TINY, count=48):
  world = world_lib.build(config, 1)
  random = np.random.default_rng(0)
  hidden = random.normal(size=(count, 4)).astype(np.float32)
  hidden /= np.linalg.norm(hidden, axis=1, keepdims=True)
  rows = [random.permutation(60)[:8] for _ in range(count)]
  return world, hidden, np.array(rows, np.int32)


def worth(world, hidden, candidates, slate):
  return np.asarray(utility.utility(world, hidden, candidates, slate))


def everything(world, hidden, candidates, size=4):
  """Every ordered slate i32[P, K] and its utility f[B, P]."""
  orders = list(itertools.permutations(range(candidates.shape[1]), size))
  orders = np.array(orders, np.int32)
  slates = np.broadcast_to(orders, (len(hidden), *orders.shape))
  return orders, worth(world, hidden, candidates, slates)


def test_per_item_is_the_law_on_catalogue_rows():
  world, hidden, candidates = requests()
  items = np.stack([candidates[:, :4], candidates[:, 4:]], axis=1)
  items[:, 1, 3] = PAD
  clicks = np.asarray(utility.per_item(world, hidden, items))
  assert clicks.shape == (48, 2, 4)
  assert not clicks[:, 1, 3].any()
  z = np.asarray(world.z)[items]
  rel = 3 * np.einsum("bd,bgkd->bgk", hidden, z)
  rel = rel + np.asarray(world.quality)[items] - 1.6
  expected = jax.jit(click_law.expected_clicks)(world.law, rel, z, items != PAD)
  np.testing.assert_allclose(clicks, expected, rtol=1e-4, atol=1e-6)


def test_positions_and_rows_give_the_same_utility():
  world, hidden, candidates = requests()
  slates = np.tile(np.array([5, 2, 7, PAD], np.int32), (48, 2, 1))
  rows = np.where(slates == PAD, PAD, candidates[:, None, [5, 2, 7, 0]])
  ours = np.asarray(utility.per_item(world, hidden, rows)).sum(-1)
  theirs = worth(world, hidden, candidates, slates)
  np.testing.assert_allclose(theirs, ours, rtol=1e-5)
  alone = worth(world, hidden, candidates, slates[:, 0])
  np.testing.assert_allclose(alone, ours[:, 0], rtol=1e-5)


def test_enumeration_is_the_best_of_all_slates():
  world, hidden, candidates = requests()
  _, values = everything(world, hidden, candidates)
  best = utility.optimum(world, hidden, candidates)
  ours = worth(world, hidden, candidates, best)
  np.testing.assert_allclose(ours, values.max(1), rtol=1e-5)


def test_beam_and_local_search_reach_the_enumerated_optimum():
  world, hidden, candidates = requests()

  @jax.jit
  @jax.vmap
  def find(user, items):
    truth = utility.truth_of(world, user, items)
    slate = utility.beam(world.law, truth, 4, 16)[0]
    return utility.local_search(world.law, truth, slate)

  found = worth(world, hidden, candidates, find(hidden, candidates))
  _, values = everything(world, hidden, candidates)
  exact = values.max(1)
  assert (found <= exact + 1e-5).all()
  assert found.sum() >= 0.9995 * exact.sum()
  assert (np.abs(found - exact) < 1e-5).mean() >= 0.9


def test_a_beam_that_keeps_every_prefix_is_exact():
  world, hidden, candidates = requests()
  best = utility.search(world, hidden, candidates, 8 * 7 * 6)
  _, values = everything(world, hidden, candidates)
  ours = worth(world, hidden, candidates, best)
  np.testing.assert_allclose(ours, values.max(1), rtol=1e-5)


def test_a_beam_of_one_is_greedy():
  world, hidden, candidates = requests()
  slate = utility.search(world, hidden, candidates, 1)
  for slot in range(4):
    tries = np.full((48, 8, 4), PAD, np.int32)
    tries[:, :, :slot] = slate[:, None, :slot]
    tries[:, :, slot] = np.arange(8)
    values = worth(world, hidden, candidates, tries)
    used = (np.arange(8)[None, :, None] == slate[:, None, :slot]).any(-1)
    values = np.where(used, -1, values)
    chosen = np.take_along_axis(values, slate[:, slot : slot + 1], 1)[:, 0]
    np.testing.assert_allclose(chosen, values.max(1), rtol=1e-5)


def test_local_search_stops_where_no_neighbour_gains():
  world, hidden, candidates = requests()
  orders, values = everything(world, hidden, candidates)
  index = {tuple(order): row for row, order in enumerate(orders)}
  worst = orders[values.argmin(1)]

  @jax.jit
  @jax.vmap
  def climb(user, items, slate):
    truth = utility.truth_of(world, user, items)
    return utility.local_search(world.law, truth, slate)

  found = np.asarray(climb(hidden, candidates, worst))
  for b, slate in enumerate(found.tolist()):
    here = values[b, index[tuple(slate)]]
    assert here > values[b].min() + 0.1
    for i, j in itertools.combinations(range(4), 2):
      other = list(slate)
      other[i], other[j] = other[j], other[i]
      assert values[b, index[tuple(other)]] <= here + 1e-5
    for i, item in itertools.product(range(4), set(range(8)) - set(slate)):
      other = slate[:i] + [item] + slate[i + 1 :]
      assert values[b, index[tuple(other)]] <= here + 1e-5


@pytest.mark.parametrize("plain", [True, False])
def test_sorting_by_truth_is_optimal_only_without_list_effects(plain):
  world, hidden, candidates = requests()
  if plain:
    world = world.replace(law=click_law.Law(fatigue=0.0, contrast=0.0))
  rel = np.asarray(jax.jit(world_lib.relevance)(world, hidden, candidates))
  ordered = np.argsort(-rel, axis=1)[:, :4].astype(np.int32)
  ours = worth(world, hidden, candidates, ordered)
  _, values = everything(world, hidden, candidates)
  if plain:
    np.testing.assert_allclose(ours, values.max(1), rtol=1e-5)
  else:
    assert ours.sum() < 0.97 * values.max(1).sum()


def test_padding_is_never_placed():
  world, hidden, candidates = requests()
  short = candidates.copy()
  short[:, 5:] = PAD
  orders, values = everything(world, hidden, candidates)
  best = values[:, (orders < 5).all(1)].max(1)
  # The same widths as above: nothing new to compile.
  greedy = utility.search(world, hidden, short, 1)
  searched = utility.search(world, hidden, short, 8 * 7 * 6)
  enumerated = utility.optimum(world, hidden, short)
  for slates in (greedy, searched, enumerated):
    assert slates.min() >= 0
    assert slates.max() < 5
    assert all(len(set(slate)) == 4 for slate in slates.tolist())
  for slates in (searched, enumerated):
    ours = worth(world, hidden, candidates, slates)
    np.testing.assert_allclose(ours, best, rtol=1e-5)


def test_chunks_do_not_show(monkeypatch):
  world, hidden, candidates = requests()
  whole = utility.search(world, hidden, candidates, 1)
  monkeypatch.setattr(utility, "CHUNK", 20)
  np.testing.assert_array_equal(
    utility.search(world, hidden, candidates, 1), whole
  )


def test_the_world_keeps_its_shape():
  """List effects decide: sorting by the truth is far from the optimum."""
  world = world_lib.build(WorldConfig(), 0)
  draw = jax.jit(world_lib.users, static_argnames="count")
  hidden = np.asarray(draw(world, jax.random.key(1), count=128))
  random = np.random.default_rng(0)
  pool = np.array([random.permutation(2000)[:400] for _ in hidden])
  z, q = np.asarray(world.z), np.asarray(world.quality)
  rel = np.take_along_axis(3 * hidden @ z.T + q - 1.6, pool, 1)
  ranked = np.argsort(-rel - random.normal(size=rel.shape), axis=1)[:, :50]
  candidates = np.take_along_axis(pool, ranked, 1).astype(np.int32)
  rel = np.take_along_axis(rel, ranked, 1)
  best = utility.optimum(world, hidden, candidates)
  best = worth(world, hidden, candidates, best).sum()

  def share(slate):
    slate = np.asarray(slate[:, :6], np.int32)
    return worth(world, hidden, candidates, slate).sum() / best

  ranker = share(np.tile(np.arange(50), (128, 1)))
  pointwise = share(np.argsort(-rel, axis=1))
  greedy = share(utility.search(world, hidden, candidates, 1))
  assert 0.65 < ranker < 0.78
  assert 0.82 < pointwise < 0.90
  assert 0.95 < greedy < 1.0
