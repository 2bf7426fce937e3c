"""What RL remembers of the slates it tried, to pay for new ones (i-MENTOR)."""

import dataclasses
from typing import Any

from flax import struct
import jax
import jax.numpy as jnp
import optax

from rerank_rl.config import ConfigError, RLConfig
from rerank_rl.decoding import tree as trees
from rerank_rl.models.novelty import Novelty
from rerank_rl.rl import bonus
from rerank_rl.rl.credit import Credit
from rerank_rl.training import state as states
from rerank_rl.training.setting import Setting
from rerank_rl.types import Array, Catalogue, Impression, Outcome, TokenTree

MODEL = Novelty()
TX = optax.adam(1e-3)

# (bonus f32[B, G], the rollouts that exist, key) -> what is paid; a control
# pays for nothing.
BONUS = {"novelty": lambda paid, found, key: paid, "noise": bonus.noise}

# They read advantages edge by edge, and a bonus stands on one edge.
OBJECTIVES = ("clipped", "reinforce")


def check(config: RLConfig) -> None:
  """Raises ConfigError: an unknown bonus, or an objective that loses it."""
  if config.bonus not in ("", *BONUS):
    raise ConfigError(
      f"config.rl.bonus={config.bonus!r}; choose from {', '.join(BONUS)}, or "
      "leave it empty."
    )
  if config.bonus and config.objective not in OBJECTIVES:
    raise ConfigError(
      f"config.rl.bonus={config.bonus!r} would be lost on config.rl.objective="
      f"{config.objective!r}; use {' or '.join(OBJECTIVES)}."
    )


@struct.dataclass
class CuriousState(states.TrainState):
  """A policy's state with its predictor's, saved and resumed as one.

  Attributes:
    target: parameters that stay random.
    predictor: TrainState that learns to tell what they say.
  """

  target: Any
  predictor: states.TrainState


def attach(setting: Setting, state: states.TrainState) -> CuriousState:
  """The state with a fresh target and predictor."""
  train = setting.dataset.splits["train"]
  request, slate = jax.tree.map(lambda x: x[:1], (train.request, train.slate))
  init = states.jit_once(MODEL.init)
  keys = jax.random.split(setting.key("novelty"))
  target, start = (
    init(key, setting.catalogue.features, request, slate[:, None])
    for key in keys
  )
  return CuriousState(
    state.params,
    state.opt_state,
    state.step,
    state.ema,
    target,
    states.create(start, TX),
  )


def explore(
  config: RLConfig,
  catalogue: Catalogue,
  state: CuriousState,
  batch: Impression,
  tree: TokenTree,
  outcome: Outcome,
  key: Array,
) -> tuple[CuriousState, Credit, dict[str, Any]]:
  """The bonus of a batch's rollouts; then the predictor learns them.

  Args:
    config: names the bonus.
    catalogue: the Catalogue.
    state: before the policy's gradient steps.
    batch: what was rolled out.
    tree: the rollouts.
    outcome: what they were worth.
    key: PRNG key, for the control.

  Returns:
    (state with the predictor one step on, Credit to add, metrics as
    (sum, count)).
  """
  features, request = catalogue.features, batch.request
  read = lambda p: jnp.asarray(MODEL.apply(p, features, request, tree.slate))
  target = read(state.target)
  found = trees.found(tree)
  count = found.sum()

  def loss(params):
    error = jnp.square(read(params) - target).mean(-1)
    error = jnp.where(found, error, 0)
    return error.sum() / jnp.maximum(count, 1), error

  grads, error = jax.grad(loss, has_aux=True)(state.predictor.params)
  batches = state.step // config.epochs
  paid = BONUS[config.bonus](bonus.scaled(error, found, batches), found, key)
  earns = bonus.unsuccessful(tree, outcome.reward)
  metrics = {
    "novelty_error": (error.sum(), count),
    "bonus": ((paid * earns).sum(), count),
    "unsuccessful": (earns.sum(), count),
  }
  predictor = states.apply_gradients(state.predictor, grads, TX, 0.0)
  state = dataclasses.replace(state, predictor=predictor)
  return state, bonus.given(tree, outcome, paid), metrics
