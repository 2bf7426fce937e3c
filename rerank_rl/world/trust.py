r"""A session world small enough to be solved: users whose trust is spent.

A user has one of S levels of trust, and a slate is K of M items. Half of the
items are bait, clicked at every level alike; the others, solid, are clicked
the more the user trusts:

  P(click at slot k) = attention_k * appeal[s, i_k].

Each slot's item pulls at trust, bait down and solid up; the slate's pull, the
mean weighted by attention, moves trust by one level in its direction with
probability `moving` times its size. Pulled down from the lowest level the
user leaves; at any level he leaves with probability `leaving`. So the slate
with most clicks is all bait, and whoever always shows it loses his users.

Letters: S levels, A ordered slates; the rest as in types.py.
"""

import itertools

from flax import struct
import jax
import jax.numpy as jnp
import numpy as np

from rerank_rl.types import PAD, Array, Request

LEVELS = 5
ITEMS = 8
SLOTS = 2


@struct.dataclass
class TrustWorld:
  """The truth.

  Attributes:
    appeal: f32[S, M], P(click) where attention is whole.
    pull: f32[M], -1 for bait, 1 for solid items.
    attention: f32[K], each slot's.
    moving: P(trust moves | all items pull one way).
    leaving: P(leaving | trust does not run out).
  """

  appeal: Array
  pull: Array
  attention: Array
  moving: float = struct.field(pytree_node=False, default=0.6)
  leaving: float = struct.field(pytree_node=False, default=0.02)


def build(seed: int) -> TrustWorld:
  """The world of `seed`: which items are bait, and how good each one is."""
  rng = np.random.default_rng(seed)
  pull = rng.permutation(np.repeat([-1.0, 1.0], ITEMS // 2))
  good = rng.uniform(0.75, 0.9, ITEMS)
  trust = np.linspace(0.15, 0.9, LEVELS)[:, None]
  appeal = np.where(pull < 0, good, good * trust)
  return TrustWorld(
    jnp.asarray(appeal, jnp.float32),
    jnp.asarray(pull, jnp.float32),
    jnp.asarray([1.0, 0.6], jnp.float32),
  )


def features(world: TrustWorld) -> np.ndarray:
  """f32[M, 3], what may be observed of an item: its kind and its appeal."""
  bait = np.asarray(world.pull) < 0
  return np.stack([bait, ~bait, world.appeal[-1]], axis=1).astype(np.float32)


def clicks(world: TrustWorld, trust: Array, slate: Array) -> jax.Array:
  """P(click) of each slot f32[..., K] of slates i32[..., K] at i32[...]."""
  appeal = world.appeal[trust[..., None], slate]
  return jnp.einsum("k,...k->...k", world.attention, appeal)


def moves(world: TrustWorld, slate: Array) -> jax.Array:
  """P(trust falls, trust rises), f32[..., 2], of slates i32[..., K]."""
  share = world.attention / world.attention.sum()
  pull = world.moving * (world.pull[slate] @ share)
  return jnp.stack([jnp.maximum(-pull, 0), jnp.maximum(pull, 0)], axis=-1)


def request(trust: Array) -> Request:
  """What a reranker sees of one user: his trust, all items, no history."""
  return Request(
    user=jax.nn.one_hot(trust, LEVELS),
    history=jnp.full((1,), PAD, jnp.int32),
    candidates=jnp.arange(ITEMS, dtype=jnp.int32),
    scores=jnp.zeros((ITEMS,)),
    size=jnp.int32(SLOTS),
  )


def react(
  world: TrustWorld, trust: Array, slate: Array, key: Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """One user reads one slate.

  Args:
    world: the truth.
    trust: i32[], his level.
    slate: i32[K], items.
    key: PRNG key.

  Returns:
    (his level after it i32[], clicks bool[K], whether he leaves bool[]).
  """
  click_key, move_key, leave_key = jax.random.split(key, 3)
  uniform = jax.random.uniform(click_key, slate.shape)
  clicked = uniform < clicks(world, trust, slate)
  down, up = moves(world, slate)
  where = jax.random.uniform(move_key)
  level = trust - (where < down) + (where > 1 - up)
  leaves = jax.random.uniform(leave_key) < world.leaving
  left = (level < 0) | leaves
  return jnp.clip(level, 0, LEVELS - 1).astype(trust.dtype), clicked, left


def slates() -> np.ndarray:
  """All ordered slates, i32[A, K]."""
  return np.array(list(itertools.permutations(range(ITEMS), SLOTS)), np.int32)


def model(world: TrustWorld) -> tuple[np.ndarray, np.ndarray]:
  """The decision process that `react` samples from.

  Returns:
    (expected clicks f64[S, A], P(level after | level, slate) f64[S, A, S];
    what is missing to 1 leaves).
  """
  every = slates()
  trust = np.arange(LEVELS)
  wide = (LEVELS, len(every))
  at = jnp.broadcast_to(trust[:, None], wide)
  shown = jnp.broadcast_to(every[None], (*wide, SLOTS))
  reward = np.asarray(clicks(world, at, shown).sum(-1), np.float64)
  down, up = np.asarray(moves(world, every), np.float64).T
  after = np.zeros((LEVELS, len(every), LEVELS))
  for s in trust:
    after[s, :, s] += 1 - down - up
    after[s, :, min(s + 1, LEVELS - 1)] += up
    if s > 0:
      after[s, :, s - 1] += down
  return reward, (1 - world.leaving) * after


def value(world: TrustWorld, chance: np.ndarray, gamma: float) -> np.ndarray:
  """V^pi f64[S] = (I - gamma P^pi)^-1 r^pi of P(slate | level) [S, A]."""
  reward, after = model(world)
  move = np.einsum("sa,saz->sz", chance, after)
  here = (chance * reward).sum(1)
  return np.linalg.solve(np.eye(LEVELS) - gamma * move, here)


def optimum(world: TrustWorld, gamma: float) -> np.ndarray:
  """V* f64[S], by policy iteration; gamma = 0 gives the myopic policy's r."""
  return value(world, best(world, gamma), gamma)


def best(world: TrustWorld, gamma: float) -> np.ndarray:
  """The optimal policy as one-hot rows f64[S, A]; gamma = 0: the myopic."""
  reward, after = model(world)
  policy = np.eye(reward.shape[1])[reward.argmax(1)]
  while True:
    worth = reward + gamma * after @ value(world, policy, gamma)
    better = np.eye(reward.shape[1])[worth.argmax(1)]
    gain = (worth * (better - policy)).sum(1)
    if gain.max() < 1e-9:
      return policy
    policy = better
