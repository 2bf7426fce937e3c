"""Stage `evaluators`: list evaluators A, S and B on thirds of the log.

A rewards, S selects, B only reports. They share no training row and no seed,
and the judge B is another network than A and S. Each is stopped by the
log-loss of rows held out of its own third and then calibrated on them.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import math
from typing import Any

from absl import logging
import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
import scipy.special

from rerank_rl.config import EvaluatorConfig, TrainConfig, fingerprint
from rerank_rl.data import pipeline, schema
from rerank_rl.models import ensemble
from rerank_rl.models import evaluator as evaluators
from rerank_rl.models.response import ResponseModel
from rerank_rl.training import loop
from rerank_rl.training import state as states
from rerank_rl.training.checkpoint import load_artifact
from rerank_rl.training.setting import (
  CHUNK,
  AnyRun,
  Judge,
  Run,
  Setting,
  by_chunks,
  keep,
  local,
  ready,
)
from rerank_rl.types import Impression

STAGE = "evaluators"
Network = evaluators.ListEvaluator | ResponseModel
HELD_OUT = 20  # One row in so many stops and calibrates.

# Who differs how: relative width, heads of similarity, rank of the user fit,
# and whether feedback is factored into examination and click.
KINDS = {
  "a": {"width": 1.0, "heads": 8, "rank": 16, "cascade": True},
  "s": {"width": 1.0, "heads": 8, "rank": 16, "cascade": True},
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
  """(training rows, held-out rows) of one evaluator; all disjoint.

  B is no part of what `config.data.feedback` controls: it reports.
  """
  train = setting.dataset.splits["train"] if name != "b" else setting.logged
  rows = np.arange(schema.num_rows(train))
  own = rows[rows % len(KINDS) == list(KINDS).index(name)]
  return parted(schema.take(train, own), f"evaluator {name.upper()}")


def parted(rows: Impression, name: str) -> tuple[Impression, Impression]:
  """(training rows, held-out rows) of what `name` may see.

  Raises:
    ValueError: there are too few.
  """
  count = schema.num_rows(rows)
  if count < 2 * HELD_OUT:
    raise ValueError(
      f"{name} gets {count} training rows; it needs at least {2 * HELD_OUT}; "
      "give a longer log, or more of it by config.data.max_rows."
    )
  held = np.arange(count) % HELD_OUT == HELD_OUT - 1
  return schema.take(rows, ~held), schema.take(rows, held)


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


def step(model: Network, tx, decay: float, features, state, batch, key):
  """One gradient step on the network's penalty: (state, metrics)."""

  def objective(params):
    return ensemble.loss(model, params, features, batch, key)

  return states.step_on(state, objective, tx, decay)


def predict(model, fitted, features, impressions) -> np.ndarray:
  """Calibrated logits f32[n, K, S] of the slates that were shown."""
  return by_chunks(
    lambda x: ensemble.predict(
      model, fitted, features, x.request, x.slate[:, None]
    ),
    CHUNK,
    impressions,
  )[:, 0]


def calibrate(logits: np.ndarray, impressions) -> tuple[Any, Any]:
  """Per-signal scale and shift of logits that minimise the log-loss.

  Args:
    logits: f32[n, K, S], uncalibrated.
    impressions: whose slates and feedback they are for.

  Returns:
    (scale f32[S], shift f32[S]).
  """
  shown = impressions.slate >= 0
  pairs = [
    _calibrate(
      logits[shown][:, i].astype(np.float64), impressions.feedback[shown][:, i]
    )
    for i in range(logits.shape[-1])
  ]
  scale, shift = np.array(pairs, np.float32).T
  return jnp.asarray(scale), jnp.asarray(shift)


def _calibrate(x: np.ndarray, y: np.ndarray) -> np.ndarray:
  """(scale, shift) for one signal's logits f64[m], near (1, 0)."""
  prior = np.array([1.0, 0.0])

  def loss(pair):
    z = x * pair[0] + pair[1]
    value = np.mean(np.logaddexp(0, z) - y * z)
    slope = scipy.special.expit(z) - y
    grad = np.array([np.mean(slope * x), np.mean(slope)])
    far = pair - prior
    return value + 1e-4 * (far @ far), grad + 2e-4 * far

  return scipy.optimize.minimize(loss, prior, jac=True).x


def _warn(title: str, signals: Sequence[str], scale: np.ndarray) -> None:
  """Says of which signals a network has learnt nothing that holds."""
  for signal, factor in zip(signals, scale, strict=True):
    if factor <= 0:
      logging.warning(
        "%s: where it expects more of %r, held-out rows have no more of it "
        "(scale %.3g); expect nothing of what learns from it, and look at the "
        "log or give it more rows.",
        title,
        signal,
        factor,
      )


