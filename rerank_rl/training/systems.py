"""Every system that a report compares: (setting) -> its slates on a split."""

from collections.abc import Callable, Mapping
from concurrent import futures
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rerank_rl.data import pointwise, schema
from rerank_rl.decoding import sample
from rerank_rl.evaluation import judge as judges
from rerank_rl.training.checkpoint import load_artifact
from rerank_rl.training.setting import (
  CHUNK,
  Setting,
  by_chunks,
  greedy_ranker,
  keep,
  local,
  ready,
)
from rerank_rl.training.stages import ranker as ranker_stage
from rerank_rl.training.stages import sft
from rerank_rl.types import PAD, Impression
from rerank_rl.world import bayes, utility
from rerank_rl.world.world import World

BEAM = 8  # Width of beam_on_a.
BEST_OF = 16

Slates = Mapping[str, np.ndarray]


def by_score(
  scores: np.ndarray, impressions: Impression, slots: int
) -> np.ndarray:
  """Slates of the highest scores f32[n, N]: i32[n, K]; ties to the first."""
  real = impressions.request.candidates != PAD
  order = np.argsort(-np.where(real, scores, -np.inf), axis=1, kind="stable")
  slate = order[:, :slots].astype(np.int32)
  counts = np.minimum(real.sum(1), impressions.request.size)
  return np.where(np.arange(slots)[None] < counts[:, None], slate, PAD)


def popularity(setting: Setting) -> np.ndarray:
  """How often training showed each item, f64[M]."""
  train = setting.dataset.splits["train"]
  shown = np.take_along_axis(
    train.request.candidates, np.maximum(train.slate, 0), axis=1
  )
  shown = shown[train.slate != PAD]
  return np.bincount(shown, minlength=len(setting.dataset.item_ids)) * 1.0


def simple(setting: Setting, impressions: Impression) -> Slates:
  """The ranker's order and popularity; on real data, leak controls too.

  Those are both orders reversed, which would recover more than chance if
  candidates were drawn by what they are scored, and a logistic regression on
  score and popularity, which is as well as a rival does that knows no item.
  """
  slots = setting.dataset.slate_size
  request = impressions.request
  popular = popularity(setting)[np.maximum(request.candidates, 0)]
  out = {
    "ranker_order": by_score(request.scores, impressions, slots),
    "popularity": by_score(popular, impressions, slots),
  }
  if setting.world is None:
    out["ranker_reversed"] = by_score(-request.scores, impressions, slots)
    out["popularity_reversed"] = by_score(-popular, impressions, slots)
    logits = _logistic(setting, request.scores, popular)
    out["score_popularity_logistic"] = by_score(logits, impressions, slots)
  return out


