"""Learning from replay: what was done lately is a part of the state."""

from collections.abc import Callable
import dataclasses
from typing import Any

from flax import struct
import jax

from rerank_rl.config import ReplayConfig
from rerank_rl.rl import offpolicy, replay
from rerank_rl.rl.replay import Ring
from rerank_rl.training import state as states
from rerank_rl.training.session_setting import SessionRun
from rerank_rl.types import Array


@struct.dataclass
class ReplayState(states.TrainState):
  """A learner's state with what it learns from, saved and resumed as one.

  Attributes:
    target: like params, following them slowly.
    ring: what was done in the latest steps.
  """

  target: Any
  ring: Any  # Ring, or () where it is not carried along.


def begin(
  setting: SessionRun, play: Callable, params: Any, tx: Any
) -> ReplayState:
  """The state at step 0: a target like the parameters, an empty ring.

  Args:
    setting: the run's.
    play: (params, catalogue, environment, start, key) -> a block of the ring.
    params: the learner's.
    tx: optimiser.
  """
  size = setting.config.rl_train.batch_size
  wide = lambda x: jax.ShapeDtypeStruct(
    (size, *x.shape[1:]), jax.dtypes.canonicalize_dtype(x.dtype)
  )
  start = jax.tree.map(wide, setting.dataset.splits["train"])
  block = jax.eval_shape(
    play,
    params,
    setting.catalogue,
    setting.environment("train"),
    start,
    jax.random.key(0),
  )
  state = states.create(params, tx)
  return ReplayState(
    state.params,
    state.opt_state,
    state.step,
    state.ema,
    states.copy(params),
    replay.empty(setting.config.replay.capacity, block),
  )


def step(
  config: ReplayConfig,
  update: Callable[[Ring, ReplayState, Array], tuple[ReplayState, dict]],
  state: ReplayState,
  seen: Any,
  key: Array,
) -> tuple[ReplayState, dict]:
  """Keeps what was done, then makes several updates; the target follows each.

  Args:
    config: how many, and how slowly it follows.
    update: (ring, state without it, key) -> (state, figures as (sum, count)).
    state: the state.
    seen: a block of the ring.
    key: PRNG key.

  Returns:
    (state, figures as (sum, count)).
  """
  ring = replay.push(state.ring, seen)

  def one(state, key):
    state, figures = update(ring, state, key)
    target = offpolicy.polyak(state.target, state.params, config.tau)
    return dataclasses.replace(state, target=target), figures

  # The ring is read, not carried: a loop would copy it.
  bare = dataclasses.replace(state, ring=())
  keys = jax.random.split(key, config.updates)
  state, figures = jax.lax.scan(one, bare, keys)
  summed = {k: (x[0].sum(), x[1].sum()) for k, x in figures.items()}
  return dataclasses.replace(state, ring=ring), summed
