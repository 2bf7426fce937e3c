import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rerank_rl.config import ConfigError, WorldConfig
from rerank_rl.types import PAD
from rerank_rl.world import click_law
from rerank_rl.world import world as world_lib

SMALL = WorldConfig(
  num_items=120, num_candidates=10, slate_size=4, num_topics=5, latent_dim=4
)


@functools.cache
def log(config=SMALL, count=4000):
  world = world_lib.build(config, 3)
  return world, world_lib.impressions(world, jax.random.key(7), count)


def relevances(world, hidden):
  """All of them, f64[B, M], from the formula."""
  z, q = np.asarray(world.z, np.float64), np.asarray(world.quality)
  return 3 * np.asarray(hidden) @ z.T + q - 1.6


def test_items_and_users_are_unit_and_the_seed_decides():
  world, columns = log()
  for vectors in (world.z, world.centres, columns.hidden):
    length = np.linalg.norm(vectors, axis=-1)
    np.testing.assert_allclose(length, 1, atol=1e-5)
  again, other = world_lib.build(SMALL, 3), world_lib.build(SMALL, 4)
  np.testing.assert_array_equal(world.z, again.z)
  assert not np.allclose(world.z, other.z)
  assert world.features.shape == (120, 4 + 1 + 5)
  assert (~np.asarray(world.warm)).sum() == 6


def test_x64_draws_the_same_world_in_the_same_types():
  world, columns = log()
  key = jax.random.key(7)
  with jax.enable_x64(True):
    other = world_lib.build(SMALL, 3)
    rows = jax.eval_shape(world_lib._chunk, other, key, other.shuffle, 0)
  assert other.z.dtype == jnp.float32
  np.testing.assert_allclose(world.z, other.z, atol=1e-6)
  np.testing.assert_array_equal(world.shuffle, other.shuffle)
  for ours, theirs in zip(jax.tree.leaves(columns), jax.tree.leaves(rows)):
    whole = (world_lib.CHUNK, *ours.shape[1:])
    assert (whole, ours.dtype) == (theirs.shape, theirs.dtype)


def test_candidates_are_distinct_and_in_ranker_order():
  _, columns = log()
  request = columns.request
  ordered = np.sort(request.candidates, axis=1)
  assert (ordered[:, 1:] > ordered[:, :-1]).all()
  assert (request.scores[:, 1:] <= request.scores[:, :-1]).all()
  assert request.candidates.min() >= 0
  assert (request.size == 4).all()


TINY = dataclasses.replace(
  SMALL, seed=3, num_items=8, cold_share=0.0, ranker_noise=0.0, observed=True
)


def test_a_quiet_ranker_ranks_all_and_pads_where_items_lack():
  world, columns = log(TINY, 20)
  rel = relevances(world, columns.hidden)
  # 8 N >= M: the pool is the catalogue, so the best N are known.
  request = columns.request
  np.testing.assert_array_equal(
    request.candidates[:, :8], np.argsort(-rel, axis=1)
  )
  np.testing.assert_allclose(
    request.scores[:, :8], -np.sort(-rel, axis=1), atol=1e-4
  )
  assert (request.candidates[:, 8:] == PAD).all()
  assert (request.scores[:, 8:] == 0).all()
  assert columns.slate.max() < 8


def test_the_configs_own_seed_wins():
  np.testing.assert_array_equal(
    world_lib.build(TINY, 99).z, world_lib.build(TINY, 3).z
  )


def test_a_pool_is_distinct_and_every_item_equally_likely():
  order = jnp.asarray(np.random.default_rng(0).permutation(50)[:33])
  draw = jax.jit(jax.vmap(lambda key: world_lib._pool(order, 7, key)))
  pools = np.asarray(draw(jax.random.split(jax.random.key(0), 8000)))
  assert all(len(set(pool)) == 7 for pool in pools[:500])
  counts = np.bincount(pools.ravel(), minlength=50)
  assert set(np.flatnonzero(counts)) == set(np.asarray(order).tolist())
  share = counts[np.asarray(order)] / 8000
  np.testing.assert_allclose(share, 7 / 33, atol=0.025)
  whole = world_lib._pool(order, 33, jax.random.key(1))
  assert set(np.asarray(whole).tolist()) == set(np.asarray(order).tolist())


def test_propensities_are_those_of_plackett_luce():
  _, columns = log()
  scores = columns.request.scores.astype(np.float64)
  for b in range(40):
    left = np.exp(scores[b])
    for t, position in enumerate(columns.slate[b]):
      assert left[position] > 0  # Not placed before.
      np.testing.assert_allclose(
        columns.propensity[b, t], left[position] / left.sum(), rtol=1e-4
      )
      left[position] = 0


def test_slates_are_drawn_with_their_propensities():
  scores = jnp.array([1.0, 0.5, -0.5])
  draw = jax.jit(jax.vmap(lambda key: world_lib.logged_slate(scores, 2, key)))
  slate, propensity = draw(jax.random.split(jax.random.key(0), 20_000))
  for pair in [(0, 1), (1, 0), (2, 0), (0, 2)]:
    rows = (np.asarray(slate) == pair).all(1)
    chance = float(np.asarray(propensity)[rows][0].prod())
    assert abs(rows.mean() - chance) < 4.5 * np.sqrt(chance / 20_000)


