"""Users of sessions whose behaviour was learnt from a log."""

from collections.abc import Callable

from flax import struct
import jax
import jax.numpy as jnp

from rerank_rl.config import SessionConfig, WorldConfig
from rerank_rl.models.response import Memory, ResponseModel
from rerank_rl.simulation.session import (
  Answer,
  Environment,
  appended,
  days_away,
  patience_left,
  pleased,
  so_far,
  wearied,
)
from rerank_rl.types import PAD, Array, Impression, Request
from rerank_rl.world import world as world_lib

FADING = 0.95  # What a click leaves of the weight of those before it.
_ROWS = 256  # Of a log, read at a time.


class Ranker(struct.PyTreeNode):
  """The world's upstream ranker, which takes users for what a log tells.

  Attributes:
    regressors: f32[M, R]; their products with a user's last R features are
      scores, but for noise and a constant.
    items: i32[W], catalogue rows that may occur, see `world.stock`.
    config: the world's numbers.
  """

  regressors: Array
  items: Array
  config: WorldConfig = struct.field(pytree_node=False)

  def best(self, user: Array, key: Array) -> tuple[Array, Array]:
    """Candidates i32[N], PAD where there are fewer, and scores f32[N]."""
    taste = user[-self.regressors.shape[1] :]
    score = lambda rows: self.regressors[rows] @ taste
    keys = jax.random.split(key)
    found = world_lib.retrieve_by(self.config, self.items, score, *keys)
    return world_lib.to_width(self.config, *found)


class Learnt(struct.PyTreeNode):
  """A fitted response model over a catalogue, and what sessions add to it.

  Attributes:
    params: of the model.
    scale: f32[S], calibration: logits are multiplied by it,
    shift: f32[S], and this is added.
    table: f32[M, d], the model's reading of every item.
    vectors: f32[M, E], unit vectors by which the ranker compares items.
    offers: i32[P, turns, N], catalogue rows that retrieval brings, turn by
      turn, in one of P ways; distinct within a turn.
    ranker: what brings candidates in place of `offers`, or None.
    topics: f32[M, T], what each item that is shown adds to a user's first T
      features, which count what he was shown lately; None: none do.
    model: its module.
    config: the session's numbers.
    weights: S floats, each signal's part in the reward.
  """

  params: dict
  scale: Array
  shift: Array
  table: Array
  vectors: Array
  offers: Array
  ranker: Ranker | None
  topics: Array | None
  model: ResponseModel = struct.field(pytree_node=False)
  config: SessionConfig = struct.field(pytree_node=False)
  weights: tuple[float, ...] = struct.field(pytree_node=False)

  def ask(self, method: str, *args) -> Array:
    """Calls a method of the model, in evaluation: there is no dropout."""
    return self.model.apply({"params": self.params}, *args, method=method)

  def chances(self, state: "Visitor", shown: Array) -> Array:
    """P(signal) f32[K, S] of the items i32[K] that a user is shown.

    sigmoid(scale_s x_s(user, i, above) + shift_s)
    """
    slates = self.table[shown][None, None]
    logits = self.ask("respond", state.memory.state, state.profile, slates)
    return jax.nn.sigmoid(logits[0, 0] * self.scale[None] + self.shift[None])


def law_of(
  model: ResponseModel, params: dict, features: Array, vectors: Array, **rest
) -> Learnt:
  """A `Learnt` whose catalogue is read once.

  Args:
    model: the module.
    params: of the model.
    features: f32[M, F], the catalogue's.
    vectors: f32[M, E], of any length.
    **rest: the other fields.
  """
  return Learnt(
    params=params,
    table=model.apply({"params": params}, features, method="table"),
    vectors=unit(vectors),
    model=model,
    **rest,
  )


class Visitor(struct.PyTreeNode):
  """A user within a session.

  Attributes:
    user: f32[U], his features.
    profile: f32[1, d], the model's reading of them.
    history: i32[H], catalogue rows clicked, oldest first.
    memory: the model's reading of them, of one user.
    taste: f32[E], sum of their vectors, the newest weighing most.
    patience: f32[], slates that he would still bear without a click.
    pleasure: f32[], share of the session's slots that he clicked.
    way: i32[], which of the P ways candidates come to him; the ranker's seed.
    turn: i32[].
  """

  user: Array
  profile: Array
  history: Array
  memory: Memory
  taste: Array
  patience: Array
  pleasure: Array
  way: Array
  turn: Array


def learnt(law: Learnt) -> Environment:
  """Users who click as `law.chances` says and lose patience.

    reward of a slot = (sum_s w_s signal_s - cost * no click) / K,

  signals drawn apart, the first of them the click; patience as
  `session.patience_left` and days away as `session.days_away` say. Clicked
  items join his history, and what he is shown his features, where the platform
  keeps count of it. Candidates are the ranker's, or `law.offers`, scored by
  their likeness to what he clicked.
  """
  bind = lambda function: jax.tree_util.Partial(function, law)
  return Environment(bind(_meet), bind(_begin), bind(_request), bind(_react))


