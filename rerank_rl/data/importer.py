"""A user's own impressions and items, checked and written as TFDS.

OUT/items/1.0.0 and OUT/impressions/1.0.0 hold array_record files of TFDS;
OUT/manifest.json says what they mean and what their bytes hash to.
"""

from collections.abc import Iterator, Sequence
import dataclasses
import json
import os
import pathlib
import shutil
import tempfile
from typing import Any

import numpy as np
import pyarrow as pa

from rerank_rl import files
from rerank_rl.config import ConfigError
from rerank_rl.data import builder, cells, imported, items, rows, schema
from rerank_rl.types import PAD

_BLOCK = 256  # Rows of a record.


@dataclasses.dataclass(frozen=True)
class ImportOptions:
  """What launch/import_logs.py was asked for.

  Attributes:
    impressions: a .parquet, .csv or .jsonl file of impressions.
    items: the same of items.
    out: the folder to make.
    signals: the columns of feedback, most important first.
    weights: each signal's part in a slate's utility; () = 1 each.
    slate_size: most items of a slate, K, at most the longest list of
      candidates; 0 = the longest one shown.
    history_size: most items of a history, H; older ones are dropped.
    overwrite: whether `out` may be an earlier import.
  """

  impressions: str
  items: str
  out: str
  signals: tuple[str, ...] = ("click",)
  weights: tuple[float, ...] = ()
  slate_size: int = 0
  history_size: int = 50
  overwrite: bool = False


def parse_weights(texts: Sequence[str]) -> tuple[float, ...]:
  """Numbers of a flag's texts.

  Raises:
    ConfigError: a text is no number.
  """
  try:
    return tuple(float(text) for text in texts)
  except ValueError as error:
    raise ConfigError(
      f"--weights={','.join(texts)} should be numbers, as in 1,2."
    ) from error


def import_logs(options: ImportOptions) -> str:
  """Checks both files and writes the data set, all or nothing.

  Args:
    options: what to read, where to write.

  Returns:
    A summary for the console.

  Raises:
    ConfigError: the first mistake found, in one sentence.
    OSError: the disk refused.
  """
  _check_options(options)
  out = pathlib.Path(os.path.realpath(options.out))
  _check_out(options, out)
  ids, features, groups = items.read(pathlib.Path(options.items))
  plan = rows.layout(
    pathlib.Path(options.impressions),
    options.signals,
    pathlib.Path(options.items),
    ids,
    options.slate_size,
  )
  survey = _survey(plan, options)
  bounds = _bounds(plan, survey.times)
  out.parent.mkdir(parents=True, exist_ok=True)
  draft = pathlib.Path(tempfile.mkdtemp(prefix=".draft.", dir=out.parent))
  try:
    _write_items(draft, ids, features, groups)
    counts = _write_impressions(draft, plan, survey, bounds)
    shutil.rmtree(draft / "downloads", ignore_errors=True)  # TFDS's, empty.
    _write_manifest(draft, options, counts)
    draft.chmod(0o755)
    _put(draft, out)
  finally:
    shutil.rmtree(draft, ignore_errors=True)
  parts = ", ".join(f"{name} {count:,}" for name, count in counts.items())
  ignored = ", ".join(plan.ignored) or "none"
  return (
    f"{survey.times.size:,} impressions ({parts}) of {len(ids):,} items, "
    f"slates of {survey.slate} among {survey.candidates}, in {options.out}; "
    f"columns not used: {ignored}."
  )


def _check_options(options: ImportOptions) -> None:
  """Refuses flags that make no sense."""
  names, weights = options.signals, options.weights
  if not names or not all(names) or len(set(names)) < len(names):
    raise ConfigError(
      f"--signals={','.join(names)} should name distinct columns."
    )
  taken = {*rows.REQUIRED, "propensity", "user", "user_id"} & set(names)
  if taken:
    raise ConfigError(f"--signals={taken.pop()} is a column with a meaning.")
  if weights and len(weights) != len(names):
    raise ConfigError(
      f"--weights has {len(weights)} numbers, but --signals names "
      f"{len(names)} columns; give one for each."
    )
  if not all(abs(weight) <= rows.LARGEST for weight in weights):
    raise ConfigError(
      f"--weights={weights} should be finite numbers of at most "
      f"{rows.LARGEST:g}."
    )
  if weights and not any(weights):
    raise ConfigError(
      f"--weights={weights} makes every slate worth 0; give one that is not 0."
    )
  if options.slate_size < 0:
    raise ConfigError(
      f"--slate_size={options.slate_size} should be 0 (the longest slate) or "
      "more."
    )
  if options.history_size < 1:
    raise ConfigError(
      f"--history_size={options.history_size} should be 1 or more."
    )


