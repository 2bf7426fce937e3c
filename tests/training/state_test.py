import dataclasses
import itertools

import chex
from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rerank_rl.config import ConfigError, TrainConfig
from rerank_rl.training import state as state_lib

CONFIG = TrainConfig(steps=40, warmup_steps=8, weight_decay=0.1)


def params():
  return {"kernel": jnp.ones((2, 3)), "bias": jnp.arange(3.0)}


def walk(config, grads, tx=None):
  """All states of a walk along `grads`."""
  tx = tx or state_lib.optimizer(config)
  states = [state_lib.create(params(), tx)]
  step = jax.jit(lambda s, g: state_lib.apply_gradients(s, g, tx, config.ema))
  for grad in grads:
    states.append(step(states[-1], grad))
  return states


def noise(count):
  rng = np.random.default_rng(0)
  draw = lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype)
  return [jax.tree.map(draw, params()) for _ in range(count)]


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9999])
def test_average_is_the_debiased_mean_of_what_was(decay):
  config = dataclasses.replace(CONFIG, ema=decay, learning_rate=0.1)
  states = walk(config, noise(6))
  weights = np.asarray([decay ** (6 - i) for i in range(1, 7)])
  weights /= weights.sum()
  expected = sum(
    w * np.asarray(s.params["kernel"], np.float64)
    for w, s in zip(weights, states[1:])
  )
  np.testing.assert_allclose(states[-1].ema["kernel"], expected, rtol=1e-5)
  # The first average is the first parameters, not the initial ones.
  chex.assert_trees_all_close(states[1].ema, states[1].params, rtol=1e-6)


def test_accumulated_batches_equal_a_large_one():
  grads = noise(8)
  one = dataclasses.replace(CONFIG, steps=4, warmup_steps=0)
  many = dataclasses.replace(CONFIG, steps=8, warmup_steps=0, accumulate=2)
  pairs = zip(grads[::2], grads[1::2])
  means = [jax.tree.map(lambda a, b: (a + b) / 2, a, b) for a, b in pairs]
  large, small = walk(one, means), walk(many, grads)
  chex.assert_trees_all_close(large[-1].params, small[-1].params, rtol=1e-5)
  chex.assert_trees_all_close(large[-1].ema, small[-1].ema, rtol=1e-5)
  assert int(small[-1].step) == 8
  # Between updates nothing moves, the average included.
  chex.assert_trees_all_equal(small[2].params, small[3].params)
  chex.assert_trees_all_equal(small[2].ema, small[3].ema)


def test_schedule_warms_up_and_falls_to_a_tenth():
  # With unit gradients Adam's update is the learning rate itself.
  config = dataclasses.replace(CONFIG, weight_decay=0.0, learning_rate=0.01)
  unit = jax.tree.map(jnp.ones_like, params())
  states = walk(config, [unit] * 41)
  moved = [
    float(a.params["bias"][0] - b.params["bias"][0])
    for a, b in itertools.pairwise(states)
  ]
  assert moved[0] == 0
  assert np.argmax(moved) == 8 and moved[8] == pytest.approx(0.01, rel=1e-3)
  assert moved[40] == pytest.approx(0.001, rel=1e-2)
  assert all(np.diff(moved[:9]) > 0) and all(np.diff(moved[8:]) < 1e-8)


def test_only_matrices_decay():
  config = dataclasses.replace(CONFIG, warmup_steps=0, learning_rate=0.1)
  still = jax.tree.map(jnp.zeros_like, params())
  end = walk(config, [still])[-1].params
  assert (end["kernel"] < 1).all()
  np.testing.assert_array_equal(end["bias"], params()["bias"])


def test_large_gradients_are_clipped():
  # Descent without Adam's own scaling would show the norm; clip comes first.
  config = dataclasses.replace(CONFIG, warmup_steps=0, weight_decay=0.0)
  big = jax.tree.map(lambda x: 1e6 * jnp.ones_like(x), params())
  moments = walk(config, [big])[-1].opt_state
  mu = optax.tree.get(moments, "mu")
  assert float(optax.tree.norm(mu)) == pytest.approx(0.1, rel=1e-4)


def test_a_state_owns_its_memory():
  mine = params()
  state = state_lib.create(mine, state_lib.optimizer(CONFIG))
  jax.jit(lambda s: s, donate_argnums=0)(state)
  assert not any(x.is_deleted() for x in jax.tree.leaves(mine))


@pytest.mark.parametrize("wide", [False, True])
def test_types_are_kept(wide):
  with jax.enable_x64(wide):
    states = walk(CONFIG, noise(2))
    for tree in (states[-1].params, states[-1].ema):
      chex.assert_trees_all_equal_shapes_and_dtypes(tree, params())
    assert params()["bias"].dtype == (jnp.float64 if wide else jnp.float32)


@pytest.mark.parametrize(
  "name, value, words",
  [
    ("steps", 0, "train.steps=0 must be >= 1"),
    ("eval_every", 0, "eval_every=0"),
    ("accumulate", 0, "accumulate=0"),
    ("learning_rate", 0.0, "learning_rate=0.0 must be above 0"),
    ("clip_norm", float("nan"), "clip_norm=nan must be above 0"),
    ("weight_decay", -1.0, "weight_decay=-1.0"),
    ("ema", 1.0, "ema=1.0 must be >= 0"),
    ("warmup_steps", 40, "warmup_steps=40 must be below steps=40"),
  ],
)
def test_impossible_numbers_are_named(name, value, words):
  with pytest.raises(ConfigError, match=words):
    state_lib.optimizer(dataclasses.replace(CONFIG, **{name: value}))


def test_a_step_asked_for_again_is_no_other_to_jit():
  """Whose static parts are equal; another optimiser's is another."""
  traced = []

  def step(tx, state, grads):
    traced.append(None)
    return state_lib.apply_gradients(state, grads, tx, 0.5)

  (grads,) = noise(1)
  jitted = jax.jit(lambda own, *args: own(*args))
  for rate, times in ((0.1, 1), (0.1, 1), (0.2, 2)):
    tx = state_lib.optimizer(dataclasses.replace(CONFIG, learning_rate=rate))
    own = jax.tree_util.Partial(state_lib.bound(step, tx))
    jitted(own, state_lib.create(params(), tx), grads)
    assert len(traced) == times


def test_what_is_compiled_for_one_call_computes_the_same_bits():
  """As the program that XLA optimises, which no other test has."""
  module, x = nn.Dense(16), jnp.zeros((2, 8))
  jax.config.update("jax_disable_most_optimizations", False)
  try:
    soon, usual = (
      jitted(module.init)(jax.random.key(0), x)
      for jitted in (state_lib.jit_once, jax.jit)
    )
  finally:
    jax.config.update("jax_disable_most_optimizations", True)
  assert jnp.std(usual["params"]["kernel"]) > 0
  jax.tree.map(np.testing.assert_array_equal, soon, usual)
