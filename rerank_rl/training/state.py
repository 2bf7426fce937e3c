"""What a stage optimises, and how one gradient changes it."""

from collections.abc import Callable
import dataclasses
import functools
from typing import Any, TypeVar

from flax import struct
import jax
import jax.numpy as jnp
import optax

from rerank_rl.config import ConfigError, TrainConfig, check_bounds


@struct.dataclass
class TrainState:
  """A stage's learnt state; a pytree.

  Attributes:
    params: the parameters.
    opt_state: optax's state.
    step: i32[], calls of `apply_gradients` so far.
    ema: like params, their debiased exponential moving average.
  """

  params: Any
  opt_state: Any
  step: jax.Array
  ema: Any


State = TypeVar("State", bound=TrainState)


def check(config: TrainConfig, at: str) -> None:
  """Raises ConfigError for a TrainConfig, called `at`, that cannot be run."""
  check_bounds(config, at)
  if config.warmup_steps >= config.steps:
    raise ConfigError(
      f"{at}.warmup_steps={config.warmup_steps} must be below "
      f"steps={config.steps}; lower it or train longer."
    )


def longer(train: TrainConfig, updates: int) -> TrainConfig:
  """A schedule for steps that take several gradient steps each."""
  return dataclasses.replace(
    train,
    steps=train.steps * updates,
    warmup_steps=train.warmup_steps * updates,
  )


# Asked for again it is no other to jit.
@functools.cache
def optimizer(
  config: TrainConfig, parts: tuple[str, ...] = ()
) -> optax.GradientTransformation:
  """AdamW on clipped gradients, warm-up, then cosine decay to 10 %.

  Steps are batches: with `accumulate` = k, k batches make one update from
  their mean gradient, and the schedule is stretched to end with the last.
  Biases and scales (fewer than two dimensions) are not decayed, but for those
  of ensembles, which have a leading axis of members.

  Args:
    config: the stage's numbers; a caller that takes several gradient steps a
      batch passes its `steps` and `warmup_steps` times as large.
    parts: where parameters are a dict of models that learn side by side, its
      keys: no model's norm clips another's gradient.

  Returns:
    The transformation; its updates are to be added to the parameters.

  Raises:
    ConfigError: a value out of range.
  """
  check(config, "train")
  rate = optax.warmup_cosine_decay_schedule(
    init_value=0.0 if config.warmup_steps else config.learning_rate,
    peak_value=config.learning_rate,
    warmup_steps=config.warmup_steps // config.accumulate,
    decay_steps=-(-config.steps // config.accumulate),
    end_value=0.1 * config.learning_rate,
  )
  clip = optax.clip_by_global_norm(config.clip_norm)
  tx = optax.chain(
    # As one vector: a few kernels where a tree has hundreds.
    optax.flatten(optax.chain(clip, optax.scale_by_adam())),
    optax.add_decayed_weights(
      config.weight_decay,
      mask=lambda params: jax.tree.map(lambda x: x.ndim > 1, params),
    ),
    optax.scale_by_learning_rate(rate),
  )
  if parts:
    tx = optax.partition(dict.fromkeys(parts, tx), {k: k for k in parts})
  if config.accumulate > 1:
    tx = optax.MultiSteps(tx, config.accumulate).gradient_transformation()
  return tx


# A function bound to what is static, asked for again the same: of a new
# `functools.partial` jit would trace and compile all anew.
bound: Callable[..., Callable] = functools.cache(functools.partial)


def jit_once(function: Callable, **kwargs: Any) -> Callable:
  """`jax.jit` of what is called once or twice: soon compiled, the same bits.

  A network's first values are hundreds of small kernels, of random bits for the
  most part. XLA would take longer to optimise them than they ever run.

  Args:
    function: a pure function.
    **kwargs: see `jax.jit`.
  """
  quick = jax.config.read("jax_disable_most_optimizations")
  options = {"xla_backend_optimization_level": 0 if quick else 1}
  return jax.jit(function, compiler_options=options, **kwargs)


# One program, where an eager map would compile one for every shape.
copy = jax.jit(functools.partial(jax.tree.map, jnp.copy))


def create(params: Any, tx: optax.GradientTransformation) -> TrainState:
  """A state at step 0 that shares no memory with `params`.

  The loop donates its state, so what it gives away must be its own.
  """
  return TrainState(
    params=copy(params),
    opt_state=jax.jit(tx.init)(params),
    step=jnp.zeros((), jnp.int32),
    ema=copy(params),
  )


def apply_gradients(
  state: State,
  grads: Any,
  tx: optax.GradientTransformation,
  decay: float,
) -> State:
  """One gradient step, and the average follows.

  With n updates behind it, ema_n = ema_{n-1} + r_n (params_n - ema_{n-1}),
  r_n = (1 - decay) / (1 - decay^n): Adam's debiased average, so that early
  averages do not remember the initial parameters.

  Args:
    state: the state.
    grads: like `state.params`.
    tx: what `optimizer` returned.
    decay: the average's decay, in [0, 1); 0 = the parameters themselves.

  Returns:
    The next state. While gradients are being accumulated, parameters and
    average stay as they are.
  """
  updates, opt_state = tx.update(grads, state.opt_state, state.params)
  params = optax.apply_updates(state.params, updates)
  count, changed = state.step + 1, True
  if isinstance(opt_state, optax.MultiStepsState):
    count = opt_state.gradient_step
    changed = opt_state.mini_step == 0
  # expm1 keeps 1 - decay^n exact while n is small and decay is near 1.
  bias = -jnp.expm1(jnp.maximum(count, 1) * jnp.log(decay))
  rate = jnp.where(changed, (1 - decay) / bias, 0.0)
  ema = jax.tree.map(
    lambda old, new: (old + rate * (new - old)).astype(old.dtype),
    state.ema,
    params,
  )
  return dataclasses.replace(
    state, params=params, opt_state=opt_state, step=state.step + 1, ema=ema
  )


def step_on(
  state: TrainState,
  objective: Callable[[Any], tuple[jax.Array, jax.Array]],
  tx: optax.GradientTransformation,
  decay: float,
) -> tuple[TrainState, dict[str, Any]]:
  """One gradient step on a loss given as (sum, denominator).

  Args:
    state: the state.
    objective: parameters -> (sum, denominator).
    tx: what `optimizer` returned.
    decay: the average's, see `apply_gradients`.

  Returns:
    (the next state, figures for the loop).
  """

  def loss(params):
    total, count = objective(params)
    return total / jnp.maximum(count, 1), (total, count)

  grads, out = jax.grad(loss, has_aux=True)(state.params)
  return apply_gradients(state, grads, tx, decay), {"loss": out}
