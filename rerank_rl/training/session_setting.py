"""A run on sessions: its data, its policy, and whose users it meets."""

from collections.abc import Callable, Mapping
import dataclasses
import pathlib
from types import MappingProxyType
from typing import cast

import jax
import jax.numpy as jnp

from rerank_rl.config import Config
from rerank_rl.data import sessions, synthetic
from rerank_rl.models.hpn import LevelCritic
from rerank_rl.models.policy import Policy, make_policy
from rerank_rl.models.prefix_lm import Sizes
from rerank_rl.models.response import ResponseModel
from rerank_rl.simulation import ensemble, learnt, users
from rerank_rl.simulation import session as simulation
from rerank_rl.training.setting import Run, by_keyed_chunks, opened
from rerank_rl.types import Impression
from rerank_rl.world import trust
from rerank_rl.world import world as world_lib


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
    weights=setting.weights,
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
  """How the world's users behave; the test's alone meet cold items."""
  world = synthetic.world_of(setting.config)
  items = jnp.asarray(world_lib.stock(world, warm=split != "test"))
  return users.Tiring(world, items, setting.config.session)


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
  return by_keyed_chunks(log, setting.key("log/" + name), rows)


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
  return opened(SessionRun, loader, config, root, mesh)
