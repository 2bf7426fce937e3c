"""Reads back what the importer wrote, and notices damage."""

import hashlib
import pathlib
from typing import Any

import numpy as np

from rerank_rl.config import Config, ConfigError
from rerank_rl.data import builder, pointwise, public, schema
from rerank_rl.files import read_object
from rerank_rl.types import PAD, Impression, Request

MANIFEST = "manifest.json"
FORMAT = 1  # Of the folder; raised when older ones can no longer be read.
_FIELDS = {
  "format": int,
  "signals": list,
  "weights": list,
  "rows": dict,
  "sha256": dict,
}
_MOST_ROWS = 100_000  # For the item factors.


def read_manifest(folder: pathlib.Path, remedy: str) -> dict[str, Any]:
  """What an import says of itself; raises as `read_object` does."""
  return read_object(folder / MANIFEST, remedy, **_FIELDS)


def digest(path: pathlib.Path) -> str:
  """The SHA-256 of a file's bytes, in hex."""
  with path.open("rb") as source:
    return hashlib.file_digest(source, "sha256").hexdigest()


def load(config: Config) -> schema.Dataset:
  """Reads an import back.

  Item features are standardised and joined by factors of the training
  rows' co-occurrences, as for the public sets.

  Args:
    config: `data.path` names the folder, `data.weights` may give weights.

  Returns:
    The validated data set, items in the order of the items file.

  Raises:
    ConfigError: the folder is no import, or is damaged.
  """
  folder = pathlib.Path(config.data.path)
  manifest = _verified(config.data.path, folder)
  table = builder.read(str(folder), "items", "items")
  count = table["item_id"].shape[0]
  splits, times = {}, {}
  for name in schema.SPLITS:
    columns = builder.read(str(folder), "impressions", name)
    splits[name], times[name] = _impression(columns), columns["timestamp"]
  train = splits["train"]
  side = public.standardise(
    table.get("features", np.zeros((count, 0), np.float32))
  )
  features, vectors = public.describe(side, _met(train, count))
  signals = tuple(manifest["signals"])
  return schema.validate(
    schema.Dataset(
      name=config.data.name,
      item_ids=table["item_id"],
      features=features,
      vectors=vectors,
      groups=table["group"],
      splits=splits,
      timestamps=times,
      signals=signals,
      weights=public.signal_weights(
        config, signals, tuple(manifest["weights"])
      ),
      slate_size=train.slate.shape[1],
      warm=schema.warm_items(train, count),
    )
  )


def _verified(name: str, folder: pathlib.Path) -> dict[str, Any]:
  """The manifest of an undamaged import."""
  again = "import it again with launch/import_logs.py"
  if not name:
    raise ConfigError(
      "config.data.path is empty; give the folder that launch/import_logs.py "
      "made."
    )
  if not (folder / MANIFEST).exists():
    raise ConfigError(
      f"config.data.path={name} holds no {MANIFEST}; give the folder that "
      "launch/import_logs.py made."
    )
  manifest = read_manifest(folder, again)
  version = manifest["format"]
  if version != FORMAT:
    raise ConfigError(
      f"{folder / MANIFEST} has format {version}, not {FORMAT}; {again}."
    )
  for file, wanted in manifest["sha256"].items():
    if not (folder / file).is_file():
      raise ConfigError(f"{folder / file} is missing; {again}.")
    if digest(folder / file) != wanted:
      raise ConfigError(
        f"{folder / file} has changed since the import; {again}."
      )
  return manifest


def _impression(columns: dict[str, np.ndarray]) -> Impression:
  count = columns["slate"].shape[0]
  empty = np.zeros((count, 0), np.float32)
  return Impression(
    request=Request(
      user=columns.get("user", empty),
      history=columns["history"],
      candidates=columns["candidates"],
      scores=columns["scores"],
      size=columns["size"],
    ),
    slate=columns["slate"],
    feedback=columns["feedback"],
    propensity=columns["propensity"],
    hidden=empty,
  )


def _met(train: Impression, count: int):
  """Sparse 0/1 [n, M]: what training rows' histories and slates hold.

  Of very many rows only every so many: the factors need no more.
  """
  every = -(-schema.num_rows(train) // _MOST_ROWS)
  train = schema.take(train, np.arange(0, schema.num_rows(train), every))
  shown = np.take_along_axis(
    train.request.candidates, np.maximum(train.slate, 0), 1
  )
  both = np.concatenate(
    [train.request.history, np.where(train.slate == PAD, PAD, shown)], 1
  )
  row, column = np.nonzero(both != PAD)
  return pointwise.interactions(row, both[row, column], (both.shape[0], count))
