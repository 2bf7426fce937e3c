"""i-MENTOR in the RL step: paid where credit is silent, saved as one state."""

import functools
import types as stdlib

import jax
import jax.numpy as jnp
import numpy as np

from rerank_rl.config import RLConfig, TrainConfig
from rerank_rl.decoding import tree
from rerank_rl.models.novelty import Novelty
from rerank_rl.training import checkpoint, curiosity
from rerank_rl.training import state as states
from rerank_rl.training.stages import rl
from rerank_rl.types import PAD, Impression, Outcome
from tests import toys

TRAIN = TrainConfig(
  learning_rate=0.01, warmup_steps=0, weight_decay=0.0, ema=0.9
)
TX = states.optimizer(TRAIN)


def _batch(seed=0):
  request = toys.request(seed)
  B, K = request.candidates.shape[0], toys.SIZES.slots
  nothing = np.zeros((B, K), np.int32)
  return Impression(
    request, nothing, nothing[..., None] * 1.0, nothing * 1.0, np.zeros((B, 0))
  )


def _failure(impression, slate):
  reward = jnp.zeros(slate.shape[:2])
  return Outcome(reward, jnp.zeros(slate.shape), reward)


def _state():
  setting = stdlib.SimpleNamespace(
    dataset=stdlib.SimpleNamespace(splits={"train": _batch()}),
    catalogue=toys.catalogue(),
    key=lambda name: jax.random.key(5),
  )
  params = {"policy": toys.policy("global")[1]}
  return curiosity.attach(setting, states.create(params, TX))


@functools.cache
def _step():
  policy, params = toys.policy("global")
  config = RLConfig(
    group=8, credit="group", bonus="novelty", kl=0.0, entropy=0.0
  )
  step = functools.partial(
    rl.step, rl.Method(policy, config, TX, TRAIN.ema, 0.9)
  )

  @jax.jit
  def advance(state, number):
    key = jax.random.fold_in(jax.random.key(1), number)
    return step(toys.catalogue(), _failure, params, state, _batch(), key)

  return advance


def _moved(one, two):
  pairs = zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True)
  return max(float(np.abs(a - b).max()) for a, b in pairs)


def test_a_bonus_moves_the_policy_off_failures():
  # Neither rewards nor KL nor entropy pull: the bonus alone does.
  state = _state()
  after, metrics = _step()(state, 0)
  assert _moved(state.params, after.params) > 1e-4
  # What rewards say is counted as without it.
  assert metrics["zero_variance_groups"][0] == 4
  assert metrics["unsuccessful"][0] == metrics["unsuccessful"][1] == 32
  assert _moved(state.predictor.params, after.predictor.params) > 0
  assert _moved(state.target, after.target) == 0


def test_the_control_pays_for_nothing():
  slate = jnp.asarray(np.tile(toys.every_slate()[:16], (4, 1, 1)))
  token = jnp.zeros((4, 16, 9), jnp.int32)
  minus = jnp.full(token.shape, -1.0)
  made = tree.from_chains(token, minus, minus, slate, minus, True)
  out = {}
  explore = jax.jit(curiosity.explore, static_argnums=0)
  for name in ("novelty", "noise"):
    _, given, metrics = explore(
      RLConfig(bonus=name),
      toys.catalogue(),
      _state(),
      _batch(),
      made,
      _failure(None, slate),
      jax.random.key(2),
    )
    out[name] = np.asarray(given.leaf)
    np.testing.assert_allclose(metrics["bonus"][0], given.leaf.sum(), rtol=1e-5)
  one, two = out["novelty"], out["noise"]
  assert one.min() == 0 and one.max() == 0.5
  assert abs(np.corrcoef(one.ravel(), two.ravel())[0, 1]) < 0.4
  np.testing.assert_allclose(two.mean(), one.mean(), atol=0.1)
  np.testing.assert_allclose(two.std(), one.std(), rtol=0.3)


def test_resumed_from_a_checkpoint_it_ends_with_the_same_bytes(tmp_path):
  step, state = _step(), _state()
  for number in range(2):
    state, _ = step(state, number)
  with checkpoint.Checkpoints(tmp_path / "one") as saved:
    saved.save(2, state, {})
    again, _ = saved.restore(_state())
  one, two = step(state, 2)[0], step(again, 2)[0]
  assert isinstance(again, curiosity.CuriousState)
  for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
    np.testing.assert_array_equal(a, b)


def test_what_was_tried_is_no_longer_new():
  model, request = Novelty(), toys.request()
  features = toys.catalogue().features
  random = np.random.default_rng(0)
  slates = np.array(
    [[random.permutation(5)[:3] for _ in range(40)] for _ in range(4)], np.int32
  )
  # Requests differ in how many candidates they have.
  slates = np.where(
    slates < (request.candidates >= 0).sum(1)[:, None, None], slates, PAD
  )
  keys = jax.random.split(jax.random.key(0))
  init = jax.jit(model.init)
  target, params = (init(k, features, request, slates) for k in keys)

  @jax.jit
  def error(params, slates):
    read = lambda p: model.apply(p, features, request, slates)
    return jnp.square(read(params) - read(target)).mean(-1)

  state = states.create(params, curiosity.TX)

  @jax.jit
  def learn(state):
    grads = jax.grad(lambda p: error(p, slates[:, :4]).mean())(state.params)
    return states.apply_gradients(state, grads, curiosity.TX, 0.0)

  before = error(state.params, slates)
  for _ in range(300):
    state = learn(state)
  after = error(state.params, slates)
  tried, others = after[:, :4].mean(), after[:, 4:].mean()
  assert tried < 0.1 * before[:, :4].mean()
  assert others > 2 * tried


def test_padding_is_not_read():
  model, request = Novelty(), toys.request()
  features = toys.catalogue().features
  slate = np.array([[[0, 1, PAD]]] * 4, np.int32)
  params = jax.jit(model.init)(jax.random.key(0), features, request, slate)
  # What stands behind PAD, the last row, may be anything.
  changed = features.at[-1].add(100.0)
  real = (np.asarray(request.candidates)[:, :2] != 19).all(1)
  real &= (np.asarray(request.history) != 19).all(1)
  read = jax.jit(lambda f: model.apply(params, f, request, slate))
  one, two = read(features), read(changed)
  assert real.any()
  np.testing.assert_array_equal(one[real], two[real])
