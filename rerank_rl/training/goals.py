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

from rerank_rl.config import ConfigError
from rerank_rl.data import schema
from rerank_rl.evaluation import ranking
from rerank_rl.models import rerankers
from rerank_rl.simulation import session as simulation
from rerank_rl.training.session_setting import SessionRun
from rerank_rl.training.setting import CHUNK, by_chunks, local
from rerank_rl.types import PAD, Array, Request

OBJECTIVES = ("slate_reward", "ild")
# The ranges of what behaviours are made of, and the scale of their noise.
_LEAN, _VARY, _NOISE = (-1.5, 1.5), (-3.0, 3.0), 0.4

# (params, own f32[B, ...], request, key) -> slate i32[B, K].
Pursue = Callable[[Any, Any, Request, Array], Array]


class Behaviour(struct.PyTreeNode):
  """A fixed way to fill slates; f32[P] each.

    P(i) ~ exp[(lean * score_i - vary * mean_{j shown} cos(i, j)) / .4],

  in turn, scores in standard deviations of the request's. MMR would take the
  largest cosine; the mean is what the diversity of a slate is made of.

  Attributes:
    lean: to the ranker's scores, or away from them.
    vary: above 0 slates are diverse, below it their items are alike.
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


def behave(slots: int, features, own: Behaviour, request, key):
  """Fills slates for users who each meet a behaviour of their own.

  Args:
    slots: K.
    features: f32[M, F].
    own: Behaviour of [B].
    request: the Request.
    key: PRNG key.

  Returns:
    (slate i32[B, K], f32[B, K, N]: each slot's choice is the softmax of it
    over what is left).
  """
  real = request.candidates != PAD
  spread = request.scores.std(1, where=real, keepdims=True)
  relevance = own.lean[:, None] * request.scores / jnp.maximum(spread, 1e-6)
  unit = rerankers.directions(features, request)

  def place(carry, xs):
    free, total = carry
    k, key = xs
    likeness = jnp.einsum("bnf,bf->bn", unit, total) / jnp.maximum(k, 1)
    worth = (relevance - own.vary[:, None] * likeness) / _NOISE
    noisy = worth + jax.random.gumbel(key, worth.shape)
    # Where none is left there are too few candidates for all slots.
    item = jnp.where(free, noisy, -1e9).argmax(1).astype(jnp.int32)
    shown = jnp.take_along_axis(unit, item[:, None, None], axis=1)[:, 0]
    some = free.any(1) & (k < request.size)
    free &= jnp.arange(free.shape[1])[None] != item[:, None]
    return (free, total + shown), (jnp.where(some, item, PAD), worth)

  start = real, jnp.zeros_like(unit[:, 0])
  turns = jnp.arange(slots), jax.random.split(key, slots)
  _, (slate, worth) = jax.lax.scan(place, start, turns)
  return slate.T, worth.swapaxes(0, 1)


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
    users: for each of the P, evenly spaced over the split and, while there
      are enough, none the same: what users differ in averages out.
    environment: how they behave; None = the split's.
  """
  starts = setting.dataset.splits[split]
  count = schema.num_rows(starts)
  own = jax.tree.map(np.asarray, own)
  P = schema.num_rows(own)
  key = setting.key("goals/" + split)
  environment = environment or setting.environment(split)
  params, features = local(params), setting.catalogue.features
  window = setting.config.goals.window

  def chunk(pair):
    rows = schema.take(starts, pair.astype(np.int64) * count // (users * P))
    return _achieved(
      window,
      act,
      params,
      features,
      environment,
      rows,
      schema.take(own, pair % P),
      jax.random.fold_in(key, pair[0]),
    )

  found = by_chunks(chunk, CHUNK, np.arange(users * P, dtype=np.uint32))
  return found.reshape(users, P, len(OBJECTIVES)).mean(0)


def grid(region: np.ndarray, side: int) -> np.ndarray:
  """side x side goals inside what has been achieved: f32[side * side, 2].

  The largest rectangle (in standard deviations) in the convex hull of the
  achieved: whoever alternates between behaviours achieves what lies between.

  Args:
    region: f32[P, 2], achieved by behaviours.
    side: goals along each objective.

  Raises:
    ConfigError: one objective hangs on the other, or on nothing.
  """
  try:
    hull = scipy.spatial.Delaunay(region)
  except (scipy.spatial.QhullError, ValueError):
    raise ConfigError(
      f"what {len(region)} behaviours achieve ({' and '.join(OBJECTIVES)}) "
      "spans no area in which goals could lie: use slates of two items or "
      "more, longer lists of candidates, or raise config.goals.users."
    ) from None
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


def _fit(asked: np.ndarray, achieved: np.ndarray) -> np.ndarray:
  """f64[3, 2] with achieved = [asked, 1] @ it, by least squares."""
  one = np.ones((len(asked), 1))
  return np.linalg.lstsq(np.hstack([asked, one]), achieved, rcond=None)[0]


def aim(asked: np.ndarray, achieved: np.ndarray) -> np.ndarray:
  """f32[3, 2]: what to ask for to achieve a goal is [goal, 1] @ it.

  The fit of achieved f32[P, 2] on asked f32[P, 2] turned round: a policy that
  goes half of the way is asked for twice as much.
  """
  fit = _fit(asked, achieved)
  back = np.linalg.pinv(fit[:2])
  return np.vstack([back, -fit[2:] @ back]).astype(np.float32)


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
  fit = _fit(asked, achieved)
  error = np.abs(asked - achieved).mean(0) / np.ptp(asked, axis=0)
  return Control(np.diag(fit[:2]), error)