def _check_out(options: ImportOptions, out: pathlib.Path) -> None:
  """Refuses to write over anything but an earlier import."""
  near = files.standing(out)
  if not near.is_dir():
    raise ConfigError(
      f"--out={options.out}: {near} is no folder; choose another path."
    )
  if out.is_mount():
    raise ConfigError(
      f"--out={options.out} is a mount point, which cannot be replaced; name a "
      "folder inside it."
    )
  for name in (options.impressions, options.items):
    if out in pathlib.Path(os.path.realpath(name)).parents:
      raise ConfigError(f"--out={options.out} holds {name}; choose another.")
  if not out.exists() or not any(out.iterdir()):
    return
  if not options.overwrite:
    raise ConfigError(
      f"--out={options.out} is not empty; choose another folder or give "
      "--overwrite."
    )
  known = _written(out)
  for path in out.rglob("*"):
    if path.relative_to(out).as_posix() not in known:
      raise ConfigError(
        f"--out={options.out} holds {path.relative_to(out)}, which belongs to "
        "no earlier import and which --overwrite would delete; choose another "
        "folder."
      )


def _written(out: pathlib.Path) -> set[str]:
  """Paths in `out` that an earlier import made; none without its manifest."""
  try:
    manifest = imported.read_manifest(out, "")
  except (FileNotFoundError, ConfigError):
    return set()
  paths = [pathlib.PurePosixPath(name) for name in manifest["sha256"]]
  folders = {str(folder) for path in paths for folder in path.parents}
  return {imported.MANIFEST, *map(str, paths)} | folders


def _put(draft: pathlib.Path, out: pathlib.Path) -> None:
  """Moves a finished draft to its place; an old import goes last."""
  old = draft.with_name(draft.name + ".old")
  if out.exists():
    out.rename(old)
  try:
    draft.rename(out)
  except OSError:
    if old.exists():
      old.rename(out)
    raise
  shutil.rmtree(old, ignore_errors=True)


@dataclasses.dataclass(frozen=True)
class _Survey:
  """What one pass over the impressions tells: i64[n] times, and widths."""

  times: np.ndarray
  user: int
  history: int
  candidates: int
  slate: int


def _survey(plan: rows.Layout, options: ImportOptions) -> _Survey:
  """Checks every row before anything is written."""
  times, names, widths = [], [], []
  for _, batch in rows.read(plan):
    times.append(batch.timestamp)
    names.append(batch.request_id)
    lists = (batch.history, batch.candidates, batch.slate)
    longest = [int(part.lengths().max()) for part in lists]
    widths.append([batch.user.shape[1], *longest])
  if not times:
    cells.fail(plan.path, None, None, "the file has no rows; give at least one")
  cells.check_unique(plan.path, "request_id", cells.joined(names))
  user, history, candidates, slate = np.max(widths, 0).tolist()
  if options.slate_size > candidates:
    raise ConfigError(
      f"--slate_size={options.slate_size}, but {plan.path} has at most "
      f"{candidates} candidates a row; lower it."
    )
  return _Survey(
    times=np.concatenate(times),
    user=user,
    history=min(max(history, 1), options.history_size),
    candidates=candidates,
    slate=options.slate_size or slate,
  )


