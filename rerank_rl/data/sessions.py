"""Users with whom sessions begin, and the catalogue that they meet."""

from collections.abc import Callable, Mapping
import dataclasses
from types import MappingProxyType
from typing import Any

import jax
import numpy as np

from rerank_rl.config import Config, ConfigError
from rerank_rl.data import load, schema, synthetic
from rerank_rl.data.schema import SPLITS
from rerank_rl.types import PAD, Impression, Request
from rerank_rl.world import trust

_WAYS = 256
_RIDGE = 1e-3  # Directions in which no items differ.
_SEED = 2022  # What is brought is part of the data: the same for every run.


@dataclasses.dataclass(frozen=True)
class Sessions:
  """A catalogue, and the users of each split.

  Attributes:
    name: what reports call it.
    item_ids: [M], distinct.
    features: f32[M, F], observed item features.
    vectors: f32[M, E], what the tokenizer quantises.
    splits: "train", "valid", "test" -> rows that sessions begin with; what
      they are is the environment's to know.
    warm: bool[M], whether training may see the item.
    history: H of a request.
    candidates: N of a request.
    slate_size: K.
    logs: "a", "b" -> Impression, what users of two disjoint groups were shown
      and did; to learn two models of users from.
    topics: f32[M, T], what being shown an item adds to a user's first T
      features, which count what he was shown lately; None where none do.
    signals: names of the logs' S signals.
    weights: S floats, each signal's part in a reward.
    offers: i32[P, turns, N], what retrieval brings to a user whose behaviour
      is learnt, turn by turn, in one of P ways; None without logs.
    regressors: f32[M, R], where the upstream ranker is known but for whom it
      holds users: their products with a user's last R features are its scores,
      but for noise and a constant; None where retrieval is `offers`.
  """

  name: str
  item_ids: np.ndarray
  features: np.ndarray
  vectors: np.ndarray
  splits: Mapping[str, Any]
  warm: np.ndarray
  history: int
  candidates: int
  slate_size: int
  logs: Mapping[str, Impression] = dataclasses.field(default_factory=dict)
  topics: np.ndarray | None = None
  signals: tuple[str, ...] = ()
  weights: tuple[float, ...] = ()
  offers: np.ndarray | None = None
  regressors: np.ndarray | None = None


def of_world(config: Config) -> Sessions:
  """Users of the synthetic world: the rows of its log, who liked what.

  A user's features are how much of each topic he was shown lately, which is
  nothing yet, and what the upstream ranker holds him for.
  """
  data = synthetic.load(config)
  topics = np.eye(config.world.num_topics, dtype=np.float32)[data.groups]

  def known(rows: Impression) -> Impression:
    none = np.zeros((schema.num_rows(rows), topics.shape[1]), np.float32)
    user = np.concatenate([none, _esteemed(data.vectors, rows.request)], 1)
    return rows.replace(request=rows.request.replace(user=user))

  splits = {name: known(rows) for name, rows in data.splits.items()}
  rows = np.arange(schema.num_rows(splits["train"]))
  half = lambda odd: schema.take(splits["train"], rows[odd::2])
  logs = {name: half(i) for i, name in enumerate("ab")}
  found = _on(config, data, splits, logs)
  return dataclasses.replace(found, topics=topics, regressors=data.vectors)


def _esteemed(vectors: np.ndarray, request: Request) -> np.ndarray:
  """For whom the ranker holds users: what their candidates have in common.

  Fisher's discriminant, covariance^-1 (mean candidate - mean item). Scores are
  not read: among items that were let through they tell of the noise.

  Args:
    vectors: f32[M, E], the catalogue's.
    request: n rows.

  Returns:
    f32[n, E], whose products with vectors are tastes.
  """
  real = (request.candidates != PAD)[..., None]
  own = (vectors[np.maximum(request.candidates, 0)] * real).sum(1) / real.sum(1)
  covariance = np.cov(vectors.T) + _RIDGE * np.eye(vectors.shape[1])
  apart = own - vectors.mean(0, keepdims=True)
  return np.linalg.solve(covariance, apart.T).T.astype(np.float32)


