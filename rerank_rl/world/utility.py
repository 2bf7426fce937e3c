"""What slates are truly worth, and the best ones.

U(slate) = sum_t P(click at t), the expected clicks of click_law. Requests
need at least K candidates, as every request of the world has.

Without fatigue and contrast p belongs to the item alone, and sorting by it is
optimal: U = p_0 + s(p_0) (p_1 + s(p_1) (...)) with s the chance to read on,
so neighbours a above b beat b above a when p_a / (1 - s(p_a)) is larger, and
that grows with p because s does. A test enumerates it.
"""

import functools
import itertools
import math

from flax import struct
import jax
import jax.numpy as jnp
import numpy as np

from rerank_rl.types import PAD, Array
from rerank_rl.world import click_law
from rerank_rl.world import world as world_lib

NEG = -1e9  # Below any utility; finite, so that no NaN can arise.
WIDTH = 64  # Beam of `optimum`.
ENUMERABLE = 5040  # Orderings up to which `optimum` enumerates.
CHUNK = 128  # Requests searched at a time.


@struct.dataclass
class Truth:
  """Candidates as the click law sees them.

  Attributes:
    rel: f[..., N], relevance.
    alike: f[..., N, N], positive cosines.
    valid: bool[..., N], False at PAD.
  """

  rel: Array
  alike: Array
  valid: Array


def truth_of(world: world_lib.World, hidden: Array, items: Array) -> Truth:
  """The Truth of users f[..., D] and catalogue rows i32[..., N]."""
  z = world.z[items]
  return Truth(
    rel=world_lib.relevance(world, hidden, items),
    alike=click_law.similarity(z, z),
    valid=jnp.asarray(items) != PAD,
  )


@jax.jit
def per_item(world: world_lib.World, hidden: Array, items: Array) -> jax.Array:
  """Expected clicks of each slot; a slate's utility is their sum.

  Args:
    world: the truth.
    hidden: f[B, D], true user vectors.
    items: i32[B, G, K], catalogue rows in slate order, PAD after the last.

  Returns:
    f[B, G, K], 0 at PAD.
  """
  rel = jax.vmap(
    lambda user, rows: world_lib.relevance(world, user[None, :], rows)
  )(hidden, items)
  return click_law.expected_clicks(
    world.law, rel, world.z[items], jnp.asarray(items) != PAD
  )


@jax.jit
def utility(
  world: world_lib.World, hidden: Array, candidates: Array, slate: Array
) -> jax.Array:
  """U of slates given as positions.

  Args:
    world: the truth.
    hidden: f[B, D].
    candidates: i32[B, N], catalogue rows.
    slate: i32[B, K] or i32[B, G, K], positions in `candidates`, or PAD.

  Returns:
    f[B] or f[B, G], expected clicks.
  """
  slate, candidates = jnp.asarray(slate), jnp.asarray(candidates)
  flat = slate.reshape(len(slate), -1)
  items = jnp.take_along_axis(candidates, jnp.maximum(flat, 0), axis=-1)
  items = jnp.where(flat == PAD, PAD, items)
  items = items.reshape(len(slate), -1, slate.shape[-1])
  return per_item(world, hidden, items).sum(-1).reshape(slate.shape[:-1])


def beam(law: click_law.Law, truth: Truth, size: int, width: int) -> jax.Array:
  """Beam search on the truth; one request.

  A prefix's value is its expected clicks so far, which later items leave
  alone. Prefixes are kept apart even where they hold the same items.

  Args:
    law: the click law.
    truth: of N candidates, without leading dimensions.
    size: K slots.
    width: prefixes kept; 1 is greedy.

  Returns:
    i32[width, K], positions, best first.
  """
  num = truth.rel.shape[0]
  rel = jnp.broadcast_to(truth.rel[None, :], (width, num))
  prefix = click_law.empty_prefix(rel)
  legal = jnp.broadcast_to(truth.valid[None, :], (width, num))
  slates = jnp.full((width, size), PAD, jnp.int32)
  # All prefixes are empty at first: only one of them may be extended.
  alive = jnp.arange(width) == 0
  for slot in range(size):
    p = click_law.next_clicks(law, prefix, rel, slot)
    value = prefix.utility[:, None] + prefix.examined[:, None] * p
    value = jnp.where(legal & alive[:, None], value, NEG)
    best, index = jax.lax.top_k(value.ravel(), width)
    row, item = index // num, index % num
    prefix = jax.tree.map(lambda x, row=row: x[row], prefix)
    prefix = click_law.place(
      law, prefix, truth.rel[item], p[row, item], truth.alike[item]
    )
    slates = slates[row].at[:, slot].set(item.astype(jnp.int32))
    legal = legal[row].at[jnp.arange(width), item].set(False)
    alive = best > NEG
  return slates


def _worth(law: click_law.Law, truth: Truth, slates: Array) -> jax.Array:
  """U f[G] of one request's slates i32[G, K]."""
  rel = truth.rel[slates]
  alike = truth.alike[slates[:, :, None], slates[:, None, :]]
  clicks = click_law.clicks_from_similarity(
    law, rel, alike, jnp.ones(rel.shape, bool)
  )
  return clicks.sum(-1)


