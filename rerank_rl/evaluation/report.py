"""What a run leaves behind for readers, other programs and the console.

  report.json     figures, intervals and what was seen on validation while
                  learning; equal runs give equal bytes
  judgements.npz  one number a request, so that intervals of the difference
                  between two runs can be computed later
  timing.json     how long things took, apart because it never repeats
  report.html     the same for people; one file that opens without a network

Every file appears whole or not at all: it is written beside its place and
then moved there.
"""

from collections.abc import Mapping, Sequence
import io
import json
import math
import os
import pathlib
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from rerank_rl import files
from rerank_rl.evaluation import judge, page

REPORT = "report.json"
JUDGEMENTS = "judgements.npz"
TIMING = "timing.json"
PAGE = "report.html"

_DIGITS = 6
_WIDTH = 240  # Columns of the console table before rich starts to squeeze.


def write(
  folder: str | os.PathLike[str],
  *,
  dataset: str,
  version: str,
  split: str,
  protocol: str,
  command: str,
  rows: Sequence[Mapping[str, Any]],
  judged: Mapping[str, judge.Judgement],
  timing: Mapping[str, float],
  history: Mapping[str, Sequence[Mapping[str, float]]] | None = None,
  calibrations: Mapping[str, Mapping[str, Any]] | None = None,
  deciles: Mapping[str, Sequence[Mapping[str, float]]] | None = None,
) -> None:
  """Writes the four files of a report into `folder`, made if missing.

  Args:
    folder: where to.
    dataset: what was judged.
    version: of its contents.
    split: of its rows.
    protocol: which part of the protocol, e.g. "value".
    command: the command line that repeats the run.
    rows: of `judge.summarise`, in the order in which to show them.
    judged: of `judge.judge`.
    timing: name -> seconds.
    history: stage -> [{"step": 10, metric: value}], on validation.
    calibrations: title -> `judge.calibration`.
    deciles: title -> `judge.gap_by_decile`.
  """
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  facts = {
    "dataset": dataset,
    "version": version,
    "split": split,
    "protocol": protocol,
    "command": command,
  }
  figures = {
    "history": history or {},
    "calibrations": calibrations or {},
    "deciles": deciles or {},
  }
  for name in (JUDGEMENTS, TIMING, PAGE, REPORT):
    if (folder / name).is_dir():
      raise files.damaged(folder / name, "it is a folder", "remove it")
  html = page.render(facts, rows, **figures)
  save_judgements(folder / JUDGEMENTS, judged)
  _place(folder / TIMING, _json(timing))
  _place(folder / PAGE, html.encode())
  _place(folder / REPORT, _json({**facts, **figures, "rows": list(rows)}))


def save_judgements(
  path: str | os.PathLike[str], judged: Mapping[str, judge.Judgement]
) -> None:
  """Saves per-request arrays as `system/metric`, floats in f32.

  Args:
    path: an .npz file.
    judged: of `judge.judge`; its scalars are left out.
  """
  arrays: dict[str, Any] = {
    f"{system}/{metric}": value
    if value.dtype == bool
    else value.astype(np.float32)
    for system, judgement in judged.items()
    for metric, value in judgement.items()
    if isinstance(value, np.ndarray)
  }
  buffer = io.BytesIO()
  np.savez_compressed(buffer, **arrays)
  _place(pathlib.Path(path), buffer.getvalue())


def load_judgements(
  path: str | os.PathLike[str],
) -> dict[str, dict[str, np.ndarray]]:
  """Per-request arrays of a finished run, for paired intervals.

  Args:
    path: what `save_judgements` wrote.

  Returns:
    system -> {metric: [n]}.
  """
  judged: dict[str, dict[str, np.ndarray]] = {}
  with np.load(path) as arrays:
    for name in arrays.files:
      system, metric = name.split("/", 1)
      judged.setdefault(system, {})[metric] = arrays[name]
  return judged


def table(rows: Sequence[Mapping[str, Any]]) -> str:
  """The table that ends a run: the headline metrics of every system.

  Args:
    rows: of `judge.summarise`.

  Returns:
    Plain text; the first metric comes with its 95 % interval.
  """
  metrics = page.headline(rows)
  seeds = len({row["seed"] for row in rows}) > 1
  shown = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
  shown.add_column("system", no_wrap=True)
  if seeds:
    shown.add_column("seed", justify="right")
  for i, metric in enumerate(metrics):
    shown.add_column(metric.replace("_", "\n"), justify="right")
    if i == 0:
      shown.add_column("95 %", justify="right", no_wrap=True)
  for row in rows:
    cells = [str(row["system"])] + [str(row["seed"])] * seeds
    for i, metric in enumerate(metrics):
      cells.append(page.number(row["metrics"].get(metric)))
      if i == 0:
        cells.append(page.bounds(row["intervals"].get(metric)))
    shown.add_row(*cells)
  text = io.StringIO()
  Console(file=text, width=_WIDTH, color_system=None).print(shown)
  return "\n".join(line.rstrip() for line in text.getvalue().splitlines())


def _plain(value: Any) -> Any:
  """`value` in JSON's own types: rounded, no NaN, no NumPy."""
  if isinstance(value, Mapping):
    return {str(key): _plain(x) for key, x in value.items()}
  if isinstance(value, (list, tuple)):
    return [_plain(x) for x in value]
  if isinstance(value, np.generic):
    value = value.item()
  if isinstance(value, float):
    # Adding 0 turns -0.0, an artefact of rounding, into 0.0.
    return round(value, _DIGITS) + 0.0 if math.isfinite(value) else None
  return value


def _json(value: Any) -> bytes:
  text = json.dumps(_plain(value), sort_keys=True, indent=1, ensure_ascii=False)
  return (text + "\n").encode()


def _place(path: pathlib.Path, content: bytes) -> None:
  """Writes beside `path`, then moves there in one step."""
  beside = path.with_name(f".{path.name}.{os.getpid()}")
  try:
    beside.write_bytes(content)
    os.replace(beside, path)
  finally:
    beside.unlink(missing_ok=True)
