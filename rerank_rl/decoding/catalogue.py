"""Which tokens are legal in the whole catalogue: intervals, children by CSR.

The same game as `legality` plays among a request's candidates. The catalogue
sorted by semantic ID is a tree in which every prefix, a node, is an interval
[start, stop) of ranks. Nodes are numbered level by level, each level in rank
order, so that a node's children are neighbours: `child[n]` to
`child[n + 1]`. A step therefore reads one short slice, whatever the size of
the catalogue, and a distribution over the legal tokens is one over at most
`fans[level]` children. All functions but `build` are pure, with static
shapes; the tree is replicated over a mesh, nodes are split like the batch.

Letters: M items, L levels, V codes, n nodes, F children, X ranks.
"""

from flax import struct
import jax.numpy as jnp
import numpy as np

from rerank_rl.decoding import legality
from rerank_rl.tokenizer import semantic_ids
from rerank_rl.types import PAD, Array

ROOT = 0  # The node of the empty prefix.


class Tree(struct.PyTreeNode):
  """A catalogue sorted lexicographically by semantic ID.

  Attributes:
    order: i32[M], rank -> item.
    path: i32[M, L], item -> the nodes from its first token to its leaf.
    code: i32[n], the token that leads to each node; PAD at the root.
    child: i32[n + 1], first child of each node; they end where the next
      node's begin. Leaves have none.
    start: i32[n], first rank under the node.
    stop: i32[n], one past the last.
    fans: static; the most children of any node at each level.
  """

  order: Array
  path: Array
  code: Array
  child: Array
  start: Array
  stop: Array
  fans: tuple[int, ...] = struct.field(pytree_node=False, default=())


def build(sids: Array) -> Tree:
  """Sorts a catalogue into a tree, on the host.

  Args:
    sids: i[M, L], distinct rows of codes >= 0.

  Returns:
    The Tree, of jax arrays.

  Raises:
    ValueError: no items, a negative code, two items with one semantic ID.
  """
  sids = np.asarray(sids, np.int32)
  if sids.ndim != 2 or not sids.size or sids.min() < 0:
    raise ValueError(
      f"semantic IDs of shape {sids.shape} should be [items, levels], not "
      "empty, with codes >= 0."
    )
  order = np.argsort(semantic_ids.pack(sids, int(sids.max()) + 1))
  codes = sids[order]
  # A run at level l ends where any of the codes 0..l changes.
  change = np.ones(codes.shape, bool)
  change[1:] = np.logical_or.accumulate(codes[1:] != codes[:-1], axis=1)
  if not change[:, -1].all():
    rank = int(np.argmin(change[:, -1]))
    raise ValueError(
      f"items {order[rank - 1]} and {order[rank]} have the same semantic ID, "
      f"{codes[rank].tolist()}; each item needs its own."
    )
  M, L = codes.shape
  start, stop, token = [np.zeros(1, int)], [np.full(1, M)], [np.full(1, PAD)]
  path = np.empty((M, L + 1), np.int32)  # By rank; one place past the leaf.
  nodes = 1
  for level in range(L):
    first = np.flatnonzero(change[:, level])
    path[:, level] = nodes - 1 + np.cumsum(change[:, level])
    start.append(first)
    stop.append(np.append(first[1:], M))
    token.append(codes[first, level])
    nodes += first.size
  path[:, L] = nodes
  # A node's first child is on the path of the first item under it.
  child = [path[first, level] for level, first in enumerate(start)]
  child = np.concatenate([*child, [nodes]])
  levels = np.cumsum([first.size for first in start])
  counts = np.split(np.diff(child), levels)[:L]
  by_item = np.empty((M, L), np.int32)
  by_item[order] = path[:, :L]
  whole = lambda parts: jnp.asarray(np.concatenate(parts), jnp.int32)
  return Tree(
    order=jnp.asarray(order, jnp.int32),
    path=jnp.asarray(by_item),
    code=whole(token),
    child=jnp.asarray(child, jnp.int32),
    start=whole(start),
    stop=whole(stop),
    fans=tuple(int(count.max()) for count in counts),
  )


def children(
  tree: Tree, node: Array, width: int, gone: Array | None = None
) -> Array:
  """Legal next nodes.

  Args:
    tree: the catalogue.
    node: i32[...], prefixes; one that does not exist, PAD, has no children.
    width: F, at least the nodes' most children: `fans[level]`, or the
      largest of them where the level is not known.
    gone: i32[..., X], ranks of items that may not be shown (any more), PAD
      or distinct; a node is legal while another item is left under it.

  Returns:
    i32[..., F], PAD after the last and where nothing is left.
  """
  safe = jnp.maximum(node, 0)
  first, end = tree.child[safe], tree.child[safe + 1]
  shape = (1,) * node.ndim + (width,)
  child = first[..., None] + jnp.arange(width, dtype=jnp.int32).reshape(shape)
  legal = (node >= 0)[..., None] & (child < end[..., None])
  child = jnp.where(legal, child, ROOT)
  if gone is not None:
    start, stop = tree.start[child], tree.stop[child]
    there = gone[..., None, :]
    under = (there >= start[..., None]) & (there < stop[..., None])
    legal &= under.sum(-1) < stop - start
  return jnp.where(legal, child, PAD)


def token_of(tree: Tree, node: Array) -> Array:
  """The last token i32[...] of prefixes i32[...]; PAD at the root and PAD."""
  return tree.code[jnp.maximum(node, ROOT)]


def item_at(tree: Tree, leaf: Array) -> Array:
  """The item i32[...] of leaves i32[...], PAD where PAD."""
  item = tree.order[tree.start[jnp.maximum(leaf, 0)]]
  return jnp.where(leaf >= 0, item, PAD)


def descend(tree: Tree, node: Array, code: Array, width: int) -> Array:
  """The child i32[...] that token i32[...] leads to, PAD where illegal."""
  child = children(tree, node, width)
  same = (child >= 0) & (token_of(tree, child) == code[..., None])
  return jnp.where(same, child, PAD).max(-1)


def log_probs(logits: Array, child: Array) -> Array:
  """Log-probabilities f32[..., F] of legal next nodes.

  Args:
    logits: f32[..., F], one a child.
    child: i32[..., F], from `children`.

  Returns:
    NEGATIVE at PAD, 0 everywhere if nothing is legal.
  """
  return legality.renormalise(logits, child >= 0)