def _bounds(plan: rows.Layout, times: np.ndarray) -> tuple[int, int]:
  """First timestamps of valid and of test.

  The last tenth is test, the tenth before it valid; rows of equal time are
  never parted, so the shares are only about that.
  """
  moments = np.unique(times)
  if moments.size < 3:
    cells.fail(
      plan.path,
      None,
      "timestamp",
      f"only {moments.size} different times; three splits by time need 3",
    )
  ordered = np.sort(times)
  wanted = [ordered[times.size * share // 10] for share in (8, 9)]
  valid, test = np.searchsorted(moments, wanted)
  test = min(max(test, 2), moments.size - 1)
  valid = min(max(valid, 1), test - 1)
  return int(moments[valid]), int(moments[test])


def _write_items(
  draft: pathlib.Path, ids: pa.Array, features: np.ndarray, groups: np.ndarray
) -> None:
  """items/1.0.0: item_id (integer or text), group and features if any."""
  text = pa.types.is_string(ids.type)
  columns: dict[str, Any] = {
    "item_id": ((), str if text else np.int64),
    "group": ((), np.int32),
  }
  values = {"item_id": np.array(ids.to_pylist()), "group": groups}
  if features.shape[1]:
    columns["features"] = ((features.shape[1],), np.float32)
    values["features"] = features
  builder.write(
    "items", columns, {"items": lambda: _blocks(values)}, str(draft)
  )


def _write_impressions(
  draft: pathlib.Path,
  plan: rows.Layout,
  survey: _Survey,
  bounds: tuple[int, int],
) -> dict[str, int]:
  """impressions/1.0.0 with its three splits; returns their sizes."""
  k, n, signals = survey.slate, survey.candidates, len(plan.signals)
  columns = {
    "history": ((survey.history,), np.int32),
    "candidates": ((n,), np.int32),
    "scores": ((n,), np.float32),
    "size": ((), np.int32),
    "slate": ((k,), np.int32),
    "feedback": ((k, signals), np.float32),
    "propensity": ((k,), np.float32),
    "timestamp": ((), np.int64),
  }
  if survey.user:
    columns["user"] = ((survey.user,), np.float32)
  splits = {
    name: lambda part=part: _split_blocks(plan, survey, bounds, part, columns)
    for part, name in enumerate(schema.SPLITS)
  }
  builder.write("impressions", columns, splits, str(draft))
  part = np.searchsorted(bounds, survey.times, side="right")
  counts = np.bincount(part, minlength=len(schema.SPLITS)).tolist()
  return dict(zip(schema.SPLITS, counts, strict=True))


def _split_blocks(
  plan: rows.Layout,
  survey: _Survey,
  bounds: tuple[int, int],
  part: int,
  columns: dict[str, Any],
) -> Iterator[dict[str, np.ndarray]]:
  """Streams the impressions file again, for the rows of one split."""
  for _, batch in rows.read(plan):
    mine = np.searchsorted(bounds, batch.timestamp, side="right") == part
    if not mine.any():
      continue
    values = {
      "history": batch.history.padded(survey.history, PAD, to_left=True),
      "candidates": batch.candidates.padded(survey.candidates, PAD),
      "scores": batch.scores.padded(survey.candidates, 0),
      "size": batch.slate.lengths(),
      "slate": batch.slate.padded(survey.slate, PAD),
      "feedback": batch.feedback.padded(survey.slate, 0),
      "propensity": batch.propensity.padded(survey.slate, np.nan),
      "timestamp": batch.timestamp,
      "user": batch.user,
    }
    yield from _blocks(
      {
        name: values[name][mine].astype(dtype)
        for name, (_, dtype) in columns.items()
      }
    )


def _blocks(
  values: dict[str, np.ndarray],
) -> Iterator[dict[str, np.ndarray]]:
  """Cuts columns into records."""
  count = next(iter(values.values())).shape[0]
  for low in range(0, count, _BLOCK):
    yield {name: column[low : low + _BLOCK] for name, column in values.items()}


def _write_manifest(
  draft: pathlib.Path,
  options: ImportOptions,
  counts: dict[str, int],
) -> None:
  paths = sorted(path for path in draft.rglob("*") if path.is_file())
  manifest = {
    "format": imported.FORMAT,
    "signals": list(options.signals),
    "weights": list(options.weights or [1.0] * len(options.signals)),
    "rows": counts,
    "sha256": {
      path.relative_to(draft).as_posix(): imported.digest(path)
      for path in paths
    },
  }
  text = json.dumps(manifest, indent=2) + "\n"
  (draft / imported.MANIFEST).write_text(text)