def test_history_is_drawn_by_sigmoid_of_relevance():
  world, columns = log()
  user = jnp.asarray(columns.hidden[0])
  order = jnp.asarray(np.flatnonzero(world.warm), jnp.int32)
  draw = jax.jit(
    jax.vmap(lambda key: world_lib._history(world, order, user, key))
  )
  items = np.asarray(draw(jax.random.split(jax.random.key(0), 4000)))
  assert items.shape == (4000, 20)
  weight = 1 / (1 + np.exp(-relevances(world, user[None, :])[0]))
  weight = np.where(world.warm, weight, 0)
  expected = weight / weight.sum() * items.size
  counts = np.bincount(items.ravel(), minlength=120)
  assert not counts[expected == 0].any()
  seen = expected > 0
  chi2 = ((counts - expected)[seen] ** 2 / expected[seen]).sum()
  freedom = seen.sum() - 1
  assert abs(chi2 - freedom) < 5 * np.sqrt(2 * freedom)


def test_logged_clicks_follow_the_law():
  world, columns = log()
  shown = np.take_along_axis(columns.request.candidates, columns.slate, 1)
  rel = np.take_along_axis(relevances(world, columns.hidden), shown, 1)
  expected = np.asarray(
    jax.jit(click_law.expected_clicks)(
      world.law, rel, np.asarray(world.z)[shown], np.ones(rel.shape, bool)
    )
  )
  clicks = columns.feedback[..., 0]
  assert columns.feedback.shape == (4000, 4, 1)
  assert set(np.unique(clicks)) == {0.0, 1.0}
  error = (clicks - expected).mean(0)
  bound = 4.5 * np.sqrt((expected * (1 - expected)).mean(0) / 4000)
  assert (np.abs(error) < bound).all()
  # Not only on average: likelier slots are clicked more.
  likely = expected > np.median(expected)
  assert clicks[likely].mean() > clicks[~likely].mean() + 0.2


def test_rows_depend_on_the_key_and_their_number_only(monkeypatch):
  world, columns = log()
  monkeypatch.setattr(world_lib, "CHUNK", 5)
  short = world_lib.impressions(world, jax.random.key(7), 13)
  assert short.slate.shape == (13, 4)
  for ours, theirs in zip(jax.tree.leaves(short), jax.tree.leaves(columns)):
    np.testing.assert_allclose(ours, theirs[:13], rtol=1e-4, atol=1e-5)


def test_only_the_oracle_shows_the_user_and_exact_items():
  world, columns = log(TINY, 20)
  np.testing.assert_array_equal(columns.request.user, columns.hidden)
  np.testing.assert_array_equal(world.features[:, :4], world.z)
  np.testing.assert_array_equal(world.features[:, 4], world.quality)
  world, columns = log()
  assert columns.request.user.shape == (4000, 0)
  noise = np.asarray(world.features[:, :4] - world.z)
  assert 0.08 < noise.std() < 0.12
  topic = np.asarray(world.features[:, 5:]).argmax(1)
  np.testing.assert_array_equal(topic, world.topic)


@pytest.mark.parametrize(
  "change,text",
  [
    ({"slate_size": 11}, "slate_size=11 exceeds"),
    ({"cold_share": 1.0}, "cold_share=1.0"),
    ({"num_items": 3}, "num_items=3"),
    ({"num_topics": 1}, "num_topics=1"),
    ({"history_size": 0}, "history_size=0"),
  ],
)
def test_impossible_sizes_are_refused(change, text):
  with pytest.raises(ConfigError, match=text):
    world_lib.build(dataclasses.replace(SMALL, **change), 0)


def test_a_log_of_too_few_items_is_refused():
  world, _ = log()
  few = world.replace(warm=jnp.arange(120) < 3)
  with pytest.raises(ValueError, match="over 3 items"):
    world_lib.impressions(few, jax.random.key(0), 5, warm=True)
  with pytest.raises(ValueError, match="a log of 0 requests"):
    world_lib.impressions(world, jax.random.key(0), 0)


def test_who_draws_from_warm_items_does_not_see_their_padding():
  world, _ = log()
  filled = world_lib.stock(world, warm=True)
  kept = filled[filled != PAD]
  assert set(kept) == set(np.flatnonzero(world.warm))
  assert len(filled) == 120 > len(kept) and (filled[len(kept) :] == PAD).all()
  draw = jax.jit(jax.vmap(world_lib._impression, (None, None, 0)))
  keys = lambda: jax.random.split(jax.random.key(2), 50)
  one, two = (draw(world, jnp.asarray(x), keys()) for x in (filled, kept))
  jax.tree.map(np.testing.assert_array_equal, one, two)
  rare = dataclasses.replace(SMALL, num_items=60, num_candidates=7)
  few = world_lib.stock(world_lib.build(rare, 0), warm=True)
  # 8 N = 56 of 57 fill a pool.
  assert len(few) == 60
  rarer = dataclasses.replace(rare, num_candidates=8)
  assert len(world_lib.stock(world_lib.build(rarer, 0), warm=True)) == 57
