"""Transitions that are kept to be learnt from again, on the device."""

from typing import Any

from flax import struct
import jax
import jax.numpy as jnp

from rerank_rl.rl import offpolicy
from rerank_rl.simulation.session import Answer
from rerank_rl.types import Array, Request


class Move(struct.PyTreeNode):
  """What an agent did.

  Attributes:
    slate: i32[B, K], positions of the candidates shown.
    point: f32[B, D], the action of which the slate is made; D = 0 for agents
      whose action is the slate.
    logp: f32[B], log-density of the action, or log-mass of the slate, by the
      policy that acted.
  """

  slate: Array
  point: Array
  logp: Array


class Transition(struct.PyTreeNode):
  """One slate and what came of it.

  Attributes:
    request: the Request before it, leading dimension B.
    move: the Move.
    answer: the user's Answer.
    after: the same user's Request after it, also where he left.
  """

  request: Request
  move: Move
  answer: Answer
  after: Request

  def target(self, ahead: Array, gamma: float) -> Array:
    """`offpolicy.td_target` f32[B], with V(s') = `ahead`."""
    reward = self.answer.per_item.sum(-1)
    return offpolicy.td_target(reward, self.answer.left, ahead, gamma)


class Ring(struct.PyTreeNode):
  """The latest blocks of transitions.

  Attributes:
    blocks: arrays [C, R, ...], C blocks of R: the transitions' leaves but for
      those without elements (users without features), as no checkpoint can
      hold such.
    count: i32[], blocks ever pushed; the next goes to place count % C.
    kind: static; (tree structure, shape and type of one transition's leaves).
  """

  blocks: tuple[Array, ...]
  count: Array
  kind: Any = struct.field(pytree_node=False)


def empty(capacity: int, block: Any) -> Ring:
  """A Ring without blocks.

  Args:
    capacity: C, blocks kept.
    block: Transition of R, arrays or their shapes.
  """
  leaves, structure = jax.tree.flatten(block)
  room = tuple(
    jnp.zeros((capacity, *x.shape), x.dtype) for x in leaves if x.size
  )
  kind = structure, tuple((x.shape[1:], str(x.dtype)) for x in leaves)
  return Ring(room, jnp.zeros((), jnp.int32), kind)


def push(ring: Ring, block: Any) -> Ring:
  """The Ring with one block more, in place of the oldest if it was full."""
  at = ring.count % ring.blocks[0].shape[0]
  new = [x for x in jax.tree.leaves(block) if x.size]
  blocks = tuple(
    jax.lax.dynamic_update_index_in_dim(old, x, at, 0)
    for old, x in zip(ring.blocks, new, strict=True)
  )
  return ring.replace(blocks=blocks, count=ring.count + 1)


def draw(ring: Ring, key: Array, count: int) -> Any:
  """`count` transitions drawn alike from those kept, with replacement.

  Args:
    ring: with at least one block; places not filled yet are not drawn.
    key: PRNG key.
    count: leading dimension of the result.
  """
  capacity, size = ring.blocks[0].shape[:2]
  filled = jnp.minimum(ring.count, capacity) * size
  at = jax.random.randint(key, (count,), 0, filled)
  kept = iter(ring.blocks)
  structure, leaves = ring.kind
  drawn = [
    jnp.zeros((count, *shape), dtype)
    if 0 in shape
    else next(kept)[at // size, at % size]
    for shape, dtype in leaves
  ]
  return jax.tree.unflatten(structure, drawn)
