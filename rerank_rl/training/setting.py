"""What stages share: the data, and the artifacts that earlier stages left."""

from collections.abc import Callable, Mapping
import dataclasses
import pathlib
import time
from typing import Any, NamedTuple, Self, TypeVar
import zlib

from absl import logging
import jax
import jax.numpy as jnp
import numpy as np

from rerank_rl.config import Config, ConfigError, fingerprint
from rerank_rl.data import load, schema, shards, synthetic
from rerank_rl.decoding import sample
from rerank_rl.evaluation import judge as judges
from rerank_rl.evaluation import ranking
from rerank_rl.models import ensemble
from rerank_rl.models import evaluator as evaluators
from rerank_rl.models.policy import Policy, make_policy
from rerank_rl.models.prefix_lm import Sizes
from rerank_rl.models.response import ResponseModel
from rerank_rl.simulation import reward as rewards
from rerank_rl.training import checkpoint
from rerank_rl.training import mesh as mesh_lib
from rerank_rl.types import Array, Catalogue, Impression
from rerank_rl.world.world import World

CHUNK = 256  # Requests that are ranked or judged at a time.


class Judge(NamedTuple):
  """One fitted list evaluator, or response model."""

  model: evaluators.ListEvaluator | ResponseModel
  fitted: ensemble.Fitted


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
  """A run so far, whatever its task.

  Attributes:
    config: the run's.
    dataset: the data.
    mesh: devices.
    root: folder of the stages' artifacts.
    finished: whether every stage's artifact must be there; nothing is made.
    identity: stage -> fingerprint of all that its artifact depends on.
    version: `schema.version` of the data.
    catalogue: features and, after `tokenizer`, semantic IDs.
    params: system -> parameters, after the stages that learn one.
    judges: name -> Judge, after the stages that fit evaluators.
    history: stage -> evaluations during training.
    timing: stage -> seconds.
  """

  config: Config
  dataset: Any
  mesh: jax.sharding.Mesh
  root: pathlib.Path
  identity: Mapping[str, str]
  version: str
  catalogue: Catalogue
  finished: bool = False
  params: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  judges: Mapping[str, Judge] = dataclasses.field(default_factory=dict)
  history: Mapping[str, list] = dataclasses.field(default_factory=dict)
  timing: Mapping[str, float] = dataclasses.field(default_factory=dict)

  @property
  def weights(self) -> tuple[float, ...]:
    """Each signal's part in a slate's utility, of data that have signals."""
    return self.config.data.weights or self.dataset.weights

  def key(self, name: str) -> jax.Array:
    """A stage's own PRNG key."""
    number = zlib.crc32(name.encode()) & 0x7FFFFFFF
    return jax.random.fold_in(jax.random.key(self.config.seed), number)

  def folder(self, stage: str) -> pathlib.Path:
    """Where a stage keeps what it makes."""
    return self.root / f"{stage}-{self.identity[stage]}"

  def identified(self, stage: str, *parts: Any) -> Self:
    """With the stage's identity: a hash of what it depends on."""
    own = fingerprint(stage, self.config.seed, *parts)
    return dataclasses.replace(self, identity={**self.identity, stage: own})


AnyRun = TypeVar("AnyRun", bound=Run)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting(Run):
  """A run on impressions.

  Attributes:
    dataset: the data; training feedback already as `data.feedback` says.
    world: the synthetic world, or None.
    logged: training rows as they were logged, for who only reports.
    judges: "a", "s", "b" after `evaluators`, "lookahead" after the stage of
      that name.
    mined: where the mined lists are, after `mine`.
    critic: the critic's parameters, after `critic`.
  """

  dataset: schema.Dataset
  world: World | None
  logged: Impression
  mined: shards.Layout | None = None
  critic: Any = None

  @property
  def sizes(self) -> Sizes:
    """Static sizes of the data."""
    request = self.dataset.splits["train"].request
    tokenizer = self.config.tokenizer
    return Sizes(
      tokenizer.codes,
      tokenizer.levels,
      self.dataset.slate_size,
      request.history.shape[1],
      request.candidates.shape[1],
    )

  @property
  def policy(self) -> Policy:
    """The configured policy."""
    return make_policy(self.config.policy, self.sizes)

  def reward(self, name: str) -> rewards.Reward:
    """The reward function called `name` in `config.rl.reward`."""
    return _REWARDS[name](self)

  def judged_by(self, name: str) -> rewards.Reward:
    """Evaluator "a", "s" or "b" as a reward function."""
    one = self.judges[name]
    return rewards.evaluator_reward(
      one.model, one.fitted, self.catalogue.features, self.weights
    )