def of_log(config: Config) -> Sessions:
  """Users of a public log, each with his profile and latest history.

  Two fifths of the users are group "a", as many "b": models of users are
  learnt from their training rows. Sessions begin with users of "a" in
  training, of "b" in validation, with the last fifth, whom no model of users
  and no policy learns from, in the test. Items' factors and popularity come
  from all users' training rows.

  Raises:
    ConfigError: the data do not say whose rows they hold.
  """
  data = load.load(config)
  if not data.owners:
    raise ConfigError(
      f"config.data.name={data.name!r} does not say which rows are of one user;"
      " sessions need that."
    )
  train = data.splits["train"]
  logs = {
    name: schema.take(train, np.flatnonzero(_group(data.owners["train"]) == i))
    for i, name in enumerate(("a", "b"))
  }
  rows = {split: _latest(data, i) for i, split in enumerate(SPLITS)}
  return _on(config, data, rows, logs)


def _group(owners: np.ndarray) -> np.ndarray:
  """0, 1 or 2 for each user number i64[n]: which group he is in."""
  # Multiplicative hashing (Knuth): neighbours part.
  part = (owners.astype(np.uint64) * np.uint64(2654435761)) % np.uint64(2**32)
  return np.digitize(part / 2**32, [0.4, 0.8])


def _latest(data: schema.Dataset, group: int) -> Impression:
  """The last row, over all splits in their order, of each user of a group."""
  columns = jax.tree.map(
    lambda *x: np.concatenate(x), *(data.splits[name] for name in SPLITS)
  )
  owners = np.concatenate([data.owners[name] for name in SPLITS])
  _, first_from_end = np.unique(owners[::-1], return_index=True)
  rows = owners.size - 1 - first_from_end
  return schema.take(columns, rows[_group(owners[rows]) == group])


def _on(config: Config, data: schema.Dataset, splits, logs) -> Sessions:
  """Sessions over a data set's catalogue, as long and wide as its requests."""
  train = data.splits["train"]
  request = train.request
  candidates = request.candidates.shape[1]
  shown = np.take_along_axis(
    request.candidates, np.maximum(train.slate, 0), axis=1
  )[train.slate != PAD]
  seen = np.bincount(shown, minlength=data.item_ids.size)
  return Sessions(
    name=data.name,
    item_ids=data.item_ids,
    features=data.features,
    vectors=data.vectors,
    splits=splits,
    warm=data.warm,
    history=request.history.shape[1],
    candidates=candidates,
    slate_size=data.slate_size,
    logs=logs,
    signals=data.signals,
    weights=data.weights,
    offers=offered(seen, config.session.turns, candidates),
  )


def offered(seen: np.ndarray, turns: int, candidates: int) -> np.ndarray:
  """What retrieval brings i32[P, turns, N]: seldom what it brought before.

  Items are drawn without replacement with probability in proportion to
  seen + 1; where the catalogue is too short for all turns, it starts over.

  Args:
    seen: i64[M], how often training shows each item.
    turns: of a session.
    candidates: N; PAD stands where there are fewer items.
  """
  random = np.random.default_rng(_SEED)
  noise = random.gumbel(size=(_WAYS, seen.size))
  best = np.argsort(-(np.log(seen + 1.0)[None] + noise), axis=1)
  several = max(1, min(turns, seen.size // candidates))
  few = random.permuted(best[:, : several * candidates], axis=1)
  short = several * candidates - few.shape[1]
  few = np.pad(few, ((0, 0), (0, short)), constant_values=PAD)
  few = few.reshape(_WAYS, several, candidates).astype(np.int32)
  return few[:, np.arange(turns) % several]


def of_trust(config: Config) -> Sessions:
  """Users of the world of trust: as many start at each of its levels."""
  features = trust.features(trust.build(synthetic.seed_of(config)))
  sizes = config.world
  counts = (sizes.num_train, sizes.num_valid, sizes.num_test)
  level = lambda count: np.arange(count, dtype=np.int32) % trust.LEVELS
  return Sessions(
    name="trust",
    item_ids=np.arange(trust.ITEMS),
    features=features,
    vectors=features,
    splits=dict(zip(SPLITS, map(level, counts), strict=True)),
    warm=np.ones(trust.ITEMS, bool),
    history=1,
    candidates=trust.ITEMS,
    slate_size=trust.SLOTS,
  )


SESSIONS: Mapping[str, Callable[[Config], Sessions]] = MappingProxyType(
  {
    "world": of_world,
    "trust": of_trust,
    "movielens_1m": of_log,
    "kuairand_pure": of_log,
  }
)
