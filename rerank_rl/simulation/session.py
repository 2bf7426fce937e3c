"""Sessions: a user meets one slate after another until he leaves.

An environment is a few pure functions of one user, mapped over users and
scanned over turns. Whoever leaves starts anew in the next turn, but what he
left from is kept as his own last state: no other user's value may stand in
for what came after him.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from flax import struct
import jax
import jax.numpy as jnp

from rerank_rl.config import SessionConfig
from rerank_rl.types import PAD, Array, Request


class Environment(NamedTuple):
  """Pure functions of one user; pytrees, so that jit sees their arrays.

  Attributes:
    meet: (start) -> what `begin` reads of a row of the data's users, found
      once however many sessions he has.
    begin: (met, key) -> state, a session's first.
    request: (state) -> Request without leading dimension.
    react: (state, slate i32[K] of positions, key) -> (the state after it, an
      Answer without leading dimension).
  """

  meet: Callable
  begin: Callable
  request: Callable
  react: Callable


class Answer(struct.PyTreeNode):
  """What B users did with a slate each.

  Attributes:
    per_item: f32[B, K], each slot's reward.
    clicked: bool[B, K], the slots that he did not pass over.
    away: i32[B], days that he stays away after it; 0 where he does not leave.
  """

  per_item: Array
  clicked: Array
  away: Array

  @property
  def left(self) -> Array:
    """bool[B], whether he left after it."""
    return self.away > 0


class Turns(struct.PyTreeNode):
  """What B users did in `turns` turns; leading dimensions [turns, B].

  Attributes:
    request: the Request before each slate.
    after: the same user's Request after it, also where he left.
    answer: the Answer to it.
    record: what `act` noted of each turn.
  """

  request: Request
  after: Request
  answer: Answer
  record: Any

  @property
  def left(self) -> Array:
    """bool[turns, B], whether he left after this slate."""
    return self.answer.left

  @property
  def per_item(self) -> Array:
    """f32[turns, B, K], each slot's reward."""
    return self.answer.per_item


def play(
  environment: Environment,
  act: Callable[[Request, Array], tuple[Array, Any]],
  start: Any,
  key: Array,
  turns: int,
) -> Turns:
  """Plays sessions; one that ends begins anew with the same user.

  Args:
    environment: its functions.
    act: (Request of B users, key) -> (slate i32[B, K], anything to note).
    start: B users, leading dimension B.
    key: PRNG key.
    turns: slates a user.

  Returns:
    Turns.
  """
  B = jax.tree.leaves(start)[0].shape[0]
  request = jax.vmap(environment.request)
  begin = jax.vmap(environment.begin)
  met = jax.vmap(environment.meet)(start)

  def turn(state, key):
    act_key, react_key, begin_key = jax.random.split(key, 3)
    now = request(state)
    slate, record = act(now, act_key)
    keys = jax.random.split(react_key, B)
    state, answer = jax.vmap(environment.react)(state, slate, keys)
    fresh = begin(met, jax.random.split(begin_key, B))
    chosen = lambda new, old: jnp.where(
      answer.left.reshape(B, *(1,) * (old.ndim - 1)), new, old
    )
    following = jax.tree.map(chosen, fresh, state)
    return following, Turns(now, request(state), answer, record)

  first, rest = jax.random.split(key)
  state = begin(met, jax.random.split(first, B))
  _, out = jax.lax.scan(turn, state, jax.random.split(rest, turns))
  return out


def flat(played: Any) -> Any:
  """Leaves [turns, B, ...] as [turns * B, ...]; a dimension may be 0."""
  return jax.tree.map(
    lambda x: x.reshape(x.shape[0] * x.shape[1], *x.shape[2:]), played
  )


def met(left: Array) -> Array:
  """Which slates bool[turns, B] users met in their first sessions.

  Args:
    left: bool[turns, B], who left after which slate.
  """
  stayed = jnp.cumprod(1 - left.astype(jnp.int32), axis=0)
  return jnp.concatenate([jnp.ones_like(stayed[:1]), stayed[:-1]]) > 0


def totals(played: Turns, gamma: float) -> dict[str, Array]:
  """What the users' first sessions were worth.

  Args:
    played: from `play`; sessions that are not over by then are cut.
    gamma: discount a slate.

  Returns:
    f32[B] each: "total_reward"; "discounted_reward", sum of gamma^t r_t;
    "slate_reward", the mean of a slate; and "return_days", how long he stays
    away after it, 0 if he is still there in the end.
  """
  here = met(played.left)
  reward = jnp.where(here, played.per_item.sum(-1), 0)
  discount = gamma ** jnp.arange(len(reward), dtype=reward.dtype)
  total = reward.sum(0)
  return {
    "total_reward": total,
    "discounted_reward": (discount[:, None] * reward).sum(0),
    "slate_reward": total / here.sum(0),
    "return_days": (here * played.answer.away).sum(0).astype(total.dtype),
  }


def as_is(start: Any) -> Any:
  """The `meet` of users about whom nothing is dear to find out."""
  return start


def patience_left(
  config: SessionConfig, patience: Array, clicked: Array
) -> Array:
  """patience - 1 - impatience * (1 - clicks / K), after one slate bool[K]."""
  return patience - 1 - config.impatience * (1 - clicked.mean())


def pleased(pleasure: Array, turn: Array, clicked: Array) -> Array:
  """Share of a session's slots that were clicked, f32[].

  Args:
    pleasure: f32[], the share before this slate.
    turn: i32[], slates up to and with this one.
    clicked: bool[K].
  """
  return pleasure + (clicked.mean() - pleasure) / turn


def so_far(turn: Array, pleasure: Array) -> Array:
  """`Request.so_far` f32[2] after `turn` slates, a share of slots clicked."""
  return jnp.stack([turn, turn * (1 - pleasure)])


def wearied(config: SessionConfig, weary: Array, shown: Array) -> Array:
  """rest * weary + mean of what the slate's items show, f32[topics].

  Args:
    config: whose `rest` it is.
    weary: f32[topics], how much of each topic a user was shown lately.
    shown: f32[K, topics], the topics of what he is shown now.
  """
  return config.rest * weary + shown.mean(0)


def days_away(
  config: SessionConfig, patience: Array, pleasure: Array, key: Array
) -> Array:
  """How long a user stays away after a slate, days i32[]; 0: not at all.

  He leaves when patience falls below 1, and on each day comes back with chance

    habit + (1 - habit) * fondness * pleasure.

  Args:
    config: whose `habit` and `fondness` they are.
    patience: f32[], what is left of it.
    pleasure: f32[], share of the session's slots that he clicked.
    key: PRNG key.
  """
  chance = config.habit + (1 - config.habit) * config.fondness * pleasure
  days = jax.random.geometric(key, chance, dtype=jnp.int32)
  return jnp.where(patience < 1, days, 0)


def appended(history: Array, items: Array) -> Array:
  """The last H of a history i32[H] and what follows it i32[K], PAD first."""
  both = jnp.concatenate([history, items])
  # Padding sorts to the front, all else keeps its order.
  order = jnp.argsort(both != PAD, stable=True)
  return both[order][-len(history) :]