_REWARDS = {
  "world": lambda setting: rewards.world_reward(setting.world),
  "evaluator": lambda setting: setting.judged_by("a"),
  "labels": lambda setting: jax.tree_util.Partial(rewards.label_reward),
  "good": lambda setting: (
    rewards.better_than_logged(setting.judged_by("a"))
    if setting.world is None
    else rewards.good_reward(setting.world)
  ),
}


# Data that a config and a seed make.
MADE = ("world", "trust")


def opened(
  kind: type[AnyRun],
  loader: Callable[[Config], Any],
  config: Config,
  root: pathlib.Path,
  mesh: jax.sharding.Mesh | None,
  sids: Callable[[Any], np.ndarray | None] = lambda dataset: None,
  own: Callable[[Any], Mapping[str, Any]] = lambda dataset: {},
) -> AnyRun:
  """A run of a kind on its data, without artifacts.

  Args:
    kind: of run.
    loader: gives the data.
    config: the run's.
    root: folder of the stages' artifacts.
    mesh: devices; None = all.
    sids: the data's semantic IDs, None where they are still to be made.
    own: the kind's further attributes, of its data.

  Returns:
    With the identity of its data. It does not hang on training's numbers.
  """
  begin = time.monotonic()
  dataset = loader(config)
  known = sids(dataset)
  if known is None:
    known = np.zeros((len(dataset.item_ids), config.tokenizer.levels), np.int32)
  logging.info(
    "%s: %d items, rows: %s.",
    dataset.name,
    len(dataset.item_ids),
    {k: schema.num_rows(v) for k, v in dataset.splits.items()},
  )
  version = schema.version(dataset)
  # What is made, and not read, is known by its numbers.
  read = "" if config.data.name in MADE else version
  run = kind(
    config=config,
    dataset=dataset,
    mesh=mesh_lib.make() if mesh is None else mesh,
    root=root,
    identity={},
    version=version,
    catalogue=Catalogue(jnp.asarray(dataset.features), jnp.asarray(known)),
    timing={"data": time.monotonic() - begin},
    **own(dataset),
  )
  world_seed = synthetic.seed_of(config)
  return run.identified("data", config.data, config.world, world_seed, read)


def start(config: Config, root: pathlib.Path, mesh=None) -> Setting:
  """Loads the data and opens a Setting.

  Args:
    config: the run's.
    root: folder of the stages' artifacts.
    mesh: devices; None = all.

  Returns:
    A Setting without artifacts.
  """
  world = None
  if config.data.name == "world":
    world = synthetic.world_of(config)
  own = lambda dataset: {"world": world, "logged": dataset.splits["train"]}
  return opened(Setting, load.load, config, root, mesh, own=own)


def by_chunks(function: Callable, size: int, *columns: Any) -> Any:
  """Applies a jitted function to equal chunks of numpy columns.

  Args:
    function: maps chunks of `size` rows to an array or pytree with as many.
    size: rows a chunk; the last chunk is padded by repeating its last row.
    *columns: pytrees with a common leading dimension n.

  Returns:
    The outputs' rows, numpy, leading dimension n.
  """
  count = jax.tree.leaves(columns)[0].shape[0]
  parts = []
  for begin in range(0, count, size):
    rows = np.minimum(np.arange(begin, begin + size), count - 1)
    part = schema.take(columns, rows)
    parts.append(jax.device_get(function(*part)))
  return jax.tree.map(lambda *x: np.concatenate(x)[:count], *parts)


def by_keyed_chunks(function: Callable, key: Array, rows: Any) -> Any:
  """`by_chunks` of function(rows, key), another key a chunk."""

  def chunk(rows, number):
    return function(rows, jax.random.fold_in(key, number[0]))

  numbers = np.arange(schema.num_rows(rows), dtype=np.uint32)
  return by_chunks(chunk, CHUNK, rows, numbers)


