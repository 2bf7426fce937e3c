"""Goals: behaviours by their definition, grids, control, and a run asked."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import control
from configs import mocdt
from rerank_rl.config import ConfigError
from rerank_rl.evaluation import ranking
from rerank_rl.rl import agents
from rerank_rl.training import goals, session, session_pipeline
from rerank_rl.training.stages import relabel
from tests import toys


def _slates(lean, vary):
  """Slates of toy requests, and the features of what they show."""
  catalogue, request = toys.catalogue(), toys.request(batch=40)
  own = goals.Behaviour(jnp.full((40,), lean), jnp.full((40,), vary))
  key = jax.random.key(3)
  features = catalogue.features
  slate, _ = goals.behave(toys.SIZES.slots, features, own, request, key)
  rows = jnp.take_along_axis(request.candidates, jnp.maximum(slate, 0), axis=1)
  return request, slate, catalogue.features[rows]


def test_behaviours_range_from_the_rankers_order_to_its_reverse():
  request, slate, _ = _slates(1e3, 0.0)
  # The third of each three requests has two candidates only.
  whole = (slate >= 0).all(1)
  best = agents.top(request, request.scores, toys.SIZES.slots)
  assert (slate == best)[whole].all()
  _, slate, _ = _slates(-1e3, 0.0)
  scores = jnp.where(request.candidates >= 0, request.scores, jnp.inf)
  assert (slate[:, 0] == scores.argmin(1)).all()


def test_behaviours_range_from_diverse_slates_to_like_ones():
  variety = []
  for vary in (3.0, 0.0, -3.0):
    _, slate, shown = _slates(0.5, vary)
    variety.append(float(ranking.ild(shown, slate >= 0).mean()))
  assert variety[0] > variety[1] > variety[2]


def test_the_grid_lies_within_what_was_achieved():
  """Of a triangle, the largest rectangle has half of its area."""
  random = np.random.default_rng(0)
  points = random.uniform(size=(4000, 2))
  triangle = points[points.sum(1) < 1].astype(np.float32)
  asked = goals.grid(triangle, 5)
  assert asked.shape == (25, 2)
  assert asked.sum(1).max() <= 1
  assert 0.2 < np.ptp(asked, axis=0).prod() <= 0.25
  steps = np.diff(asked.reshape(5, 5, 2)[:, 0, 0])
  np.testing.assert_allclose(steps, steps[0], rtol=1e-4)


@pytest.mark.parametrize("second", [1.0, np.nan])
def test_no_grid_lies_on_a_line(second):
  region = np.stack([np.arange(9.0), np.full(9, second)], axis=1)
  with pytest.raises(ConfigError, match="spans no area"):
    goals.grid(region, 5)


def test_control_tells_who_listens():
  asked = goals.grid(np.random.default_rng(1).normal(size=(300, 2)), 5)
  perfect = goals.control(asked, asked)
  np.testing.assert_allclose(perfect.slope, 1, rtol=1e-5)
  np.testing.assert_allclose(perfect.error, 0, atol=1e-6)
  deaf = goals.control(asked, np.zeros_like(asked) + asked.mean(0))
  np.testing.assert_allclose(deaf.slope, 0, atol=1e-6)
  assert (deaf.error > 0.2).all()
  # What one objective does to the other is no control of it.
  mixed = goals.control(asked, asked @ np.array([[0.5, 2.0], [0.0, 1.0]]))
  np.testing.assert_allclose(mixed.slope, [0.5, 1.0], rtol=1e-4)


def test_aim_makes_up_for_who_goes_half_of_the_way():
  asked = np.random.default_rng(2).normal(size=(50, 2))
  half = lambda goal: 0.5 * goal + np.array([[0.1, -0.3]])
  aim = goals.aim(asked, half(asked))
  goal = np.array([[1.0, 2.0], [-3.0, 0.0]])
  one = np.ones((2, 1))
  np.testing.assert_allclose(
    half(np.hstack([goal, one]) @ aim), goal, atol=1e-5
  )


def test_every_achieved_cell_is_shown_as_often():
  region = np.concatenate([np.zeros((30, 2)), np.ones((3, 2))])
  weight = relabel.weights(region.astype(np.float32))
  np.testing.assert_allclose(weight[:30].sum(), 0.5, rtol=1e-5)
  np.testing.assert_allclose(weight[30:].sum(), 0.5, rtol=1e-5)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
  changes = toys.SESSIONS | {
    "world.num_train": 512,
    "goals.window": 3,
    "goals.behaviours": 32,
    "goals.users": 32,
    "rl_train.steps": 150,
    "rl_train.warmup_steps": 10,
    "rl_train.batch_size": 32,
    "rl_train.eval_every": 150,
    "rl_train.learning_rate": 6e-3,
  }
  config = toys.frozen(mocdt.get_config(""), changes)
  folder = tmp_path_factory.mktemp("mocdt")
  return session_pipeline.learn(toys.begun(config, folder))


def test_behaviours_that_lean_to_the_ranker_achieve_more(done):
  both = goals.Behaviour(jnp.array([1.5, -1.5]), jnp.array([0.0, 0.0]))
  reward = relabel.achieved(done, "train", both)[:, 0]
  assert reward[0] > reward[1] + 0.05


def test_the_policy_does_as_it_is_asked(done):
  """Diversity, after some seconds of learning: more where more is asked."""
  asked, achieved = control.played(done, 20)
  reached = achieved["as in training"]
  assert goals.control(asked, reached).slope[1] >= 0.15
  assert control.drawn(done, asked, reached).startswith(b"\x89PNG")


def test_heads_that_read_no_goal_are_refused():
  config = toys.frozen(mocdt.get_config(""), {"policy.head": "hpn"})
  with pytest.raises(ConfigError, match="hpn"):
    session_pipeline.check(config)


def test_a_goal_is_part_of_the_prompt(done):
  """Two goals, one request: other log-probs; without one, none."""
  params, policy = done.params["mocdt"]["policy"], done.policy
  request = session.example(done)
  root = lambda goal: (
    toys.prepare(
      policy, params, done.catalogue, request.replace(goal=goal)
    ).prompt.root
  )
  low, high = jnp.full((2, 2), -1.0), jnp.full((2, 2), 1.0)
  assert jnp.abs(root(low) - root(high)).max() > 1e-3