def _logistic(
  setting: Setting, scores: np.ndarray, popular: np.ndarray
) -> np.ndarray:
  """Logits f64[n, N] of a click from score and log popularity alone."""
  train = setting.dataset.splits["train"]
  count = schema.num_rows(train)
  # A sample fits three numbers as well as all rows do.
  train = schema.take(train, np.arange(0, count, max(1, count // 10_000)))
  request = train.request
  real = request.candidates != PAD
  known = popularity(setting)[np.maximum(request.candidates, 0)]
  rows, slots = np.nonzero(train.slate != PAD)
  known[rows, train.slate[rows, slots]] -= 1  # The row's own slate.
  weights = pointwise.fit_logistic(
    np.stack([request.scores[real], np.log1p(known[real])], 1),
    judges.logged_relevance(train)[real],
  )
  return scores * weights[0] + np.log1p(popular) * weights[1]


def beam_on_a(
  setting: Setting, impressions: Impression, width: int = BEAM
) -> np.ndarray:
  """Beam search on evaluator A itself: is RL more than amortised search?"""
  one = setting.judges["a"]
  width = min(width, impressions.request.candidates.shape[1])

  @jax.jit
  def best(fitted, features, weights, request):
    found = sft.search_slates(
      one.model, fitted, features, weights, request, width
    )
    return found[:, 0]

  weights = jnp.asarray(setting.weights)
  features = setting.catalogue.features
  return by_chunks(
    lambda r: best(one.fitted, features, weights, r),
    CHUNK // 2,
    impressions.request,
  )


def best_of(
  setting: Setting, params: Any, impressions: Impression
) -> np.ndarray:
  """The best of 16 samples by evaluator A."""
  policy = setting.policy
  explore = lambda p, game, key: sample.chains(policy, p, game, key, BEST_OF)
  key = setting.key("best_of")
  return best_leaf(setting, params, impressions, explore, key, CHUNK // 2)


def best_leaf(
  setting: Setting,
  params: Any,
  impressions: Impression,
  explore: Callable,
  key: jax.Array,
  chunk: int,
) -> np.ndarray:
  """The leaf of each request's tree that evaluator A likes best.

  Args:
    setting: after `evaluators`.
    params: of the policy.
    impressions: n requests.
    explore: (params, game, key) -> TokenTree.
    key: PRNG key, the same for each chunk.
    chunk: requests at a time.

  Returns:
    i32[n, K], positions; leaves that do not exist are not chosen.
  """
  policy, reward = setting.policy, setting.judged_by("a")

  @jax.jit
  def best(params, catalogue, reward, batch, key):
    game = sample.prepare(policy, params, catalogue, batch.request)
    slate = explore(params, game, key).slate
    worth = reward(batch, slate).reward
    worth = jnp.where((slate != PAD).any(-1), worth, -jnp.inf)
    index = jnp.argmax(worth, axis=1)
    return jnp.take_along_axis(slate, index[:, None, None], axis=1)[:, 0]

  params = local(params)
  return by_chunks(
    lambda x: best(params, setting.catalogue, reward, x, key),
    chunk,
    impressions,
  )


def bounds(
  setting: Setting, world: World, making: futures.Future | None = None
) -> Slates:
  """What the world knows: Bayes-optimal rules and the optimum, on test.

  They depend on the world alone, cost minutes, and are therefore kept.

  Args:
    setting: the run.
    world: its world.
    making: what `begin_bounds` began.
  """
  setting = _bounded(setting)
  if not ready(setting, "bounds"):
    make = making.result if making else _bounds_of_test(setting, world)
    keep(setting, "bounds", make())
  return load_artifact(setting.folder("bounds"))[0]


def begin_bounds(setting: Setting, world: World) -> futures.Future | None:
  """Makes `bounds` in a thread; None where they are kept.

  Who asks for them saves them: Orbax mixes up what two threads save at a time.
  """
  if ready(_bounded(setting), "bounds"):
    return None
  make = _bounds_of_test(setting, world)
  return futures.ThreadPoolExecutor(1).submit(make)


def _bounded(setting: Setting) -> Setting:
  return setting.identified("bounds", setting.identity["data"])


def _bounds_of_test(setting: Setting, world: World) -> Callable[[], Slates]:
  test = setting.dataset.splits["test"]
  return lambda: bounds_of(world, setting.config.seed, test)


def bounds_of(world: World, seed: int, impressions: Impression) -> Slates:
  """`bounds` of any impressions, made anew."""
  key = jax.random.key(seed)
  request = impressions.request
  return {
    **bayes.slates(world, request, key),
    "optimum": utility.optimum(world, impressions.hidden, request.candidates),
  }


def learnt(setting: Setting, impressions: Impression) -> dict[str, Callable]:
  """system -> () -> slates, for every system with parameters."""
  out: dict[str, Callable] = {}
  config = setting.config
  for name, params in setting.params.items():
    if "ranker" in config.stages and name == config.name:
      rank = ranker_stage.slates(setting)
      if config.ranker.mmr:
        trade = ranker_stage.tuned_trade(setting, params, rank)
        rank = functools.partial(rank, trade=trade)
    else:
      rank = greedy_ranker(setting)
    out[name] = lambda rank=rank, params=params: rank(params, impressions)
  first = setting.params.get(config.sft_name)
  if first is not None and "a" in setting.judges:
    out["sft_best16"] = lambda: best_of(setting, first, impressions)
  return out