def local(tree: Any) -> Any:
  """A replicated pytree as this process's own arrays on one device."""
  own = lambda x: x.addressable_data(0) if isinstance(x, jax.Array) else x
  return jax.tree.map(lambda x: jnp.asarray(np.asarray(own(x))), tree)


def valuer(reward: rewards.Reward) -> Callable[[Impression, Array], np.ndarray]:
  """A reward as (impressions, slate i32[n, K]) -> f32[n], by chunks."""
  return lambda x, slate: worth(reward, x, slate)[0]


def worth(
  reward: rewards.Reward, impressions: Impression, slate: Array
) -> tuple[np.ndarray, np.ndarray]:
  """What slates i32[n, K] are worth, f32[n], and their slots, f32[n, K]."""
  return by_chunks(
    lambda a, b: _worth(reward, a, b), CHUNK, impressions, np.asarray(slate)
  )


# Jitted once a module, or every stage would compile anew.
_greedy = jax.jit(sample.greedy, static_argnums=0)


@jax.jit
def _worth(reward, impressions, slate):
  outcome = reward(impressions, slate[:, None])
  return outcome.reward[:, 0], outcome.per_item[:, 0]


def greedy_ranker(
  setting: Setting,
) -> Callable[[Any, Impression], np.ndarray]:
  """(params, impressions) -> greedy slates i32[n, K] of the policy."""
  policy = setting.policy

  def ranker(params: Any, impressions: Impression) -> np.ndarray:
    params = local(params)
    return by_chunks(
      lambda r: _greedy(policy, params, setting.catalogue, r),
      CHUNK,
      impressions.request,
    )

  return ranker


def ndcg(impressions: Impression, slate: np.ndarray) -> np.ndarray:
  """NDCG@K of the logged labels, f64[n]; NaN where nothing is relevant."""
  relevant = judges.logged_relevance(impressions)
  shown = np.take_along_axis(relevant, np.maximum(slate, 0), axis=1)
  shown = np.where(slate < 0, 0.0, shown)
  return np.asarray(
    ranking.ndcg_at_k(shown, -np.sort(-relevant.astype(np.float64), axis=1))
  )


def selection(setting: Setting, rank: Callable) -> tuple[Callable, tuple]:
  """How a stage is watched and its parameters are chosen, on validation.

  Args:
    setting: after `evaluators` where the protocol needs them.
    rank: (params, impressions) -> slates.

  Returns:
    (evaluate, select) for `loop.fit`: value selects by evaluator S, recovery
    by NDCG@K, oracle by the truth.
  """
  valid = setting.dataset.splits["valid"]
  figures = {
    f"evaluator_{name}": valuer(setting.judged_by(name))
    for name in setting.judges
  }
  if setting.world is not None:
    figures["true_utility"] = valuer(setting.reward("world"))
  else:
    figures["ndcg"] = ndcg

  def evaluate(params: Any) -> dict[str, float]:
    slate = rank(params, valid)
    return {k: float(np.nanmean(f(valid, slate))) for k, f in figures.items()}

  name = _SELECT[setting.config.protocol]
  return evaluate, (name, True)


_SELECT = {
  "value": "evaluator_s",
  "recovery": "ndcg",
  "oracle": "true_utility",
}


def ready(setting: Run, stage: str) -> bool:
  """Whether the stage's artifact is there.

  Raises:
    ConfigError: see `expected`.
  """
  folder, identity = setting.folder(stage), setting.identity[stage]
  found = checkpoint.artifact_ready(folder, identity)
  return expected(setting, stage, found)


def expected(setting: Run, stage: str, found: bool) -> bool:
  """`found`, whether a stage's artifact is there.

  Raises:
    ConfigError: it is not, though the run is finished.
  """
  if setting.finished and not found:
    raise ConfigError(
      f"{setting.folder(stage)} is missing, the artifact of stage {stage!r} of "
      "a finished run; give the run's own --artifacts, or make it again with "
      "launch.train."
    )
  return found


def keep(setting: Run, stage: str, tree: Any, **meta: Any) -> None:
  """Saves a stage's artifact under its identity."""
  meta = {"fingerprint": setting.identity[stage], **meta}
  checkpoint.save_artifact(setting.folder(stage), tree, meta)
