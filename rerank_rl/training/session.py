"""What the session task's stages share: users, the policy, how it is judged."""

from collections.abc import Callable, Mapping
import dataclasses
import functools
import pathlib
from types import MappingProxyType
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from rerank_rl.config import Config, ConfigError, SessionConfig
from rerank_rl.data import schema, sessions, synthetic
from rerank_rl.decoding import sample
from rerank_rl.models.hpn import LevelCritic
from rerank_rl.models.policy import Policy, make_policy
from rerank_rl.models.prefix_lm import Sizes
from rerank_rl.models.response import ResponseModel
from rerank_rl.rl import agents
from rerank_rl.simulation import ensemble, learnt, users
from rerank_rl.simulation import session as simulation
from rerank_rl.training import fitting
from rerank_rl.training.setting import CHUNK, Run, by_chunks, local, opened
from rerank_rl.types import Array, Impression, Request
from rerank_rl.world import trust

SELECT = "discounted_reward"
WATCHED = 1000  # Validation users whom selection asks.

Act = Callable[[Any, Request, Array], Array]  # (params, request, key) -> slate.


@dataclasses.dataclass(frozen=True, kw_only=True)
class SessionRun(Run):
  """A run on sessions."""

  dataset: sessions.Sessions
  # Learnt from the log; "a" in training and validation, "b" in the test.
  users: Mapping[str, learnt.Learnt] = dataclasses.field(default_factory=dict)

  @property
  def sizes(self) -> Sizes:
    """Static sizes of the data."""
    data, tokenizer = self.dataset, self.config.tokenizer
    return Sizes(
      tokenizer.codes,
      tokenizer.levels,
      data.slate_size,
      data.history,
      data.candidates,
    )

  @property
  def policy(self) -> Policy:
    """The configured policy."""
    return make_policy(self.config.policy, self.sizes)

  @property
  def critic(self) -> LevelCritic:
    """The critic of every level, as wide as the policy."""
    config = self.config
    return LevelCritic(config.policy, self.sizes, config.session.unit)

  def environment(self, split: str) -> simulation.Environment:
    """How a split's users behave.

    As is learnt from the log where the run has such users: the test's as "b"
    says, others as "a". Else as is known in closed form.
    """
    if self.users:
      return learnt.learnt(self.users["b" if split == "test" else "a"])
    return KNOWN[self.config.data.name](self, split)


def _ranker(setting: SessionRun, name: str) -> learnt.Ranker | None:
  """What brings the users of model `name` candidates, if it is known."""
  regressors = setting.dataset.regressors
  if regressors is None:
    return None
  items = _tiring(setting, "test" if name == "b" else "train").items
  world = setting.config.world
  return learnt.Ranker(jnp.asarray(regressors, jnp.float32), items, world)


def _responding(setting: SessionRun, name: str) -> learnt.Learnt:
  """Users who behave as the response model `name` says."""
  model, fitted = setting.judges[name]
  data = setting.dataset
  return learnt.law_of(
    cast(ResponseModel, model),
    jax.tree.map(lambda x: x[0], fitted.params),
    setting.catalogue.features,
    jnp.asarray(data.vectors),
    scale=fitted.scale,
    shift=fitted.shift,
    offers=jnp.asarray(data.offers),
    ranker=_ranker(setting, name),
    topics=None if data.topics is None else jnp.asarray(data.topics),
    config=setting.config.session,
    weights=setting.config.data.weights or data.weights,
  )


def _voting(setting: SessionRun, name: str) -> learnt.Learnt:
  """Users who behave as an ensemble on the response model `name` says."""
  law = _responding(setting, name)
  return ensemble.fit(law, setting.catalogue.features, log_of(setting, name))


# Users learnt from a log, by `config.session.users`.
LEARNT: Mapping[str, Callable[[SessionRun, str], learnt.Learnt]] = (
  MappingProxyType({"response": _responding, "ensemble": _voting})
)


def _tiring(setting: SessionRun, split: str) -> users.Tiring:
  """How the world's users behave; but for the test's, who meet warm items."""
  world = synthetic.world_of(setting.config)
  order = np.asarray(world.shuffle)
  if split != "test":
    order = order[np.asarray(world.warm)[order]]
  return users.Tiring(world, jnp.asarray(order), setting.config.session)


def _impatient(setting: SessionRun, split: str) -> simulation.Environment:
  return users.impatient(_tiring(setting, split))


def _trusting(setting: SessionRun, split: str) -> simulation.Environment:
  del split
  return users.trusting(trust.build(synthetic.seed_of(setting.config)))


# Data whose users' behaviour is known in closed form.
KNOWN = {"world": _impatient, "trust": _trusting}


def _at_some_turn(setting: SessionRun, name: str, rows: Impression):
  """The world's users in the midst of sessions; keys hang on the name."""
  law, turns = _tiring(setting, name), setting.config.session.turns
  log = lambda rows, key: users.logged(law, rows, key, turns)
  return _by_chunks(log, setting.key("log/" + name), rows)


def _by_chunks(function: Callable, key: Array, rows: Any) -> Any:
  """`setting.by_chunks` of function(rows, key), another key a chunk."""

  def chunk(rows, number):
    return function(rows, jax.random.fold_in(key, number[0]))

  numbers = np.arange(schema.num_rows(rows), dtype=np.uint32)
  return by_chunks(chunk, CHUNK, rows, numbers)


# Data whose log is no record of what was shown before.
PLAYED = {"world": _at_some_turn}


def log_of(setting: SessionRun, name: str) -> Impression:
  """What the users of a group, "a" or "b", or of a split met and did."""
  data = setting.dataset
  rows = {**data.splits, **data.logs}[name]
  play = PLAYED.get(setting.config.data.name)
  return play(setting, name, rows) if play else rows


def start(config: Config, root: pathlib.Path, mesh=None) -> SessionRun:
  """Loads the users and opens a run.

  Args:
    config: the run's.
    root: folder of the stages' artifacts.
    mesh: devices; None = all.

  Returns:
    A SessionRun without artifacts.
  """
  loader = sessions.SESSIONS[config.data.name]
  setting = opened(SessionRun, loader, config, root, mesh)
  world_seed = synthetic.seed_of(config)
  return setting.identified("data", config.data, config.world, world_seed)


def example(setting: SessionRun) -> Request:
  """Two users' first Request: what parameters' shapes depend on."""
  few = jax.tree.map(lambda x: x[:2], setting.dataset.splits["train"])
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


@functools.cache
def _bound(function: Callable, static: Any) -> Callable:
  return functools.partial(function, static)


def system(
  function: Callable[..., Array], static: Any, *arrays: Any
) -> Callable[..., Array]:
  """A pytree that calls function(static, *arrays, ...), as an Act is called.

  To jit, two of one function and one static part are the same, where for each
  new `functools.partial` it would compile anew.
  """
  return jax.tree_util.Partial(_bound(function, static), *arrays)


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
  return _by_chunks(play, key, schema.take(starts, few))


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


def refuse(config: Config, *names: str) -> None:
  """Raises ConfigError: parts of `config.session` that nothing would read."""
  for name in names:
    value, unset = (getattr(x, name) for x in (config.session, SessionConfig()))
    if value != unset:
      raise ConfigError(
        f"config.session.{name}={value!r} has no effect on "
        f"config.stages={config.stages}; leave it at {unset!r}."
      )


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
