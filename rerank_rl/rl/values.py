"""Values along paths, and the returns that they are held against."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rerank_rl.decoding import legality, sample
from rerank_rl.decoding.value_guided import Value
from rerank_rl.models.policy import Policy
from rerank_rl.rl import credit, learner
from rerank_rl.rl.objectives import Loss
from rerank_rl.types import Array, Outcome


class PathValues(NamedTuple):
  """A critic's values along paths; 0 where they are not real.

  Attributes:
    chosen: f32[B, G, T], of the child that the path takes at each state.
    mean: f32[B, G, T], V of the state: its children's mean under the policy.
    real: bool[B, G, T], False at padding, and at states whose value is not
      read.
  """

  chosen: Array
  mean: Array
  real: Array


def along(
  policy: Policy,
  params,
  value: Value,
  game: sample.Game,
  slate: Array,
  rules: Sequence[legality.Rule] = (),
) -> PathValues:
  """Values of slates token by token; a value sees no later token.

  Args:
    policy: pure functions.
    params: its parameters.
    value: the critic.
    game: from `sample.prepare` with the same parameters.
    slate: i32[B, G, K], positions, PAD where empty.
    rules: the rollout's business rules.

  Returns:
    PathValues.
  """
  trie, prompt = game
  ranks = sample.ranks_of(trie, slate)
  rank, slot, alive = learner.walk(trie, ranks, rules)
  real = rank >= 0
  left = legality.length(trie)[:, None] - slot

  def at(state, level):
    items = legality.under(trie, alive, rank, level)
    mass = legality.masses(policy.logits(params, prompt, state, level), items)
    worth = value(prompt, state, level, left)
    of_runs = legality.run_mean(trie, worth, mass, level)
    chosen = jnp.take_along_axis(
      of_runs, jnp.maximum(rank, 0)[..., None], axis=-1
    )[..., 0]
    tiny = jnp.finfo(mass.dtype).tiny
    mean = (worth * mass).sum(-1) / jnp.maximum(mass.sum(-1), tiny)
    return PathValues(
      jnp.where(real, chosen, 0), jnp.where(real, mean, 0), real
    )

  return learner.over_levels(at, policy.states(params, prompt, ranks))


def lambda_returns(values: PathValues, outcome: Outcome, decay: float) -> Array:
  """TD(lambda) targets of the chosen children: what is still to come.

    G_t = r_t + (1 - decay) V(s_{t+1}) + decay G_{t+1}

  with r_t the part of the slot that token t completes, else 0, and the
  outcome's bootstrap behind the last token. Within a slate nothing is
  discounted. States that are not real are looked through: G goes on from them.

  Args:
    values: along the paths.
    outcome: of the same slates.
    decay: lambda; 1 is the reward still to come, 0 looks one token ahead.

  Returns:
    f32[B, G, T], no gradient.
  """

  def back(after, xs):
    mean, real, reward = xs
    out = reward + after
    here = (1 - decay) * mean + decay * out
    return jnp.where(real, here, out), out

  last = lambda x: jnp.moveaxis(x, -1, 0)
  rewards = credit.on_tokens(outcome.per_item, values.mean.shape[-1])
  xs = last(values.mean), last(values.real), last(rewards)
  kind = jnp.result_type(outcome.bootstrap, values.mean)
  end = outcome.bootstrap.astype(kind)
  _, out = jax.lax.scan(back, end, xs, reverse=True)
  return jax.lax.stop_gradient(jnp.moveaxis(out, 0, -1))


def advantages(values: PathValues, outcome: Outcome, decay: float) -> Array:
  """Generalised advantage estimates of the tokens (Schulman et al. 2016).

    A_t = sum_{i >= t} decay^(i - t) [r_i + V(s_{i+1}) - V(s_i)] = G_t - V(s_t)

  with V = the bootstrap behind the last token: within a slate nothing is
  discounted.

  Args:
    values: along the paths.
    outcome: of the same slates.
    decay: lambda.

  Returns:
    f32[B, G, T], 0 at padding, no gradient.
  """
  out = lambda_returns(values, outcome, decay) - values.mean
  return jax.lax.stop_gradient(jnp.where(values.real, out, 0))


def whole(value: Array, outcome: Outcome, values: PathValues) -> Array:
  """One advantage for all tokens of a slate (A2C): r + bootstrap - V(s).

  Args:
    value: f32[B], V of the states before the slates.
    outcome: of the slates.
    values: along the paths, for their padding alone.

  Returns:
    f32[B, G, T], 0 at padding, no gradient.
  """
  gain = outcome.reward + outcome.bootstrap - value[:, None]
  return jax.lax.stop_gradient(jnp.where(values.real, gain[..., None], 0))


def across_slates(
  reward: Array, left: Array, ahead: Array, gamma: float, decay: Array | float
) -> Array:
  """What comes after each slate of a session: `Outcome.bootstrap`.

    b_t = gamma (1 - left_t) [(1 - decay) V(s'_t) + decay (r_{t+1} + b_{t+1})]

  with V(s') alone behind the last turn. Discounting acts here alone, on the
  edge that ends a slate; after who has left comes nothing, whoever begins in
  the next turn.

  Args:
    reward: f32[turns, B].
    left: bool[turns, B].
    ahead: f32[turns, B], V of each user's own state after the slate.
    gamma: discount a slate.
    decay: lambda from slate to slate, or f32[turns, B] of what follows each;
      0 is TD(0).

  Returns:
    f32[turns, B], no gradient.
  """
  decay = jnp.broadcast_to(decay, reward.shape)

  def back(following, xs):
    reward, left, ahead, decay = xs
    mixed = (1 - decay) * ahead + decay * following
    here = jnp.where(left, 0, gamma * mixed)
    return reward + here, here

  xs = reward, left, ahead, decay
  _, out = jax.lax.scan(back, ahead[-1], xs, reverse=True)
  return jax.lax.stop_gradient(out)


def temporal_difference(
  values: PathValues,
  outcome: Outcome,
  decay: float,
  weight: Array | float = 1.0,
) -> Loss:
  """(Q(s, a) - sg G)^2, the mean over rollouts of the sum over tokens.

  Args:
    values: along the paths.
    outcome: of the same slates.
    decay: lambda.
    weight: of each slate, f32[B, G, 1].
  """
  target = lambda_returns(values, outcome, decay)
  square = jnp.where(values.real, weight * (values.chosen - target) ** 2, 0)
  G = outcome.reward.shape[1]
  return Loss(square.sum() / G, values.real.sum() / G)
