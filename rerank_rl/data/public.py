"""What the adapters of public logs share: files, features, assembly."""

from collections.abc import Mapping
import dataclasses
import os
import pathlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rerank_rl.config import Config, ConfigError
from rerank_rl.data import cells, pointwise, schema, slates
from rerank_rl.types import Impression, Request

SLATE = 6
HISTORY = 50
CANDIDATES = 50
FACTORS = 32
_SIDE_WEIGHT = 0.5  # Of side features beside factors in `vectors`.
_SEED = 2022  # Candidates are part of the data: the same for every run.
_LARGEST = 5.0  # Standard deviations; rare flags would drown the rest.


def folder(config: Config) -> pathlib.Path:
  """Where the public set `config.data.name` lies.

  `config.data.path` if given, else the folder of that name under the
  environment's RERANK_RL_DATA, else under ../shared/data.

  Raises:
    ConfigError: there is no such folder.
  """
  root = os.environ.get("RERANK_RL_DATA", "../shared/data")
  name = config.data.name
  path = pathlib.Path(config.data.path or os.path.join(root, name))
  if not path.is_dir():
    raise ConfigError(
      f"{path} is no folder; put {name} there (docs/data.md says how), or "
      "name another one by config.data.path or $RERANK_RL_DATA."
    )
  return path


def read_parquet(
  path: pathlib.Path, columns: Mapping[str, str | None]
) -> pa.Table:
  """Some columns of a parquet file.

  Args:
    path: the file.
    columns: name -> its kind (`cells.ID`, ...); None takes any, nulls as well.

  Raises:
    ConfigError: the file is missing, broken or empty, or lacks a column, or a
      value is not of its kind.
  """
  if not path.is_file():
    raise ConfigError(f"{path} is missing; docs/data.md says where it is from.")
  try:
    names = pq.read_schema(path).names
    for column in columns:
      if column not in names:
        raise ConfigError(
          f"{path} has no column {column!r}; docs/data.md lists the columns."
        )
    table = pq.read_table(path, columns=list(columns))
  except (pa.ArrowException, OSError) as error:
    raise ConfigError(
      f"{path} is no readable parquet file; get it again."
    ) from error
  if not table.num_rows:
    raise ConfigError(f"{path} has no rows; get it again.")
  typed = {}
  for name, kind in columns.items():
    column = table[name].combine_chunks()
    if kind is not None:
      column = cells.from_arrow(path, 1, name, column, kind)
    elif cells.is_list(column.type):
      cells.fail(path, None, name, "the column holds lists; get the file again")
    typed[name] = column
  return pa.table(typed)


def rows_of(
  values: np.ndarray, known: np.ndarray, path: pathlib.Path, column: str
) -> np.ndarray:
  """i64[n]: rows of `values` in the sorted identifiers `known`.

  Raises:
    ConfigError: a value is not known.
  """
  if values.dtype.kind != known.dtype.kind:
    raise ConfigError(
      f"{path}, column {column!r}: ids are of another type than in the files "
      "that list them; get the set's files anew, together."
    )
  rows = np.minimum(np.searchsorted(known, values), known.size - 1)
  wrong = known[rows] != values
  if wrong.any():
    raise ConfigError(
      f"{path}, row {int(np.argmax(wrong)) + 1}, column {column!r}: "
      f"{values[wrong][0]} is unknown; get the set's files anew, together."
    )
  return rows


def one_hot(values: np.ndarray) -> np.ndarray:
  """f32[n, distinct] of any sortable values."""
  _, code = np.unique(values, return_inverse=True)
  return np.eye(code.max() + 1, dtype=np.float32)[code.ravel()]


def standardise(x: np.ndarray) -> np.ndarray:
  """Columns of mean 0 and deviation 1, clipped; constant ones dropped."""
  # In f32 a constant's deviation is seldom 0, and no small feature's is.
  x = x[:, np.ptp(x, axis=0) > 0].astype(np.float64)
  x = (x - x.mean(0)) / x.std(0)
  return np.clip(x, -_LARGEST, _LARGEST).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Log:
  """Slates that an adapter cut, before candidates and scores.

  Attributes:
    owner: i64[n], user row of each slate.
    items: i64[n, K], logged items, top first.
    feedback: f32[n, K, S].
    history: i32[n, H].
    time: i64[n], of the slate's last item.
    split: i8[n], 0 train, 1 valid, 2 test (`schema.SPLITS`).
    met: bool[users, M], all that each user ever met, in any split.
    trained: (user row, item row) pairs of the training part.
    popularity: i64[M], exposures in the training part.
    side: f32[M, F0], item features known at upload, standardised.
    groups: i32[M].
    item_ids: [M].
    user: f32[users, U].
  """

  owner: np.ndarray
  items: np.ndarray
  feedback: np.ndarray
  history: np.ndarray
  time: np.ndarray
  split: np.ndarray
  met: np.ndarray
  trained: tuple[np.ndarray, np.ndarray]
  popularity: np.ndarray
  side: np.ndarray
  groups: np.ndarray
  item_ids: np.ndarray
  user: np.ndarray


