"""Stage `ranker`: supervised rerankers, the rivals that emit no tokens."""

from collections.abc import Callable
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rerank_rl.config import Config, check_choice
from rerank_rl.models import rerankers
from rerank_rl.simulation.reward import label_gains
from rerank_rl.training import fitting
from rerank_rl.training import state as states
from rerank_rl.training.setting import (
  CHUNK,
  Setting,
  by_chunks,
  local,
  selection,
)
from rerank_rl.types import Array, Impression

STAGE = "ranker"
TRADES = (1.0, 0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5)  # MMR's, tuned on valid.


def check(config: Config) -> None:
  """Raises ConfigError: an unknown model, or numbers that cannot be run."""
  _queries(config.ranker.name, 1)
  states.check(config.sft, "config.sft")


def _queries(name: str, slots: int) -> int:
  """How many score rows a model has: one, or one a slot."""
  table = {"prm": 1, "nar4rec": slots}
  check_choice(name, table, "config.ranker.name")
  return table[name]


def shown_loss(logits: Array, batch: Impression, weights: Array):
  """BCE of each shown position's weighted feedback, brought to [0, 1].

  Args:
    logits: f32[B, J, N].
    batch: Impression.
    weights: f32[S], not all 0; signals of negative weight are bad news.

  Returns:
    (sum, count).
  """
  B, K = batch.slate.shape
  rows = jnp.broadcast_to(logits, (B, K, logits.shape[2]))
  index = jnp.maximum(batch.slate, 0)[..., None]
  x = jnp.take_along_axis(rows, index, axis=2)[..., 0]
  # 0 where all that is bad came and nothing good, 1 the other way round.
  share = (weights / jnp.abs(weights).sum()).astype(x.dtype)
  y = batch.feedback @ share - jnp.minimum(share, 0).sum()
  terms = optax.sigmoid_binary_cross_entropy(x, y)
  shown = batch.slate >= 0
  return jnp.sum(terms * shown), shown.sum()


def label_loss(logits: Array, batch: Impression, weights: Array):
  """BCE of every candidate's label; unlogged candidates are negatives.

  With a row of scores a slot, every slot sees every label: which slot an
  item takes is settled by the slots' own queries and by the order in which
  they are filled.
  """
  del weights
  y = label_gains(batch)[:, None]
  y = jnp.broadcast_to(y, logits.shape).astype(logits.dtype)
  terms = optax.sigmoid_binary_cross_entropy(logits, y)
  real = (batch.request.candidates >= 0)[:, None]
  real = jnp.broadcast_to(real, logits.shape)
  return jnp.sum(terms * real), real.sum()


LOSSES = {"value": shown_loss, "oracle": shown_loss, "recovery": label_loss}


def _step(model, tx, decay, loss_fn, catalogue, weights, state, batch, key):
  """One gradient step of a supervised reranker."""
  del key

  def objective(params):
    logits = model.train_logits(params, catalogue, batch.request)
    return loss_fn(logits, batch, weights)

  return states.step_on(state, objective, tx, decay)


def model_of(setting: Setting) -> rerankers.Reranker:
  """The configured network."""
  config = setting.config
  queries = _queries(config.ranker.name, setting.dataset.slate_size)
  return rerankers.make_reranker(config.policy, setting.sizes, queries)


def slates(setting: Setting) -> Callable:
  """(params, impressions, trade=None) -> slates i32[n, K].

  `trade` re-ranks by maximal marginal relevance.
  """
  slots, model = setting.dataset.slate_size, model_of(setting)

  @jax.jit
  def one(params, catalogue, request, trade):
    logits = model.logits(params, catalogue, request)
    if trade is None:
      return rerankers.assign(logits, request, slots)
    relevance = jax.nn.sigmoid(logits.mean(1))
    return rerankers.mmr(relevance, catalogue.features, request, slots, trade)

  def ranker(
    params: Any, impressions: Impression, trade: float | None = None
  ) -> np.ndarray:
    params = local(params)
    return by_chunks(
      lambda r: one(params, setting.catalogue, r, trade),
      CHUNK,
      impressions.request,
    )

  return ranker


def tuned_trade(setting: Setting, params: Any, rank: Callable) -> float:
  """MMR's trade-off that the selecting metric likes best on validation."""
  worth = {}
  for trade in TRADES:
    chosen = functools.partial(rank, trade=trade)
    evaluate, (metric, _) = selection(setting, chosen)
    worth[trade] = evaluate(params)[metric]
  return max(worth, key=worth.__getitem__)


def run(setting: Setting) -> Setting:
  """Learns, resumes or reloads the supervised reranker."""
  config = setting.config
  return fitting.run(
    setting,
    STAGE,
    config.name,
    _fit,
    setting.identity["tokenizer"],
    setting.identity.get("evaluators", ""),
    config.policy,
    config.ranker.name,
    config.sft,
    config.protocol,
  )


def _fit(setting: Setting) -> None:
  config = setting.config
  model = model_of(setting)
  train = setting.dataset.splits["train"]
  tx = states.optimizer(config.sft)
  example = jax.tree.map(lambda x: jnp.asarray(x[:2]), train.request)
  init = states.jit_once(model.init)
  params = init(setting.key(STAGE), setting.catalogue, example)
  one = states.bound(_step, model, tx, config.sft.ema, LOSSES[config.protocol])
  step = jax.tree_util.Partial(
    one, setting.catalogue, jnp.asarray(setting.weights)
  )
  batches = fitting.local_batches(setting, config.sft.batch_size, STAGE)
  watch = selection(setting, slates(setting))
  state = states.create(params, tx)
  fitting.fit(setting, STAGE, state, step, batches, config.sft, watch)
