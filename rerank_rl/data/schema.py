"""What every data set becomes: one catalogue and three splits of columns.

A `Dataset` is plain numpy in memory; `pipeline.batches` streams from it.
Adapters (synthetic, movielens, kuairand) and the importer all return one.
"""

from collections.abc import Mapping
import dataclasses
import hashlib
from typing import Any

import jax
import numpy as np

from rerank_rl.types import PAD, Impression

SPLITS = ("train", "valid", "test")


@dataclasses.dataclass(frozen=True)
class Dataset:
  """A catalogue, and logged impressions over it.

  Attributes:
    name: what reports call it.
    item_ids: [M], the owner's item identifiers (int64 or str), distinct.
    features: f32[M, F], observed item features, standardised, finite.
    vectors: f32[M, E], what the tokenizer quantises, finite.
    groups: i32[M], topic, first genre or tag; >= 0.
    splits: "train", "valid", "test" -> Impression of numpy columns.
    timestamps: the same keys -> i64[n], seconds or milliseconds, the unit
      of the source; zeros where time has no meaning (the synthetic world).
    signals: names of the S feedback signals.
    weights: S floats, each signal's part in a slate's utility.
    slate_size: K, the width of `Impression.slate`.
    warm: bool[M], whether training may see the item; the rest, the cold
      slice, is in no training row (neither candidate nor history).
    owners: the splits' keys -> i64[n], a number for each row's user; empty
      where the source does not say whose rows they are.
  """

  name: str
  item_ids: np.ndarray
  features: np.ndarray
  vectors: np.ndarray
  groups: np.ndarray
  splits: Mapping[str, Impression]
  timestamps: Mapping[str, np.ndarray]
  signals: tuple[str, ...]
  weights: tuple[float, ...]
  slate_size: int
  warm: np.ndarray
  owners: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)


def num_rows(columns: Any) -> int:
  """Number of rows n in columns with leading dimension n."""
  return jax.tree.leaves(columns)[0].shape[0]


def take(columns: Any, rows: np.ndarray) -> Any:
  """Rows i64[b] of a pytree of numpy columns, such as an Impression."""
  return jax.tree.map(lambda column: column[rows], columns)


def version(dataset: Any) -> str:
  """A hash of what a data set's log holds: items, requests, what was said.

  Also of what each signal is worth. A path says less: a log may be imported
  anew under the same one. Features and scores are left out: fitted by a loader,
  they may differ in the last bit from machine to machine.

  Args:
    dataset: a Dataset, or another dataclass of arrays.
  """
  digest = hashlib.sha256()
  parts = {
    name: dict(part) if isinstance(part, Mapping) else part
    for name, part in vars(dataset).items()
  }
  for path, leaf in jax.tree_util.tree_leaves_with_path(parts):
    name, array = jax.tree_util.keystr(path), np.asarray(leaf)
    if array.dtype.kind == "O":
      array = array.astype(str)
    read = "feedback" in name or "weights" in name
    if array.dtype.kind != "f" or read:
      digest.update(f"{name} {array.dtype} {array.shape}".encode())
      digest.update(array.tobytes())
  return digest.hexdigest()[:12]


def warm_items(train: Impression, num_items: int) -> np.ndarray:
  """bool[num_items]: the items in some candidate list or history of `train`."""
  warm = np.zeros(num_items, bool)
  for column in (train.request.candidates, train.request.history):
    warm[column[column != PAD]] = True
  return warm


def validate(dataset: Dataset) -> Dataset:
  """Checks every invariant of `Dataset` and `Impression`.

  Args:
    dataset: the data set to check.

  Returns:
    `dataset` itself.

  Raises:
    ValueError: one sentence that names the column, the split and the row.
  """
  _check_catalogue(dataset)
  _require(
    set(dataset.splits) == set(SPLITS) == set(dataset.timestamps),
    dataset,
    f"splits {sorted(dataset.splits)} and timestamps "
    f"{sorted(dataset.timestamps)} should both be {sorted(SPLITS)}",
  )
  for split in SPLITS:
    columns = dataset.splits[split]
    _check_shapes(dataset, split, columns)
    _check_values(dataset, split, columns)
  seen = warm_items(dataset.splits["train"], dataset.item_ids.shape[0])
  _require(
    not (seen & ~dataset.warm).any(),
    dataset,
    "a training row holds an item that `warm` calls unseen",
  )
  return dataset


def _require(fact: bool, dataset: Dataset, text: str) -> None:
  if not fact:
    raise ValueError(f"data set {dataset.name!r}: {text}.")


