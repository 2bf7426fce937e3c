"""Users of sessions whose behaviour is known in closed form."""

import functools

from flax import struct
import jax
import jax.numpy as jnp

from rerank_rl.config import SessionConfig
from rerank_rl.simulation.session import (
  Answer,
  Environment,
  appended,
  as_is,
  days_away,
  patience_left,
  play,
  pleased,
  so_far,
  wearied,
)
from rerank_rl.types import PAD, Array, Impression, Request
from rerank_rl.world import click_law, trust
from rerank_rl.world import world as world_lib
from rerank_rl.world.world import World

LEAN = 2.0  # Log-odds of an item one deviation ahead in a log's direction.


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
  away = left.astype(jnp.int32)
  return level, Answer(clicked.astype(jnp.float32), clicked, away)


class Tiring(struct.PyTreeNode):
  """The synthetic world and what sessions add to it.

  Attributes:
    world: the truth.
    items: i32[W], catalogue rows that may occur, see `world.stock`.
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
  brought = world_lib.retrieve(
    law.world, law.items, hidden, *jax.random.split(key)
  )
  candidates, scores = world_lib.to_width(law.world.config, *brought)
  return Patience(
    hidden=hidden,
    candidates=candidates,
    scores=scores,
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
    so_far=so_far(state.turn, state.pleasure),
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
  patience = patience_left(config, state.patience, clicked)
  turn = state.turn + 1
  pleasure = pleased(state.pleasure, turn, clicked)
  after = _offered(
    law,
    offer_key,
    hidden=state.hidden,
    history=appended(state.history, jnp.where(clicked, shown, PAD)),
    weary=wearied(config, state.weary, jax.nn.one_hot(topic, len(state.weary))),
    patience=patience,
    pleasure=pleasure,
    turn=turn,
  )
  per_item = jnp.where(clicked, 1, -config.cost) / K
  away = days_away(config, patience, pleasure, day_key)
  return after, Answer(per_item, clicked, away)


@functools.partial(jax.jit, static_argnums=3)
def logged(
  law: Tiring, start: Impression, key: Array, turns: int
) -> Impression:
  """What a platform that explores logs of users: one slate each, at any turn.

  Sessions are played as `impatient` says. Each user's slates lean to items in a
  direction of his own, drawn at random, for what a ranker shows tells of its
  score's noise: an item that it shows and that seems not to fit fits better
  than it seems. Whoever learns from that takes what others show to fit, too.

  Args:
    law: how users behave.
    start: B rows, of the users.
    key: PRNG key.
    turns: of which one is kept, as likely as any other.

  Returns:
    An Impression of B rows; what a user was shown lately takes the place of
    the first of his features.
  """
  play_key, turn_key, lean_key = jax.random.split(key, 3)
  size, z = law.world.config.slate_size, law.world.z
  lean = LEAN * jax.random.normal(lean_key, (len(start.hidden), z.shape[1]))
  draw = jax.vmap(lambda scores, key: world_lib.logged_slate(scores, size, key))

  def act(request, key):
    scores = jnp.einsum("bnd,bd->bn", z[request.candidates], lean)
    scores = jnp.where(request.candidates == PAD, -jnp.inf, scores)
    drawn = draw(scores, jax.random.split(key, len(scores)))
    return drawn[0], drawn

  out = play(impatient(law), act, start, play_key, turns)
  B = len(start.hidden)
  at = jax.random.randint(turn_key, (B,), 0, turns)
  one = lambda x: x[at, jnp.arange(B)]
  slate, propensity = out.record
  request = jax.tree.map(one, out.request)
  lately = request.user
  rest = start.request.user[:, lately.shape[1] :]
  return Impression(
    request=request.replace(user=jnp.concatenate([lately, rest], 1)),
    slate=one(slate),
    feedback=one(out.answer.clicked).astype(propensity.dtype)[..., None],
    propensity=one(propensity),
    hidden=start.hidden,
  )
