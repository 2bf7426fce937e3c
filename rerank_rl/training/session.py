"""How systems of sessions are played, judged and fitted."""

from collections.abc import Callable
import functools
from typing import Any

import jax
import numpy as np

from rerank_rl.data import schema
from rerank_rl.decoding import sample
from rerank_rl.models.policy import Policy
from rerank_rl.rl import agents
from rerank_rl.simulation import session as simulation
from rerank_rl.training import fitting
from rerank_rl.training import state as states
from rerank_rl.training.session_setting import SessionRun
from rerank_rl.training.setting import by_keyed_chunks, local
from rerank_rl.types import Array, Request

SELECT = "discounted_reward"
WATCHED = 1000  # Validation users whom selection asks.

Act = Callable[[Any, Request, Array], Array]  # (params, request, key) -> slate.


def example(setting: SessionRun) -> Request:
  """Two users' first Request (one's twice): parameters' shapes hang on it."""
  few = jax.tree.map(lambda x: x[[0, -1]], setting.dataset.splits["train"])
  return _first(setting.environment("train"), few)


@jax.jit
def _first(environment, start):
  keys = jax.random.split(jax.random.key(0))
  state = jax.vmap(environment.begin)(jax.vmap(environment.meet)(start), keys)
  return jax.vmap(environment.request)(state)


def play(policy: Policy, turns: int, params, catalogue, law, start, key):
  """Sessions of B users whom a policy shows its samples.

  Args:
    policy: pure functions.
    turns: slates a user.
    params: the policy's.
    catalogue: the Catalogue.
    law: the users' behaviour, an Environment.
    start: B users.
    key: PRNG key.

  Returns:
    Turns, whose record is the TokenTree of each slate.
  """

  def act(request, key):
    game = sample.prepare(policy, params, catalogue, request)
    tree = sample.chains(policy, params, game, key, 1)
    return tree.slate[:, 0], tree

  return simulation.play(law, act, start, key, turns)


def system(
  function: Callable[..., Array], static: Any, *arrays: Any
) -> Callable[..., Array]:
  """A pytree that calls function(static, *arrays, ...), as an Act is called."""
  return jax.tree_util.Partial(states.bound(function, static), *arrays)


def greedy(setting: SessionRun) -> Act:
  """The configured policy's greedy slates as a system."""
  return system(_greedy, setting.policy, setting.catalogue)


def _greedy(policy, catalogue, params, request: Request, key: Array) -> Array:
  del key
  return sample.greedy(policy, params, catalogue, request)


# Weights of the ranker's score and of chance, as `by_weights` reads them.
RANKED, RANDOM = np.array([[1, 0], [0, 1]], np.float32)


def by_weights(
  slots: int, params: Array, request: Request, key: Array
) -> Array:
  """Order by w_0 score + w_1 u i32[B, K], u uniform and anew for every slate.

  Systems that differ in w f32[2] alone are one program.
  """
  noise = jax.random.uniform(key, request.candidates.shape)
  scores = params[0] * request.scores + params[1] * noise
  return agents.top(request, scores, slots)


# Jitted once a module, or every system would compile anew.
@functools.partial(jax.jit, static_argnums=(0, 1))
def _played(gamma, turns, act, params, environment, start, key):
  play = lambda request, key: (act(params, request, key), ())
  out = simulation.play(environment, play, start, key, turns)
  return simulation.totals(out, gamma)


def judge(
  setting: SessionRun,
  split: str,
  act: Act,
  params: Any,
  most: int = 0,
  environment: simulation.Environment | None = None,
) -> dict[str, np.ndarray]:
  """What a split's users were worth to a system, f32[n] a figure.

  Args:
    setting: with semantic IDs.
    split: whose users, and items, are met.
    act: the system, a pytree.
    params: its parameters.
    most: users asked, evenly spaced; 0 = all.
    environment: how they behave; None = the split's.

  Returns:
    See `simulation.session.totals`.
  """
  config, starts = setting.config.session, setting.dataset.splits[split]
  count = schema.num_rows(starts)
  few = np.linspace(0, count - 1, min(most or count, count)).astype(np.int64)
  environment = environment or setting.environment(split)
  params = local(params)

  def play(rows, key):
    return _played(
      config.gamma, config.turns, act, params, environment, rows, key
    )

  key = setting.key("judge/" + split)
  return by_keyed_chunks(play, key, schema.take(starts, few))


def watch(setting: SessionRun, act: Act, part: str = ""):
  """(evaluate, select) for `loop.fit`: sessions of validation users.

  Args:
    setting: with semantic IDs.
    act: the system.
    part: of the parameters learnt, which it reads; "" = all.
  """

  def evaluate(params) -> dict[str, float]:
    own = params[part] if part else params
    worth = judge(setting, "valid", act, own, WATCHED)
    return {name: float(value.mean()) for name, value in worth.items()}

  return evaluate, (SELECT, True)


def run(
  setting: SessionRun,
  stage: str,
  fit: Callable[[SessionRun], None],
  *parts: Any,
) -> SessionRun:
  """`fitting.run` of what all stages learn that learn the run's system.

  Args:
    setting: the run's.
    stage: whose artifact it is.
    fit: leaves the artifact where it is missing.
    *parts: what it depends on besides the stages before, the policy's and the
      sessions' numbers.
  """
  config = setting.config
  before = {k: own for k, own in setting.identity.items() if k != stage}
  return fitting.run(
    setting,
    stage,
    config.name,
    fit,
    before,
    config.policy,
    *parts,
    config.rl_train,
    config.session,
  )


def fit(setting: SessionRun, stage: str, step, state, watch) -> None:
  """Fits what a stage learns from users, and keeps it.

  Args:
    setting: the run's.
    stage: whose folder, key and title it gets.
    step: (catalogue, environment, state, users, key) -> (state, figures).
    state: the initial state.
    watch: what `watch` returned.
  """
  train = setting.config.rl_train
  own = jax.tree_util.Partial(
    step, setting.catalogue, setting.environment("train")
  )
  batches = fitting.local_batches(setting, train.batch_size, stage)
  fitting.fit(setting, stage, state, own, batches, train, watch, since=1)


def figures(answer: simulation.Answer) -> dict[str, tuple[Array, int]]:
  """What users were worth and how many left, as (sum, count)."""
  left = answer.left
  return {
    "reward": (answer.per_item.sum(), left.size),
    "left": (left.sum(), left.size),
  }
