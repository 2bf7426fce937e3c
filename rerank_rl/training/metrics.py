"""Figures of a stage: JSON lines, TensorBoard and the log.

A metric travels as (sum, count) and is divided only here, so that batches of
unequal size, devices and processes weigh what they should. The JSON lines
hold no clock: a killed and resumed run writes the same bytes as one that was
left alone. Times go to timing.json.
"""

from collections.abc import Mapping
import json
import math
import os
import pathlib
from typing import Any

from absl import logging
import jax

from rerank_rl.config import ConfigError
from rerank_rl.files import parse_object

_REMEDY = "remove that row, whose figures are lost, and run again"


def reduce(metrics: Mapping[str, Any]) -> dict[str, float | None]:
  """Means of metrics: sum / count; waits for the device.

  Args:
    metrics: name -> (sum, count), scalars.

  Returns:
    name -> sum / count, or None where count is 0.
  """
  host = jax.device_get(dict(metrics))
  return {
    name: float(total) / float(count) if count else None
    for name, (total, count) in sorted(host.items())
  }


class Writer:
  """Writes figures to a folder; on processes other than 0 it does nothing.

  Raises:
    ConfigError: a folder is where its file goes.
  """

  def __init__(self, folder: str | os.PathLike):
    self._folder = pathlib.Path(folder)
    self._board = None
    self._purge = None
    self._lines = None
    if jax.process_index() == 0:
      self._folder.mkdir(parents=True, exist_ok=True)
      path = self._folder / "metrics.jsonl"
      if path.is_dir():
        raise ConfigError(f"{path} is a folder; remove it and run again.")
      self._lines = open(path, "ab+")

  def resume(self, step: int) -> None:
    """Drops every line after `step`, and one that a kill left half-written.

    Args:
      step: the restored step; -1 drops everything.

    Raises:
      ConfigError: a line up to `step` is none that `write` wrote.
    """
    if self._lines is None:
      return
    self._purge = step + 1
    self._lines.seek(0)
    kept = 0
    for row, line in enumerate(self._lines, 1):
      if not line.endswith(b"\n"):
        break
      name = f"{self._lines.name}, row {row},"
      if parse_object(line, name, _REMEDY, step=int)["step"] > step:
        break
      kept += len(line)
    self._lines.truncate(kept)
    self._lines.seek(0, os.SEEK_END)

  def write(
    self, step: int, split: str, values: Mapping[str, float | None]
  ) -> None:
    """Adds one line {"step", "split", name: value...}; None becomes null.

    Args:
      step: batches learnt from so far; must not decrease.
      split: "train", "valid", ...: whose figures they are.
      values: name -> number.
    """
    if self._lines is None:
      return
    plain = {
      name: value if value is not None and math.isfinite(value) else None
      for name, value in values.items()
    }
    line = {"step": step, "split": split, **plain}
    self._lines.write((json.dumps(line) + "\n").encode())
    if self._board is None:
      # Here, since it imports torch where that is installed: seconds.
      from tensorboardX import SummaryWriter

      self._board = SummaryWriter(
        str(self._folder / "tensorboard"), purge_step=self._purge
      )
    for name, value in plain.items():
      if value is not None:
        self._board.add_scalar(f"{split}/{name}", value, step)

  def log(self, title: str, step: int, values: Mapping[str, float]) -> None:
    """Says figures in the log, on one line."""
    if self._lines is not None:
      text = ", ".join(f"{name} {value:.5g}" for name, value in values.items())
      logging.info("%s, step %d: %s", title, step, text)

  def timing(self, values: Mapping[str, Any]) -> None:
    """Replaces timing.json, the one place for seconds."""
    if self._lines is None:
      return
    path = self._folder / "timing.json"
    fresh = path.with_suffix(".tmp")
    fresh.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    fresh.replace(path)

  def flush(self) -> None:
    """Puts what was written on the disk."""
    if self._lines is not None:
      self._lines.flush()
      os.fsync(self._lines.fileno())

  def close(self) -> None:
    """Flushes and closes; the writer cannot be used afterwards."""
    self.flush()
    if self._lines is not None:
      self._lines.close()
      self._lines = None
    if self._board is not None:
      self._board.close()
      self._board = None