def local_search(law: click_law.Law, truth: Truth, slate: Array) -> jax.Array:
  """Best swap or replacement, again and again, until none gains.

  Args:
    law: the click law.
    truth: of one request's N candidates.
    slate: i32[K], positions.

  Returns:
    i32[K]: no swap of two slots and no replacement of one item by an unused
    candidate is worth more.
  """
  size, num = slate.shape[0], truth.rel.shape[0]
  swaps = np.tile(np.arange(size), (math.comb(size, 2), 1))
  for row, (i, j) in enumerate(itertools.combinations(range(size), 2)):
    swaps[row, [i, j]] = j, i
  slots = np.repeat(np.arange(size), num)
  fresh = np.tile(np.arange(num, dtype=np.int32), size)

  def neighbours(slate):
    wide = jnp.broadcast_to(slate[None, :], (len(slots), size))
    replaced = wide.at[np.arange(len(slots)), slots].set(fresh)
    unused = truth.valid.at[slate].set(False)[fresh]
    legal = jnp.concatenate([jnp.ones(len(swaps), bool), unused])
    return jnp.concatenate([slate[swaps], replaced]), legal

  def step(state):
    slate, worth, _ = state
    others, legal = neighbours(slate)
    values = jnp.where(legal, _worth(law, truth, others), NEG)
    best = values.argmax()
    # Rounding must not make two slates of one worth swap forever.
    gains = values[best] > worth + 1e-6
    return (
      jnp.where(gains, others[best], slate),
      jnp.where(gains, values[best], worth),
      gains,
    )

  worth = _worth(law, truth, slate[None, :])[0]
  state = (slate, worth, jnp.array(True))
  return jax.lax.while_loop(lambda state: state[2], step, state)[0]


def enumerate_best(law: click_law.Law, truth: Truth, size: int) -> jax.Array:
  """The best of all ordered slates i32[K] of one request's N candidates."""
  orders = itertools.permutations(range(truth.rel.shape[0]), size)
  orders = jnp.asarray(np.array(list(orders), np.int32))
  legal = truth.valid[orders].all(-1)
  return orders[jnp.where(legal, _worth(law, truth, orders), NEG).argmax()]


def _best(law: click_law.Law, truth: Truth, size: int, width: int):
  if math.perm(truth.rel.shape[0], size) <= ENUMERABLE:
    return enumerate_best(law, truth, size)
  return local_search(law, truth, beam(law, truth, size, width)[0])


def _top_beam(law: click_law.Law, truth: Truth, size: int, width: int):
  return beam(law, truth, size, width)[0]


@functools.partial(jax.jit, static_argnames=("rule", "width"))
def _apply(rule, world, hidden, candidates, width):
  def one(user, items):
    truth = truth_of(world, user, items)
    return rule(world.law, truth, world.config.slate_size, width)

  return jax.vmap(one)(hidden, candidates)


def chunked(function, size: int, *columns: Array) -> np.ndarray:
  """`function(*columns)` in chunks of rows, the last one padded by repeats.

  Args:
    function: arrays of leading dimension `size` -> an array of the same.
    size: rows a chunk.
    *columns: arrays of B rows.

  Returns:
    The results' B rows, numpy.
  """
  count = len(columns[0])
  size = min(size, count)
  parts = []
  for start in range(0, count, size):
    rows = np.minimum(np.arange(start, start + size), count - 1)
    parts.append(np.asarray(function(*(np.asarray(c)[rows] for c in columns))))
  return np.concatenate(parts)[:count]


def best(world: world_lib.World, hidden: Array, candidates: Array) -> jax.Array:
  """`optimum` of a batch, under jit: i32[B, K]; 20 ms for 32 requests."""
  return _apply(_best, world, hidden, candidates, WIDTH)


def optimum(
  world: world_lib.World, hidden: Array, candidates: Array
) -> np.ndarray:
  """The best slates known: exact where there are few, else beam and search.

  Up to 5,040 orderings are enumerated; beyond, the best of a beam of 64 on
  the truth is improved by `local_search`.

  Args:
    world: the truth.
    hidden: f[B, D], true user vectors.
    candidates: i32[B, N], catalogue rows, PAD after the last, >= K real.

  Returns:
    i32[B, K], positions in `candidates`.
  """
  find = functools.partial(best, world)
  return chunked(find, CHUNK, hidden, candidates)


def search(
  world: world_lib.World, hidden: Array, candidates: Array, width: int
) -> np.ndarray:
  """Beam search on the truth, `width` 1 being list-greedy.

  Args:
    world: the truth.
    hidden: f[B, D], true user vectors.
    candidates: i32[B, N], catalogue rows, PAD after the last, >= K real.
    width: prefixes kept.

  Returns:
    i32[B, K], positions in `candidates`.
  """

  def find(hidden, candidates):
    return _apply(_top_beam, world, hidden, candidates, width)

  return chunked(find, CHUNK, hidden, candidates)
