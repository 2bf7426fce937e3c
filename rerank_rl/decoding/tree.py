"""Token trees: built from chains, merged, checked against their invariants.

Letters: P states or tokens along a path; see types.py for the rest.
"""

import jax
import jax.numpy as jnp

from rerank_rl.types import PAD, ROOT, Array, TokenTree


def from_chains(
  token: Array,
  logp: Array,
  mean_logp: Array,
  slate: Array,
  log_q: Array,
  iid: bool,
) -> TokenTree:
  """A tree of G chains that share nothing but the prompt.

  Args:
    token: i32[B, G, T], PAD where a slate is short.
    logp: f32[B, G, T], the policy's log-probabilities.
    mean_logp: f32[B, G, T], mean log-probability over the legal tokens among
      which token t was chosen.
    slate: i32[B, G, K], positions.
    log_q: f32[B, G, T], the explorer's log-probabilities.
    iid: whether the chains are independent samples.

  Returns:
    A TokenTree with E = G * T edges.
  """
  B, G, T = token.shape
  E = G * T
  edge = jnp.arange(E, dtype=jnp.int32).reshape(1, G, T)
  real = token != PAD
  path = jnp.where(real, edge, PAD)
  # A short slate may leave a slot empty in the middle: the parent is the
  # last real edge before.
  last = jax.lax.cummax(path, axis=2)
  before = jnp.concatenate(
    [jnp.full((B, G, 1), ROOT, jnp.int32), last[:, :, :-1]], axis=2
  )
  ahead = jnp.concatenate(
    [mean_logp[:, :, 1:], jnp.zeros((B, G, 1), mean_logp.dtype)], axis=2
  )
  flat = lambda x: jnp.where(real, x, 0).reshape(B, E)
  depth = jnp.broadcast_to(jnp.arange(T, dtype=jnp.int32), (B, G, T))
  return TokenTree(
    token=token.reshape(B, E),
    parent=jnp.where(real, before, ROOT).reshape(B, E),
    depth=flat(depth),
    logp_old=flat(logp),
    log_q=flat(log_q),
    mean_logp_old=flat(ahead),
    weight=flat(jnp.full((B, G, T), 1 / G, logp.dtype)),
    path=path,
    slate=slate,
    iid=iid,
  )


def merge(tree: TokenTree) -> TokenTree:
  """Merges chains' common prefixes; the first chain's edges stand for all.

  Args:
    tree: a tree from `from_chains`.

  Returns:
    The same rollouts with distinct siblings; merged edges become padding.
  """
  B, G, T = tree.path.shape
  chain = tree.token.reshape(B, G, T)
  equal = (chain[:, :, None] == chain[:, None]).astype(jnp.int32)
  same = jax.lax.cumprod(equal, axis=3)
  first = jnp.argmax(same, axis=2).astype(jnp.int32)
  place = jnp.arange(T, dtype=jnp.int32)[None, None]
  path = jnp.where(tree.path == PAD, PAD, first * T + place)
  own = jnp.arange(G, dtype=jnp.int32)[None, :, None]
  keep = ((first == own) & (tree.path != PAD)).reshape(B, G * T)
  share = same.sum(axis=2).astype(tree.weight.dtype) / G
  zero = lambda x: jnp.where(keep, x, 0)
  # Parents of the kept edges lie on the kept path.
  last = jax.lax.cummax(jnp.where(path == PAD, PAD, place), axis=2)
  before = jnp.concatenate(
    [jnp.full((B, G, 1), PAD, jnp.int32), last[:, :, :-1]], axis=2
  )
  parent = jnp.take_along_axis(path, jnp.maximum(before, 0), axis=2)
  parent = jnp.where(before == PAD, ROOT, parent).reshape(B, G * T)
  return tree.replace(
    token=jnp.where(keep, tree.token, PAD),
    parent=jnp.where(keep, parent, ROOT),
    depth=zero(tree.depth),
    logp_old=zero(tree.logp_old),
    log_q=zero(tree.log_q),
    mean_logp_old=zero(tree.mean_logp_old),
    weight=zero(share.reshape(B, G * T)),
    path=path,
  )


def found(tree: TokenTree) -> Array:
  """bool[B, G]: leaves that hold a slate; a search may find fewer than G."""
  return (tree.path != PAD).any(-1)


def choices(tree: TokenTree) -> Array:
  """bool[B, G, T]: tokens that were a choice.

  Most items end in tokens that are the only legal ones, whose log-probability
  is 0 whatever is learnt.
  """
  return on_path(tree, tree.logp_old) < -1e-6


def on_path(tree: TokenTree, edge_values: Array) -> Array:
  """Reads edge values f32[B, E] along paths: f32[B, G, T], 0 at padding."""
  B, G, T = tree.path.shape
  index = jnp.maximum(tree.path, 0).reshape(B, G * T)
  values = jnp.take_along_axis(edge_values, index, axis=1)
  return jnp.where(tree.path == PAD, 0, values.reshape(B, G, T))


def sum_to_edges(tree: TokenTree, path_values: Array) -> Array:
  """Sums path values f32[B, G, T] over the chains through each edge."""
  B, E = tree.token.shape
  values = jnp.where(tree.path == PAD, 0, path_values).reshape(B, -1)
  index = jnp.maximum(tree.path, 0).reshape(B, -1)
  zeros = jnp.zeros((B, E), path_values.dtype)
  return jax.vmap(lambda z, i, v: z.at[i].add(v))(zeros, index, values)


def to_edges(tree: TokenTree, path_values: Array) -> Array:
  """Takes each edge's value from the first path through it, 0 at padding.

  Args:
    tree: the tree.
    path_values: f32[B, G, T]; equal on paths that share an edge.

  Returns:
    f32[B, E].
  """
  B, E = tree.token.shape
  flat = path_values.reshape(B, -1)
  index = jnp.where(tree.path == PAD, E, tree.path).reshape(B, -1)
  place = jnp.arange(index.shape[1], dtype=jnp.int32)
  none = jnp.full((E + 1,), index.shape[1], jnp.int32)
  first = jax.vmap(lambda i: none.at[i].min(place))(index)[:, :E]
  values = jnp.take_along_axis(
    flat, jnp.minimum(first, index.shape[1] - 1), axis=1
  )
  return jnp.where(first < index.shape[1], values, 0)
