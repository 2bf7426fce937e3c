"""The nouns that every floor of the house shares.

Shapes: B requests, H history items, N candidates, K slots of a slate, G
leaves (rollouts) a request, L levels of a semantic ID, V codes a level,
T = K * L tokens a slate, E edges of a token tree, S feedback signals,
M catalogue items, F item features, U user features, D hidden dimensions.
"""

from typing import Any

from flax import struct

Array = Any  # numpy columns and traced arrays alike.

PAD = -1  # No item, no token, no edge: every index array pads with it.
ROOT = -1  # The parent of a tree's first edges: the prompt.


class Catalogue(struct.PyTreeNode):
  """All items that may ever be shown.

  Attributes:
    features: f32[M, F], observed side features, standardised.
    sids: i32[M, L], semantic IDs; distinct rows, codes in [0, V).
  """

  features: Array
  sids: Array


class Request(struct.PyTreeNode):
  """What a reranker sees.

  Attributes:
    user: f32[B, U], user features (U may be 0).
    history: i32[B, H], catalogue rows, oldest first, PAD before the oldest.
    candidates: i32[B, N], distinct catalogue rows, PAD after the last.
    scores: f32[B, N], the upstream ranker's scores, 0 at PAD.
    size: i32[B], slots to fill, 1 <= size <= K.
    goal: f32[B, C] or None, objectives asked for (one prompt token).
    so_far: f32[B, 2] or None, of a session: slates that the user has seen in
      it, and how many slates' worth of slots he passed over. Critics read it.
  """

  user: Array
  history: Array
  candidates: Array
  scores: Array
  size: Array
  goal: Array | None = None
  so_far: Array | None = None


class Impression(struct.PyTreeNode):
  """A request, the slate that was shown and what came of it.

  Attributes:
    request: the Request, leading dimension B.
    slate: i32[B, K], positions in `request.candidates`, PAD after the last.
    feedback: f32[B, K, S], per-position signals in [0, 1], 0 at PAD.
    propensity: f32[B, K], probability with which the logging policy placed
      each item given those above it; NaN where unknown.
    hidden: f32[B, D], the world's true user vector; D = 0 on real data. No
      policy or evaluator may read it; only `reward=world` and reports do.
  """

  request: Request
  slate: Array
  feedback: Array
  propensity: Array
  hidden: Array


class TokenTree(struct.PyTreeNode):
  """Rollouts as a tree of tokens; the one structure of search and learning.

  An edge is a token and the state that it leads to.

  Attributes:
    token: i32[B, E], per-level code (position for pointer heads); PAD.
    parent: i32[B, E], index of the parent edge, < own index, or ROOT.
    depth: i32[B, E], t; slot = t // L, level = t % L.
    logp_old: f32[B, E], the policy's log-probability under the legality
      mask, temperature 1; 0 at padding.
    log_q: f32[B, E], the explorer's log-probability of the edge; `logp_old` if
      iid, NaN where an edge has none: searches, draws without replacement.
    mean_logp_old: f32[B, E], mean of logp_old over the legal children of
      the edge's state; 0 at leaves and padding.
    weight: f32[B, E], share of the G rollouts that pass through the edge.
    path: i32[B, G, T], edges from the root to leaf g; PAD where a slate is
      short.
    slate: i32[B, G, K], positions in the request's candidates; PAD.
    iid: static; whether the leaves are independent samples of the policy.
  """

  token: Array
  parent: Array
  depth: Array
  logp_old: Array
  log_q: Array
  mean_logp_old: Array
  weight: Array
  path: Array
  slate: Array
  iid: bool = struct.field(pytree_node=False, default=True)


class Outcome(struct.PyTreeNode):
  """What the leaves of a TokenTree were worth.

  Attributes:
    reward: f32[B, G], the list's worth.
    per_item: f32[B, G, K], each slot's part of it, settled by the slots up to
      it: what a later slot holds changes nothing in it.
    bootstrap: f32[B, G], (1 - done) V(s') for sessions, else 0.
    advantage: f32[B, G, T], what a critic says of each token; None without.
  """

  reward: Array
  per_item: Array
  bootstrap: Array
  advantage: Array | None = None
