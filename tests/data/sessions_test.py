"""Users of sessions from a log: who is in which group, what is brought."""

import dataclasses

import jax
import numpy as np
import pytest

from rerank_rl.config import Config, ConfigError, DataConfig, WorldConfig
from rerank_rl.data import load, schema, sessions, synthetic
from rerank_rl.types import PAD
from rerank_rl.world import world as world_lib

WORLD = WorldConfig(
  num_items=60,
  num_candidates=8,
  slate_size=3,
  num_train=400,
  num_valid=100,
  num_test=100,
)
CONFIG = Config(data=DataConfig(name="kuairand_pure"), world=WORLD)


@pytest.fixture(scope="module")
def log():
  """A log of 120 users with several rows each."""
  data = synthetic.load(Config(world=WORLD))
  random = np.random.default_rng(0)
  owners = {
    name: random.integers(0, 120, schema.num_rows(rows))
    for name, rows in data.splits.items()
  }
  return dataclasses.replace(data, owners=owners)


@pytest.fixture(scope="module")
def found(log):
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(load, "load", lambda config: log)
    yield sessions.of_log(CONFIG)


def _owners(log, rows):
  """Whose rows these are: users' true vectors tell rows apart."""
  whole = {
    row.tobytes(): owner
    for name, columns in log.splits.items()
    for row, owner in zip(columns.hidden, log.owners[name], strict=True)
  }
  return [whole[row.tobytes()] for row in rows.hidden]


def test_no_user_is_in_two_groups_and_each_begins_once(log, found):
  """Two fifths, two fifths, a fifth; models see training rows alone."""
  seen = {name: set(_owners(log, rows)) for name, rows in found.logs.items()}
  starts = {name: _owners(log, rows) for name, rows in found.splits.items()}
  for users in starts.values():
    assert len(users) == len(set(users))
  groups = {name: set(users) for name, users in starts.items()}
  assert sum(map(len, groups.values())) == len(set().union(*groups.values()))
  assert seen["a"] <= groups["train"] and seen["b"] <= groups["valid"]
  sizes = np.array([len(groups[name]) for name in ("train", "valid", "test")])
  assert np.abs(sizes / sizes.sum() - [0.4, 0.4, 0.2]).max() < 0.1
  train = {row.tobytes() for row in log.splits["train"].hidden}
  for rows in found.logs.values():
    assert {row.tobytes() for row in rows.hidden} <= train


def test_a_session_begins_with_the_latest_row(log, found):
  starts = dict(
    zip(
      _owners(log, found.splits["test"]),
      found.splits["test"].hidden,
      strict=True,
    )
  )
  for owner, hidden in starts.items():
    last = next(
      log.splits[name].hidden[log.owners[name] == owner][-1]
      for name in reversed(schema.SPLITS)
      if (log.owners[name] == owner).any()
    )
    np.testing.assert_array_equal(hidden, last)


def test_who_does_not_say_whose_rows_are_whose_is_refused(log):
  with pytest.MonkeyPatch.context() as patch:
    silent = dataclasses.replace(log, owners={})
    patch.setattr(load, "load", lambda config: silent)
    with pytest.raises(ConfigError, match="which rows are of one user"):
      sessions.of_log(CONFIG)


def test_offers_follow_popularity_and_do_not_repeat():
  seen = np.array([1000] * 10 + [0] * 90)
  offers = sessions.offered(seen, turns=4, candidates=10)
  assert offers.shape == (256, 4, 10)
  flat = offers.reshape(256, -1)
  assert (np.diff(np.sort(flat, 1), axis=1) > 0).all()
  # The ten that are shown a thousand times come in every session, at any turn.
  assert (np.sort(flat, 1)[:, :10] == np.arange(10)).all()
  turn = (offers < 10).sum(-1).mean(0)
  np.testing.assert_allclose(turn, 2.5, atol=0.4)


def test_a_short_catalogue_starts_over():
  offers = sessions.offered(np.ones(25, int), turns=5, candidates=10)
  np.testing.assert_array_equal(offers[:, 0], offers[:, 2])
  assert (np.diff(np.sort(offers, 2), axis=2) > 0).all()


def test_fewer_items_than_candidates_are_padded():
  offers = sessions.offered(np.ones(3, int), turns=2, candidates=5)
  assert offers.shape == (256, 2, 5)
  assert (offers[..., 3:] == PAD).all()
  assert (np.sort(offers[..., :3], 2) == np.arange(3)).all()


@pytest.fixture(scope="module")
def on_world():
  """Sessions of the world's users."""
  config = dataclasses.replace(CONFIG, data=DataConfig(name="world"))
  return sessions.of_world(config)


def test_the_worlds_log_is_halved(on_world):
  train = on_world.splits["train"]
  for i, name in enumerate("ab"):
    np.testing.assert_array_equal(
      on_world.logs[name].hidden, train.hidden[i::2]
    )
  assert (on_world.logs["a"].request.candidates != PAD).all()


def test_the_worlds_users_have_been_shown_nothing_yet(on_world):
  size = CONFIG.world.num_topics
  for rows in (*on_world.splits.values(), *on_world.logs.values()):
    assert not rows.request.user[:, :size].any()
  assert on_world.topics.shape == (len(on_world.item_ids), size)
  assert (on_world.topics.sum(1) == 1).all()


def test_the_ranker_knows_whom_it_ranks_for(on_world):
  """What it holds a user for foretells what he likes in truth."""
  world = synthetic.world_of(CONFIG)
  rows = on_world.splits["test"]
  taste = rows.request.user[:, CONFIG.world.num_topics :]
  said = taste @ on_world.vectors.T
  every = np.tile(np.arange(len(on_world.item_ids)), (len(said), 1))
  true = jax.jit(jax.vmap(world_lib.relevance, (None, 0, 0)))(
    world, rows.hidden, every
  )
  own = [np.corrcoef(x, y)[0, 1] for x, y in zip(said, true)]
  other = [np.corrcoef(x, y)[0, 1] for x, y in zip(said, np.roll(true, 1, 0))]
  assert np.mean(own) > np.mean(other) + 0.3