def _meet(law: Learnt, start: Impression) -> Visitor:
  request = start.request
  rows, past = jnp.maximum(request.history, 0), request.history != PAD
  memory = law.ask(
    "extend", law.ask("blank", 1), law.table[rows][None], past[None]
  )
  taste = jnp.zeros_like(law.vectors[0])
  return Visitor(
    user=request.user,
    profile=law.ask("who", request.user[None]),
    history=request.history,
    memory=memory,
    taste=_leaning(taste, law.vectors[rows], past),
    patience=jnp.asarray(law.config.patience, jnp.float32),
    pleasure=jnp.float32(0),
    way=jnp.int32(0),
    turn=jnp.int32(0),
  )


def _begin(law: Learnt, met: Visitor, key: Array) -> Visitor:
  ways = len(law.offers) if law.ranker is None else 2**31 - 1
  return met.replace(way=jax.random.randint(key, (), 0, ways))


def on_log(
  ask: Callable[[Visitor, Array], Array], law: Learnt, log: Impression
) -> Array:
  """What is said of the slates that a log of n rows shows.

  Args:
    ask: (user, items i32[K] that he is shown), such as `law.chances`.
    law: how users are read.
    log: n rows.

  Returns:
    [n, ...], what `ask` returns; without meaning where a slate is PAD.
  """

  def one(row):
    shown = row.request.candidates[jnp.maximum(row.slate, 0)]
    return ask(_meet(law, row), shown)

  return jax.lax.map(one, log, batch_size=_ROWS)


def unit(vectors: Array) -> Array:
  """Vectors f32[M, E] of any length, of length 1; those of zeros stay."""
  length = jnp.linalg.norm(vectors, axis=1, keepdims=True)
  return vectors / jnp.maximum(length, 1e-6)


def cosine(vectors: Array, other: Array) -> Array:
  """Cosines f32[K] of unit vectors f32[K, E] to f32[E]; 0 to one of zeros."""
  length = jnp.sqrt(jnp.maximum((other**2).sum(), 1e-12))
  return vectors @ other / length


def _offered(law: Learnt, state: Visitor) -> tuple[Array, Array]:
  """Candidates i32[N] and their scores f32[N].

  Of `offers` whoever stays beyond the last turn meets the first again.
  """
  if law.ranker is not None:
    key = jax.random.fold_in(jax.random.key(state.way), state.turn)
    return law.ranker.best(state.user, key)
  candidates = law.offers[state.way, state.turn % law.offers.shape[1]]
  scores = cosine(law.vectors[candidates], state.taste)
  return candidates, jnp.where(candidates == PAD, 0, scores)


def _request(law: Learnt, state: Visitor) -> Request:
  candidates, scores = _offered(law, state)
  return Request(
    user=state.user,
    history=state.history,
    candidates=candidates,
    scores=scores,
    size=jnp.int32(law.model.slots),
    so_far=so_far(state.turn, state.pleasure),
  )


def _react(law: Learnt, state: Visitor, slate: Array, key: Array):
  shown = _offered(law, state)[0][slate]
  signal_key, day_key = jax.random.split(key)
  chance = law.chances(state, shown)
  signal = jax.random.uniform(signal_key, chance.shape) < chance
  clicked = signal[:, 0]
  if law.topics is not None:
    count = law.topics.shape[1]
    lately = wearied(law.config, state.user[:count], law.topics[shown])
    user = jnp.concatenate([lately, state.user[count:]])
    state = state.replace(user=user, profile=law.ask("who", user[None]))
  worth = signal.astype(chance.dtype) @ jnp.asarray(law.weights, chance.dtype)
  per_item = (worth - law.config.cost * ~clicked) / len(slate)
  patience = patience_left(law.config, state.patience, clicked)
  turn = state.turn + 1
  pleasure = pleased(state.pleasure, turn, clicked)
  after = state.replace(
    history=appended(state.history, jnp.where(clicked, shown, PAD)),
    memory=law.ask(
      "extend", state.memory, law.table[shown][None], clicked[None]
    ),
    taste=_leaning(state.taste, law.vectors[shown], clicked),
    patience=patience,
    pleasure=pleasure,
    turn=turn,
  )
  away = days_away(law.config, patience, pleasure, day_key)
  return after, Answer(per_item, clicked, away)


def _leaning(taste: Array, vectors: Array, clicked: Array) -> Array:
  """The taste f32[E] after items f32[Q, E], some of which were clicked."""
  number = jnp.cumsum(clicked)
  share = jnp.where(clicked, FADING ** (number[-1] - number), 0)
  return FADING ** number[-1] * taste + share @ vectors
