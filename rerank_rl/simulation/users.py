"""Users of sessions whose behaviour is known in closed form."""

from flax import struct
import jax
import jax.numpy as jnp

from rerank_rl.config import SessionConfig
from rerank_rl.simulation.session import (
  Environment,
  appended,
  as_is,
  days_away,
  patience_left,
  pleased,
)
from rerank_rl.types import PAD, Array, Impression, Request
from rerank_rl.world import click_law, trust
from rerank_rl.world import world as world_lib
from rerank_rl.world.world import World


def trusting(world: trust.TrustWorld) -> Environment:
  """The world that is solved exactly; a user starts at any level of trust."""
  return Environment(
    jax.tree_util.Partial(as_is),
    jax.tree_util.Partial(_any_level),
    jax.tree_util.Partial(trust.request),
    jax.tree_util.Partial(_trust_react, world),
  )


def _any_level(start: Array, key: Array) -> Array:
  del key
  return start


def _trust_react(world, level, slate, key):
  # Candidates are all items in their order: positions are items.
  level, clicked, left = trust.react(world, level, slate, key)
  # How long he stays away is no part of what is solved.
  return level, clicked.astype(jnp.float32), left.astype(jnp.int32)


class Tiring(struct.PyTreeNode):
  """The synthetic world and what sessions add to it.

  Attributes:
    world: the truth.
    items: i32[W], catalogue rows that may occur, in `world.shuffle`'s order.
    config: the session's numbers.
  """

  world: World
  items: Array
  config: SessionConfig = struct.field(pytree_node=False)


class Patience(struct.PyTreeNode):
  """A user of the synthetic world within a session.

  Attributes:
    hidden: f32[D], what he likes.
    history: i32[H], catalogue rows clicked, oldest first.
    weary: f32[topics], how much of each topic he was shown lately.
    patience: f32[], slates that he would still bear without a click.
    pleasure: f32[], share of the session's slots that he clicked.
    turn: i32[].
    candidates: i32[N], what the ranker brings for the next slate.
    scores: f32[N], its scores.
  """

  hidden: Array
  history: Array
  weary: Array
  patience: Array
  pleasure: Array
  turn: Array
  candidates: Array
  scores: Array


def impatient(law: Tiring) -> Environment:
  """Users of the synthetic world who tire of topics and lose patience.

    rel' = rel - weariness * weary[topic],
    weary' = rest * weary + share of the topic in the slate,

  patience as `session.patience_left` and days away as `session.days_away` say.
  Clicks follow the click law with rel'. A slot's reward is
  (click - cost * no click) / K.
  """
  bind = lambda function: jax.tree_util.Partial(function, law)
  return Environment(
    jax.tree_util.Partial(as_is), bind(_begin), bind(_request), bind(_react)
  )


def _begin(law: Tiring, start: Impression, key: Array) -> Patience:
  zero = jnp.zeros(len(law.world.centres), start.hidden.dtype)
  return _offered(
    law,
    key,
    hidden=start.hidden,
    history=start.request.history,
    weary=zero,
    patience=jnp.asarray(law.config.patience, zero.dtype),
    pleasure=zero[0],
    turn=jnp.int32(0),
  )


def _offered(law: Tiring, key, *, hidden, **known) -> Patience:
  """The user with what the upstream ranker brings for his next slate."""
  candidates, scores = world_lib.retrieve(
    law.world, law.items, hidden, *jax.random.split(key)
  )
  short = (0, law.world.config.num_candidates - len(candidates))
  return Patience(
    hidden=hidden,
    candidates=jnp.pad(candidates, short, constant_values=PAD),
    scores=jnp.pad(scores, short),
    **known,
  )


def _request(law: Tiring, state: Patience) -> Request:
  """What he was shown lately is the platform's to know; patience is not."""
  return Request(
    user=state.weary,
    history=state.history,
    candidates=state.candidates,
    scores=state.scores,
    size=jnp.int32(law.world.config.slate_size),
  )


def _react(law: Tiring, state: Patience, slate: Array, key: Array):
  world, config = law.world, law.config
  click_key, offer_key, day_key = jax.random.split(key, 3)
  K = len(slate)
  shown = state.candidates[slate]
  topic = world.topic[shown]
  rel = world_lib.relevance(world, state.hidden, shown)
  rel -= config.weariness * state.weary[topic]
  clicked = click_law.sample_clicks(
    click_key, world.law, rel, world.z[shown], jnp.ones(K, bool)
  )
  share = jnp.zeros_like(state.weary).at[topic].add(1 / K)
  patience = patience_left(config, state.patience, clicked)
  turn = state.turn + 1
  pleasure = pleased(state.pleasure, turn, clicked)
  after = _offered(
    law,
    offer_key,
    hidden=state.hidden,
    history=appended(state.history, jnp.where(clicked, shown, PAD)),
    weary=config.rest * state.weary + share,
    patience=patience,
    pleasure=pleasure,
    turn=turn,
  )
  per_item = jnp.where(clicked, 1, -config.cost) / K
  away = days_away(config, patience, pleasure, day_key)
  return after, per_item, away
