"""Stage `evaluators`: list evaluators A, S and B on thirds of the log.

A rewards, S selects, B only reports. They share no training row, no seed and
not quite an architecture. Each is stopped by the log-loss of rows held out of
its own third and then calibrated on them.
"""

from collections.abc import Callable
import dataclasses
import functools
import math
from typing import Any

from absl import logging
import jax
import jax.numpy as jnp
import numpy as np
import optax

from rerank_rl.config import EvaluatorConfig, TrainConfig, fingerprint
from rerank_rl.data import pipeline, schema
from rerank_rl.models import evaluator as evaluators
from rerank_rl.training import loop
from rerank_rl.training import state as states
from rerank_rl.training.checkpoint import load_artifact
from rerank_rl.training.setting import (
  CHUNK,
  Judge,
  Setting,
  by_chunks,
  keep,
  local,
  ready,
)

STAGE = "evaluators"
HELD_OUT = 20  # One row in so many stops and calibrates.

# Who differs how: relative width, heads of similarity, rank of the user fit,
# and whether feedback is factored into examination and click.
KINDS = {
  "a": {"width": 1.0, "heads": 8, "rank": 16, "cascade": True},
  "s": {"width": 0.75, "heads": 6, "rank": 12, "cascade": True},
  "b": {"width": 1.25, "heads": 4, "rank": 20, "cascade": False},
}


def model_of(setting: Setting, name: str) -> evaluators.ListEvaluator:
  """The network of evaluator "a", "s" or "b"."""
  config, kind = setting.config.evaluators, KINDS[name]
  heads = kind["heads"]
  width = heads * max(1, round(config.dim * kind["width"] / heads))
  return evaluators.ListEvaluator(
    slots=setting.dataset.slate_size,
    signals=len(setting.dataset.signals),
    dim=width,
    rank=kind["rank"],
    heads=heads,
    cascade=kind["cascade"],
    dropout=config.dropout,
  )


def third(setting: Setting, name: str) -> tuple[Any, Any]:
  """(training rows, held-out rows) of one evaluator; all disjoint."""
  train = setting.dataset.splits["train"]
  rows = np.arange(schema.num_rows(train))
  own = rows[rows % len(KINDS) == list(KINDS).index(name)]
  held = np.arange(own.size) % HELD_OUT == HELD_OUT - 1
  if own.size < 2 * HELD_OUT:
    raise ValueError(
      f"evaluator {name.upper()} gets {own.size} of {rows.size} training "
      f"rows; it needs at least {2 * HELD_OUT}."
    )
  return schema.take(train, own[~held]), schema.take(train, own[held])


