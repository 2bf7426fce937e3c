import dataclasses
import functools

import numpy as np
import pytest

from rerank_rl.config import Config, ConfigError, WorldConfig
from rerank_rl.data import schema, synthetic

SMALL = Config(
  seed=3,
  world=WorldConfig(
    num_items=200,
    num_candidates=10,
    slate_size=4,
    num_topics=5,
    num_train=80,
    num_valid=80,
    num_test=80,
  ),
)


@functools.cache
def dataset(config=SMALL):
  return synthetic.load(config)


def vary(**changes):
  return dataclasses.replace(
    SMALL, world=dataclasses.replace(SMALL.world, **changes)
  )


def test_it_is_a_valid_data_set():
  data = schema.validate(dataset())
  sizes = [schema.num_rows(data.splits[name]) for name in schema.SPLITS]
  assert sizes == [80, 80, 80]
  assert data.signals == ("click",)
  assert data.slate_size == 4


def test_cold_items_are_met_in_the_test_split_only():
  data = dataset()
  cold = np.flatnonzero(~data.warm)
  assert len(cold) == 10
  for name in ("train", "valid"):
    request = data.splits[name].request
    assert not np.isin(request.candidates, cold).any()
    assert not np.isin(request.history, cold).any()
  assert np.isin(data.splits["test"].request.candidates, cold).any()


def test_splits_differ():
  hidden = [dataset().splits[name].hidden for name in schema.SPLITS]
  assert not np.isclose(hidden[0], hidden[1]).all(1).any()
  assert not np.isclose(hidden[1], hidden[2]).all(1).any()


def test_the_seed_decides_and_the_worlds_own_wins():
  other = dataset(dataclasses.replace(SMALL, seed=8))
  hidden = dataset().splits["test"].hidden
  assert not np.allclose(other.splits["test"].hidden, hidden)
  own = vary(seed=3)
  assert synthetic.seed_of(dataclasses.replace(own, seed=8)) == 3
  world = synthetic.world_of(SMALL)
  np.testing.assert_array_equal(world.topic, dataset().groups)


def test_features_are_standardised_and_vectors_measure_relevance():
  data = dataset()
  np.testing.assert_allclose(data.features[:, :9].mean(0), 0, atol=1e-5)
  np.testing.assert_allclose(data.features[:, :9].std(0), 1, atol=1e-4)
  np.testing.assert_array_equal(data.features[:, 9:].sum(1), 1)
  world = synthetic.world_of(SMALL)
  directions = np.random.default_rng(0).normal(size=(20_000, 8))
  directions /= np.linalg.norm(directions, axis=1, keepdims=True)
  z, q = np.asarray(world.z), np.asarray(world.quality)
  gap = 3 * directions @ (z[3] - z[5]) + q[3] - q[5]
  exact = np.concatenate([z, q[:, None]], axis=1)
  vectors = synthetic.item_vectors(world.replace(features=exact))
  distance = ((vectors[3] - vectors[5]) ** 2).sum()
  np.testing.assert_allclose((gap**2).mean(), distance, rtol=0.05)


def test_a_contradiction_is_the_users_mistake():
  with pytest.raises(ConfigError, match="slate_size=20"):
    synthetic.load(vary(slate_size=20))
