"""Goals of sessions: what fixed behaviours achieve, and what may be asked.

A goal is the mean reward of a slate and the mean diversity of a slate, over
the next `goals.window` slates and over users. Shapes: P goals or behaviours.
"""

from collections.abc import Callable
import functools
from typing import Any, NamedTuple

from flax import struct
import jax
import jax.numpy as jnp
import numpy as np
import scipy.spatial

from rerank_rl.data import schema
from rerank_rl.evaluation import ranking
from rerank_rl.models import rerankers
from rerank_rl.simulation import session as simulation
from rerank_rl.training.session import SessionRun
from rerank_rl.training.setting import CHUNK, by_chunks, local
from rerank_rl.types import Array, Request

OBJECTIVES = ("slate_reward", "ild")
# The ranges of what behaviours are made of.
_LEAN, _VARY = (-1.0, 1.0), (-0.9, 2.0)

# (params, own f32[B, ...], request, key) -> slate i32[B, K].
Pursue = Callable[[Any, Any, Request, Array], Array]


class Behaviour(struct.PyTreeNode):
  """A fixed way to fill slates: MMR over noisy scores; f32[P] each.

  Attributes:
    lean: share of the ranker's scores in the relevance; the rest is noise.
    vary: relevance in [0, 1] less `vary` times the largest cosine to what is
      above decides; above 0 slates are diverse, below it their items alike.
  """

  lean: Array
  vary: Array


def behaviours(key: Array, count: int) -> Behaviour:
  """Draws `count` of them, uniformly."""
  lean, vary = jax.random.split(key)
  draw = lambda key, bounds: jax.random.uniform(
    key, (count,), minval=bounds[0], maxval=bounds[1]
  )
  return Behaviour(draw(lean, _LEAN), draw(vary, _VARY))


def behave(slots: int, features, own: Behaviour, request, key) -> Array:
  """The slates i32[B, K] of users who each meet a behaviour of their own."""
  lean = own.lean[:, None]
  noise = jax.random.normal(key, request.scores.shape)
  spread = jnp.maximum(request.scores.std(1, keepdims=True), 1e-6)
  score = request.scores / spread
  relevance = lean * score + jnp.sqrt(1 - lean**2) * noise
  trade = 1 / (1 + own.vary[:, None])
  return rerankers.mmr(relevance, features, request, slots, trade)


# Jitted once a module, or every evaluation would compile anew.
@functools.partial(jax.jit, static_argnums=0)
def _achieved(window, act, params, features, environment, start, own, key):
  def play(request, key):
    slate = act(params, own, request, key)
    rows = jnp.take_along_axis(request.candidates, slate, axis=1)
    shown = features[jnp.maximum(rows, 0)]
    return slate, ranking.ild(shown, slate >= 0)

  out = simulation.play(environment, play, start, key, window)
  here = simulation.met(out.left)
  both = jnp.stack([out.per_item.sum(-1), out.record], axis=-1)
  total = jnp.where(here[..., None], both, 0).sum(0)
  return total / here.sum(0)[:, None]


def measure(
  setting: SessionRun,
  split: str,
  act: Pursue,
  params: Any,
  own: Any,
  users: int,
  environment: simulation.Environment | None = None,
) -> np.ndarray:
  """What each of P behaviours or goals achieves, f32[P, 2] (OBJECTIVES).

  Args:
    setting: with semantic IDs.
    split: whose users are met.
    act: the system, a pytree.
    params: its parameters.
    own: pytree of [P, ...]: what it is asked for.
    users: of the split, evenly spaced; each meets every one of the P.
    environment: how they behave; None = the split's.
  """
  starts = setting.dataset.splits[split]
  count = schema.num_rows(starts)
  few = np.linspace(0, count - 1, min(users, count)).astype(np.int64)
  own = jax.tree.map(np.asarray, own)
  P = schema.num_rows(own)
  key = setting.key("goals/" + split)
  environment = environment or setting.environment(split)
  params, features = local(params), setting.catalogue.features
  window = setting.config.goals.window

  def chunk(pair):
    user, which = np.divmod(pair, P)
    rows = schema.take(starts, few[user])
    return _achieved(
      window,
      act,
      params,
      features,
      environment,
      rows,
      schema.take(own, which),
      jax.random.fold_in(key, pair[0]),
    )

  found = by_chunks(chunk, CHUNK, np.arange(few.size * P, dtype=np.uint32))
  return found.reshape(few.size, P, len(OBJECTIVES)).mean(0)


def grid(region: np.ndarray, side: int) -> np.ndarray:
  """side x side goals inside what has been achieved: f32[side * side, 2].

  The largest rectangle (in standard deviations) in the convex hull of the
  achieved: whoever alternates between behaviours achieves what lies between.

  Args:
    region: f32[P, 2], achieved by behaviours.
    side: goals along each objective.
  """
  hull = scipy.spatial.Delaunay(region)
  levels = np.quantile(region, np.linspace(0.02, 0.98, 25), axis=0)
  low, high = np.triu_indices(len(levels), 1)
  corner = lambda x, y: hull.find_simplex(np.stack([x, y], axis=-1)) >= 0
  x, y = levels[:, 0], levels[:, 1]
  inside = np.ones((low.size, low.size), bool)
  for i in (low, high):
    for j in (low, high):
      inside &= corner(*np.meshgrid(x[i], y[j], indexing="ij"))
  area = np.outer(x[high] - x[low], y[high] - y[low]) * inside
  i, j = np.unravel_index(area.argmax(), area.shape)
  along = lambda v, k: np.linspace(v[low[k]], v[high[k]], side)
  points = np.meshgrid(along(x, i), along(y, j), indexing="ij")
  return np.stack(points, axis=-1).reshape(-1, 2).astype(np.float32)


class Control(NamedTuple):
  """How well what was asked is achieved; f64[2] each, by objective.

  Attributes:
    slope: of achieved on asked, the other objective held.
    error: mean |asked - achieved| over the range asked.
  """

  slope: np.ndarray
  error: np.ndarray


def control(asked: np.ndarray, achieved: np.ndarray) -> Control:
  """Holds what goals f32[P, 2] achieved against what was asked."""
  one = np.ones((len(asked), 1))
  fit = np.linalg.lstsq(np.hstack([asked, one]), achieved, rcond=None)[0]
  error = np.abs(asked - achieved).mean(0) / np.ptp(asked, axis=0)
  return Control(np.diag(fit[:2]), error)