def train_config(config: EvaluatorConfig, rows: int) -> TrainConfig:
  """Epochs as steps, an evaluation each."""
  epoch = math.ceil(rows / config.batch_size)
  return TrainConfig(
    steps=epoch * config.max_epochs,
    batch_size=config.batch_size,
    learning_rate=config.learning_rate,
    warmup_steps=min(100, epoch // 2),
    weight_decay=config.weight_decay,
    ema=0.99,
    eval_every=epoch,
    checkpoint_every=epoch,
    patience=config.patience,
  )


def _step(model, tx, decay, features, state, batch, key):
  """Binary cross-entropy of every shown position's signals."""

  def loss(params):
    total, count = evaluators.loss(model, params, features, batch, key)
    return total / jnp.maximum(count, 1), (total, count)

  grads, out = jax.grad(loss, has_aux=True)(state.params)
  return states.apply_gradients(state, grads, tx, decay), {"loss": out}


def log_loss(model, features) -> Callable[[Any, Any], float]:
  """(params, impressions) -> mean held-out log-loss of a signal."""
  part = jax.jit(
    lambda p, f, x: jax.vmap(
      lambda row: jnp.stack(
        evaluators.loss(model, p, f, jax.tree.map(lambda v: v[None], row))
      )
    )(x)
  )

  def mean(params, impressions) -> float:
    sums = by_chunks(lambda x: part(params, features, x), CHUNK, impressions)
    return float(sums[:, 0].sum() / sums[:, 1].sum())

  return mean


def calibrate(logits: np.ndarray, impressions) -> tuple[Any, Any]:
  """Per-signal scale and shift of logits that minimise the log-loss.

  Args:
    logits: f32[n, K, S], uncalibrated.
    impressions: whose slates and feedback they are for.

  Returns:
    (scale f32[S], shift f32[S]).
  """
  shown = jnp.asarray(impressions.slate >= 0)[..., None]
  x, y = jnp.asarray(logits), jnp.asarray(impressions.feedback)

  def loss(pair):
    scale, shift = (v[None, None] for v in pair)
    terms = optax.sigmoid_binary_cross_entropy(x * scale + shift, y)
    prior = ((pair[0] - 1) ** 2).sum() + (pair[1] ** 2).sum()
    return jnp.sum(terms * shown) / shown.sum() + 1e-4 * prior

  solver = optax.lbfgs()
  ones = jnp.ones((logits.shape[-1],), x.dtype)
  value_and_grad = optax.value_and_grad_from_state(loss)

  def one(carry, _):
    pair, state = carry
    value, grad = value_and_grad(pair, state=state)
    updates, state = solver.update(
      grad, state, pair, value=value, grad=grad, value_fn=loss
    )
    return (optax.apply_updates(pair, updates), state), None

  start = (ones, 0 * ones)
  solve = jax.jit(
    lambda p: jax.lax.scan(one, (p, solver.init(p)), None, length=30)
  )
  return solve(start)[0][0]


def fit(setting: Setting, name: str) -> evaluators.Fitted:
  """Fits, stops and calibrates one evaluator."""
  config, model = setting.config.evaluators, model_of(setting, name)
  train, held = third(setting, name)
  numbers = train_config(config, schema.num_rows(train))
  features = setting.catalogue.features
  key = setting.key(f"{STAGE}/{name}")
  example = jax.tree.map(lambda x: jnp.asarray(x[:2]), train.request)
  start = jax.jit(
    functools.partial(evaluators.init, model, members=config.members)
  )
  fresh = start(key, features, example)
  tx = states.optimizer(numbers)
  loss = log_loss(model, features)
  out = loop.fit(
    states.create(fresh.params, tx),
    jax.tree_util.Partial(
      functools.partial(_step, model, tx, numbers.ema), features
    ),
    pipeline.batches(
      train,
      numbers.batch_size,
      setting.config.seed,
      jax.process_index(),
      jax.process_count(),
    ),
    numbers,
    key,
    folder=setting.folder(STAGE) / name,
    title=f"evaluator {name.upper()}",
    evaluate=lambda params: {"log_loss": loss(local(params), held)},
    select=("log_loss", False),
    mesh=setting.mesh,
  )
  fitted = fresh.replace(params=local(out.best_params))
  predict = jax.jit(functools.partial(evaluators.predict, model))
  logits = by_chunks(
    lambda x: predict(fitted, features, x.request, x.slate[:, None])[:, 0],
    CHUNK,
    held,
  )
  scale, shift = calibrate(logits, held)
  logging.info("evaluator %s: scale %s, shift %s.", name, scale, shift)
  return fitted.replace(scale=scale, shift=shift)


def run(setting: Setting) -> Setting:
  """Fits or reloads A, S and B.

  Returns:
    With `judges`.
  """
  config = setting.config.evaluators
  setting = setting.identified(
    STAGE, setting.identity["data"], config, fingerprint(KINDS)
  )
  models = {name: model_of(setting, name) for name in KINDS}
  if not ready(setting, STAGE):
    fitted = {name: fit(setting, name) for name in KINDS}
    plain = {
      name: {"params": f.params, "scale": f.scale, "shift": f.shift}
      for name, f in fitted.items()
    }
    keep(setting, STAGE, plain)
  tree, _ = load_artifact(setting.folder(STAGE))
  judges = {
    name: Judge(
      models[name],
      evaluators.Fitted(**jax.tree.map(jnp.asarray, tree[name])),
    )
    for name in KINDS
  }
  return dataclasses.replace(setting, judges=judges)