def assemble(
  config: Config,
  log: Log,
  signals: tuple[str, ...],
  weights: tuple[float, ...],
) -> schema.Dataset:
  """Adds candidates, scores, factors and splits to a `Log`.

  Args:
    config: gives the set's name and, if any, other signal weights.
    log: the adapter's slates.
    signals: names of the S signals.
    weights: their weights unless `config.data.weights` are given.

  Returns:
    The validated data set.

  Raises:
    ConfigError: the number of weights is not S.
    ValueError: a user met nearly all items.
  """
  weights = signal_weights(config, signals, weights)
  random = np.random.default_rng(_SEED)
  unmet = slates.draw_unmet(
    random, log.owner, log.met, log.popularity + 1.0, CANDIDATES - SLATE
  )
  candidates, slate = slates.mix(random, log.items, unmet)
  matrix = pointwise.interactions(*log.trained, log.met.shape)
  scores = _scores(log, matrix, candidates, slate)
  columns = Impression(
    request=Request(
      user=log.user[log.owner],
      history=log.history,
      candidates=candidates,
      scores=scores,
      size=np.full(log.owner.size, SLATE, np.int32),
    ),
    slate=slate,
    feedback=log.feedback,
    propensity=np.full(slate.shape, np.nan, np.float32),
    hidden=np.zeros((log.owner.size, 0), np.float32),
  )
  rows = [np.flatnonzero(log.split == s) for s in range(len(schema.SPLITS))]
  splits = {s: schema.take(columns, r) for s, r in zip(schema.SPLITS, rows)}
  features, vectors = describe(log.side, matrix)
  dataset = schema.Dataset(
    name=config.data.name,
    item_ids=log.item_ids,
    features=features,
    vectors=vectors,
    groups=log.groups,
    splits=splits,
    timestamps={s: log.time[r] for s, r in zip(schema.SPLITS, rows)},
    owners={s: log.owner[r] for s, r in zip(schema.SPLITS, rows)},
    signals=signals,
    weights=weights,
    slate_size=SLATE,
    warm=schema.warm_items(splits["train"], log.item_ids.size),
  )
  return schema.validate(dataset)


def describe(side: np.ndarray, matrix) -> tuple[np.ndarray, np.ndarray]:
  """Item columns made of side features and training interactions.

  Args:
    side: f32[M, F0], standardised.
    matrix: sparse 0/1 [users or requests, M], training part only.

  Returns:
    features: f32[M, F0 + R], side and R standardised SVD factors.
    vectors: f32[M, R + F0], factors of mean squared length 1 and side
      features of mean squared length 1/4.
  """
  width = min(FACTORS, *matrix.shape)
  factors = _unit(pointwise.item_factors(matrix, width))
  features = np.concatenate([side, _scaled(factors)], 1)
  vectors = np.concatenate([factors, _SIDE_WEIGHT * _unit(side)], 1)
  return features, vectors


def signal_weights(
  config: Config, signals: tuple[str, ...], default: tuple[float, ...]
) -> tuple[float, ...]:
  """`config.data.weights`, or `default` where none are given.

  Raises:
    ConfigError: there are not as many weights as signals.
  """
  weights = tuple(float(w) for w in config.data.weights) or default
  if len(weights) != len(signals):
    raise ConfigError(
      f"config.data.weights={config.data.weights} should hold one number for "
      f"each of {', '.join(signals)}."
    )
  return weights


def _scores(log, matrix, candidates, slate) -> np.ndarray:
  """f32[n, N] logits of a click, by a logistic fitted on training rows."""
  statistics = pointwise.CoVisits(matrix)(
    log.owner, log.history, candidates, log.split == 0
  )
  clicked = np.zeros(candidates.shape, bool)
  np.put_along_axis(clicked, slate, log.feedback[..., 0] > 0.5, 1)
  # A sample fits three numbers as well as all rows do.
  rows = np.flatnonzero(log.split == 0)
  rows = rows[:: max(1, rows.size // 10_000)]
  weights = pointwise.fit_logistic(
    statistics[rows].reshape(-1, 2), clicked[rows].ravel()
  )
  return (statistics @ weights[:-1] + weights[-1]).astype(np.float32)


def _unit(x: np.ndarray) -> np.ndarray:
  """`x` scaled so that its rows have a mean squared length of 1."""
  return x / np.sqrt(max(float((x * x).sum(1).mean()), 1e-12)).astype(x.dtype)


def _scaled(factors: np.ndarray) -> np.ndarray:
  """Factors of deviation 1 over the items that have any; 0 for the others."""
  met = (factors != 0).any(1)
  spread = np.maximum(factors[met].std(0), 1e-6)
  scaled = np.clip((factors - factors[met].mean(0)) / spread, -5, 5)
  return np.where(met[:, None], scaled, 0).astype(np.float32)