def log_loss(logits: np.ndarray, impressions) -> float:
  """Mean log-loss of a signal at a shown position; logits f32[n, K, S]."""
  shown = impressions.slate >= 0
  x, y = logits[shown].astype(np.float64), impressions.feedback[shown]
  return float(np.mean(np.logaddexp(0, x) - y * x))


def _fit(
  setting: Run,
  stage: str,
  name: str,
  model: Network,
  rows: tuple[Impression, Impression],
  config: EvaluatorConfig,
) -> ensemble.Fitted:
  """Fits a network to the first rows and stops it by the others' log-loss."""
  train, held = rows
  numbers = train_config(config, schema.num_rows(train))
  features = setting.catalogue.features
  key = setting.key(f"{stage}/{name}")
  example = jax.tree.map(lambda x: jnp.asarray(x[:2]), train.request)
  init = states.jit_once(ensemble.init, static_argnums=(0, 4))
  fresh = init(model, key, features, example, config.members)
  tx = states.optimizer(numbers)

  def shown(params):
    fitted = fresh.replace(params=local(params))
    return predict(model, fitted, features, held)

  out = loop.fit(
    states.create(fresh.params, tx),
    jax.tree_util.Partial(states.bound(step, model, tx, numbers.ema), features),
    pipeline.batches(
      train,
      numbers.batch_size,
      setting.config.seed,
      jax.process_index(),
      jax.process_count(),
    ),
    numbers,
    key,
    folder=setting.folder(stage) / name,
    title=f"{stage} {name.upper()}",
    evaluate=lambda params: {"log_loss": log_loss(shown(params), held)},
    select=("log_loss", False),
    mesh=setting.mesh,
  )
  return ensemble.Fitted(local(out.best_params), fresh.scale, fresh.shift)


def learnt(
  setting: AnyRun,
  stage: str,
  models: Mapping[str, Network],
  rows: Callable[[str], tuple[Impression, Impression]],
  config: EvaluatorConfig,
  *facts: Any,
  calibrated: bool = True,
) -> AnyRun:
  """Fits or reloads a stage's networks, which then are among the judges.

  Args:
    setting: with data.
    stage: whose folder gets the checkpoints, under the networks' names.
    models: networks by name, which also seeds them; they say what is minimised.
    rows: (name) -> (training rows, held-out rows).
    config: how they are fitted.
    *facts: what else the stage hangs on.
    calibrated: on the held-out rows; else scale 1 and shift 0.

  Returns:
    With `judges` of these names.
  """
  setting = setting.identified(stage, setting.identity["data"], config, *facts)
  if not ready(setting, stage):
    tree = {}
    for name, model in models.items():
      own = rows(name)
      fitted = _fit(setting, stage, name, model, own, config)
      if calibrated:
        _, held = own
        said = predict(model, fitted, setting.catalogue.features, held)
        scale, shift = calibrate(said, held)
        logging.info("%s %s: scale %s, shift %s.", stage, name, scale, shift)
        # In numpy: each entry of a jax.Array is a program to compile.
        _warn(f"{stage} {name}", setting.dataset.signals, np.asarray(scale))
        fitted = ensemble.Fitted(fitted.params, scale, shift)
      tree[name] = {
        "params": fitted.params,
        "scale": fitted.scale,
        "shift": fitted.shift,
      }
    keep(setting, stage, tree)
  tree, _ = load_artifact(setting.folder(stage))
  judges = {
    name: Judge(model, ensemble.Fitted(**jax.tree.map(jnp.asarray, tree[name])))
    for name, model in models.items()
  }
  return dataclasses.replace(setting, judges={**setting.judges, **judges})


def run(setting: Setting) -> Setting:
  """Fits or reloads A, S and B.

  Returns:
    With `judges`.
  """
  models = {name: model_of(setting, name) for name in KINDS}
  rows = functools.partial(third, setting)
  config = setting.config.evaluators
  return learnt(setting, STAGE, models, rows, config, fingerprint(KINDS))


def uncalibrated(
  setting: Setting, stage: str, model: evaluators.ListEvaluator
) -> Setting:
  """Fits or reloads one more evaluator, on evaluator A's rows.

  Args:
    setting: with data.
    stage: whose folder it gets, and its name among the judges.
    model: the network.

  Returns:
    With `judges[stage]`.
  """
  rows = lambda name: third(setting, "a")
  config = setting.config.evaluators
  return learnt(setting, stage, {stage: model}, rows, config, calibrated=False)