def _check_catalogue(dataset: Dataset) -> None:
  """Shapes, finiteness and distinctness of the item columns."""
  items = dataset.item_ids.shape[0]
  _require(items > 0, dataset, "there are no items")
  for name in ("features", "vectors"):
    column = getattr(dataset, name)
    _require(
      column.ndim == 2 and column.shape[0] == items,
      dataset,
      f"{name} has shape {column.shape}, expected ({items}, width)",
    )
    _require(
      bool(np.isfinite(column).all()), dataset, f"{name} holds NaN or inf"
    )
  for name in ("groups", "warm"):
    column = getattr(dataset, name)
    _require(
      column.shape == (items,),
      dataset,
      f"{name} has shape {column.shape}, expected ({items},)",
    )
  _require(int(dataset.groups.min()) >= 0, dataset, "groups go below 0")
  _require(
    np.unique(dataset.item_ids).size == items, dataset, "item_ids repeat"
  )
  _require(
    len(dataset.signals) == len(dataset.weights) > 0,
    dataset,
    f"{len(dataset.signals)} signals but {len(dataset.weights)} weights",
  )


def _check_shapes(dataset: Dataset, split: str, columns: Impression) -> None:
  """All columns share n rows and the widths of `Dataset`."""
  n, slots = num_rows(columns), dataset.slate_size
  request = columns.request
  _require(n > 0, dataset, f"split {split!r} has no rows")
  expected = {
    "slate": (columns.slate, (n, slots)),
    "feedback": (columns.feedback, (n, slots, len(dataset.signals))),
    "propensity": (columns.propensity, (n, slots)),
    "hidden": (columns.hidden, (n, columns.hidden.shape[-1])),
    "user": (request.user, (n, request.user.shape[-1])),
    "history": (request.history, (n, request.history.shape[-1])),
    "candidates": (request.candidates, (n, request.candidates.shape[-1])),
    "scores": (request.scores, request.candidates.shape),
    "size": (request.size, (n,)),
    "timestamps": (dataset.timestamps[split], (n,)),
  }
  for name, (column, shape) in expected.items():
    _require(
      column.shape == shape,
      dataset,
      f"{split}.{name} has shape {column.shape}, expected {shape}",
    )


def _check_values(dataset: Dataset, split: str, columns: Impression) -> None:
  """Index ranges, distinctness, padding and finiteness, row by row."""
  request, items = columns.request, dataset.item_ids.shape[0]
  width = request.candidates.shape[1]
  placed = columns.slate != PAD
  real = request.candidates != PAD
  shown = np.where(
    placed,
    np.take_along_axis(
      request.candidates, np.clip(columns.slate, 0, width - 1), 1
    ),
    0,
  )
  signals = columns.feedback
  bad = {
    "candidates outside the catalogue": (request.candidates < PAD)
    | (request.candidates >= items),
    "candidates that repeat": _repeats(request.candidates),
    "candidates after padding": real[:, 1:] & ~real[:, :-1],
    "no candidates": ~real.any(1, keepdims=True),
    "history outside the catalogue": (request.history < PAD)
    | (request.history >= items),
    "history before padding": (request.history[:, :-1] != PAD)
    & (request.history[:, 1:] == PAD),
    "slate positions that are no candidate": (columns.slate < PAD)
    | (columns.slate >= width)
    | (shown == PAD),
    "slate positions that repeat": _repeats(columns.slate),
    "slate positions after padding": placed[:, 1:] & ~placed[:, :-1],
    "feedback outside [0, 1]": ~((signals >= 0) & (signals <= 1)),
    "feedback at padding": ~placed[..., None] & (signals != 0),
    "propensity outside (0, 1]": (columns.propensity <= 0)
    | (columns.propensity > 1),
    "scores that are NaN or inf": ~np.isfinite(request.scores),
    "scores at padding": ~real & (request.scores != 0),
    "user features that are NaN or inf": ~np.isfinite(request.user),
    "size outside [1, slate_size]": (request.size < 1)
    | (request.size > dataset.slate_size),
  }
  for text, where in bad.items():
    if where.any():
      row = int(np.argwhere(where)[0][0])
      raise ValueError(
        f"data set {dataset.name!r}: split {split!r}, row {row} has {text}."
      )


def _repeats(index: np.ndarray) -> np.ndarray:
  """bool[n, width - 1]: a value other than PAD that its row holds twice."""
  ordered = np.sort(index, 1)
  return (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] != PAD)
