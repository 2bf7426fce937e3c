"""What the critics of sessions say, and how they learn it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rerank_rl.config import ReplayConfig, RLConfig, SessionConfig
from rerank_rl.decoding import legality, sample
from rerank_rl.decoding import tree as trees
from rerank_rl.models.hpn import LevelCritic
from rerank_rl.models.policy import Policy
from rerank_rl.rl import offpolicy, values
from rerank_rl.simulation import session as simulation
from rerank_rl.types import Array, Outcome, TokenTree


class Method(NamedTuple):
  """The static parts of a step; `trace` is lambda within a slate."""

  policy: Policy
  critic: LevelCritic
  rl: RLConfig
  session: SessionConfig
  replay: ReplayConfig
  trace: float
  tx: Any
  decay: float


def first_item(policy: Policy, params, game: sample.Game) -> Array:
  """A candidate's share of the first token's mass f32[B, N], by position.

  P(it is placed first) for HPN and pointers, whose tokens are decided by one
  set of scores; where deeper tokens have scores of their own, what is known of
  it before any token is chosen.
  """
  items = game.trie.real[:, None]
  scores = policy.logits(params, game.prompt, game.prompt.root[:, None], 0)
  mass = legality.masses(scores, items)[:, 0]
  share = mass / jnp.maximum(mass.sum(-1, keepdims=True), 1e-9)
  return jnp.take_along_axis(share, game.trie.rank, axis=1)


def state_value(method: Method, params, catalogue, request, game) -> Array:
  """V(s) f32[B]; the expected token is the policy's, without gradient.

  Args:
    method: static parts.
    params: {"policy", "critic"}.
    catalogue: the Catalogue.
    request: the Request.
    game: the request, prepared with the same policy.
  """
  share = first_item(method.policy, params["policy"], game)
  return method.critic.apply(
    {"params": params["critic"]},
    catalogue,
    request,
    jax.lax.stop_gradient(share),
    method="state",
  )


def prefix_values(
  method, params, catalogue, request, tree, clicked
) -> values.PathValues:
  """The critic's values of the states that choose the tree's tokens.

  They know what the user said, bool[B, K], to the slots above a token's own. A
  state with one legal token only, as most are once an item's first is placed,
  has no value of its own.
  """
  each = method.critic.apply(
    {"params": params["critic"]},
    catalogue,
    request,
    tree.slate[:, 0],
    clicked,
    method="prefixes",
  )
  real = trees.choices(tree)
  # A head of one token an item is valued where it chooses: at level 0.
  each = each[..., : method.policy.levels].reshape(real.shape)
  each = jnp.where(real, each, 0)
  return values.PathValues(each, each, real)


def slate_value(method: Method, params, catalogue, request, slate) -> Array:
  """Q(s, slate) f32[B] of slates i32[B, K]: a critic of its own.

  It reads a slate as the other reads a policy: the mean of the slate's tokens
  takes the expected token's place.
  """
  share = jax.nn.one_hot(slate, request.candidates.shape[1]).mean(1)
  return method.critic.apply(
    {"params": params["quality"]}, catalogue, request, share, method="state"
  )


def temporal_difference(
  method: Method, params, catalogue, request, slate, value, to_come, weight
) -> Array:
  """The mean of beta (V(s) - G)^2, a scalar.

  Args:
    method: static parts.
    params: the stage's.
    catalogue: the Catalogue.
    request: the Request.
    slate: i32[B, K], shown.
    value: f32[B], V(s).
    to_come: f32[B], G = r + what `values.across_slates` says; no gradient.
    weight: f32[B], beta = pi(slate | s) / p_behaviour(slate | s), 1 on policy.
  """
  del method, params, catalogue, request, slate
  return offpolicy.value_loss(value, to_come, weight).total / value.size


def disentangled(
  method: Method, params, catalogue, request, slate, value, to_come, weight
) -> Array:
  """The mean of (Q(s, a) - G)^2 + beta (V(s) - sg Q(s, a))^2, a scalar.

  arXiv 2501.17409. G = r + gamma (1 - left) V(s') where `session.decay` is 0,
  as in the paper; else it looks further, as TD's does.
  """
  quality = slate_value(method, params, catalogue, request, slate)
  first = offpolicy.quality_loss(quality, to_come)
  second = offpolicy.value_loss(value, quality, weight)
  return (first.total + second.total) / value.size


class Difference(NamedTuple):
  """How V(s) is learnt: a loss, and the critics that it needs besides."""

  loss: Callable[..., Array]
  critics: tuple[str, ...]


DIFFERENCE = {
  "td": Difference(temporal_difference, ()),
  "disentangled": Difference(disentangled, ("quality",)),
}


def outcome_of(method: Method, played: simulation.Turns, value, beyond, weight):
  """The slates' Outcome, leading dimensions [turns, B], no gradient.

  What follows a slate counts for as much as the policy would still show it:
  lambda is multiplied by min(1, beta) of the next slate (Retrace, arXiv
  1606.02647).

  Args:
    method: static parts.
    played: the sessions.
    value: f32[turns, B], V of the states before the slates.
    beyond: f32[B], V of the states after the last.
    weight: f32[turns, B], beta of the slates.
  """
  # Whoever stays is met again in the next turn; of who left nothing is read.
  later = lambda x, last: jnp.concatenate([x[1:], last[None]])
  ahead = later(value, beyond)
  still = later(jnp.minimum(weight, 1), jnp.ones_like(beyond))
  reward, session = played.per_item.sum(-1), method.session
  bootstrap = values.across_slates(
    reward, played.left, ahead, session.gamma, session.decay * still
  )
  outcome = Outcome(
    reward[..., None], played.per_item[:, :, None], bootstrap[..., None]
  )
  return jax.lax.stop_gradient(outcome)


def importance(method: Method, tree: TokenTree, scores) -> Array:
  """beta f32[B] of slates, one each: 1 where the policy itself chose them."""
  return offpolicy.importance(
    scores.logp.sum((-2, -1)), tree.logp_old.sum(-1), method.replay.clip
  )
