"""Tables that need not fit into memory: written in shards, read in blocks.

Each shard is an array_record table of its own (`data.builder`) that appears
whole or not at all, and belongs to one process: a job that was killed goes on
with the shards that are missing, on any number of processes.
"""

from collections.abc import Callable, Iterator, Mapping
import dataclasses
import pathlib
import shutil
from typing import Any

import numpy as np

from rerank_rl.data import builder

BLOCK = 16  # Rows of a record; what is shuffled as one.
_TABLE, _SPLIT = "rows", "train"


@dataclasses.dataclass(frozen=True)
class Layout:
  """Where a table's rows are.

  Attributes:
    folder: of the shards.
    rows: n, in all shards.
    shards: S; shard i holds rows [n i / S, n (i + 1) / S).
  """

  folder: pathlib.Path
  rows: int
  shards: int

  def path(self, shard: int) -> pathlib.Path:
    """The shard's folder; it is there once the shard is complete."""
    return self.folder / f"shard-{shard:05d}-of-{self.shards:05d}"

  def span(self, shard: int) -> range:
    """The rows that the shard holds."""
    at = lambda i: self.rows * i // self.shards
    return range(at(shard), at(shard + 1))

  def missing(self, process: int = 0, processes: int = 1) -> list[int]:
    """The process's own shards, every P-th, that are not there yet."""
    own = range(process, self.shards, processes)
    return [i for i in own if self.span(i) and not self.path(i).exists()]


def write(
  layout: Layout,
  shard: int,
  columns: Mapping[str, tuple[tuple[int, ...], type]],
  table: builder.Block,
) -> None:
  """Writes a shard, which appears once all of it is on the disk.

  Args:
    layout: where to.
    shard: its number.
    columns: name -> (shape of a row, numpy type).
    table: name -> its rows, as many as `layout.span(shard)`.
  """
  final = layout.path(shard)
  fresh = final.with_suffix(".tmp")
  shutil.rmtree(fresh, ignore_errors=True)  # Of a process that was killed.
  count = len(layout.span(shard))

  def blocks() -> Iterator[builder.Block]:
    for begin in range(0, count, BLOCK):
      yield {name: x[begin : begin + BLOCK] for name, x in table.items()}

  builder.write(_TABLE, columns, {_SPLIT: blocks}, str(fresh))
  fresh.rename(final)


class Stream:
  """Shuffled batches of a table, for ever; a `loop.fit` iterator.

  Blocks are shuffled anew each epoch and read when they are needed. The
  global batches depend on `seed` alone; process p of P gets rows
  [p b / P, (p + 1) b / P) of each, and reads their blocks only.
  """

  def __init__(
    self,
    layout: Layout,
    batch_size: int,
    seed: int,
    process: int = 0,
    processes: int = 1,
    make: Callable[[dict[str, np.ndarray]], Any] = dict,
  ):
    """Opens a table whose shards are all there.

    Args:
      layout: where it is.
      batch_size: rows of a global batch, b; P divides it.
      seed: of the shuffle, >= 0.
      process: p.
      processes: P.
      make: what a batch's columns become.
    """
    shards = [i for i in range(layout.shards) if layout.span(i)]
    self._sources = [
      builder.source(str(layout.path(i)), _TABLE, _SPLIT) for i in shards
    ]
    # (shard, record, rows) of every block.
    self._blocks = [
      (place, record, min(BLOCK, len(layout.span(i)) - begin))
      for place, i in enumerate(shards)
      for record, begin in enumerate(range(0, len(layout.span(i)), BLOCK))
    ]
    self._sizes = np.array([size for _, _, size in self._blocks])
    self._rows, self._batch, self._seed = layout.rows, batch_size, seed
    self._share = [batch_size * i // processes for i in (process, process + 1)]
    self._make, self._step = make, 0

  def __iter__(self) -> "Stream":
    return self

  def __next__(self) -> Any:
    begin, end = (self._step * self._batch + at for at in self._share)
    parts = []
    while begin < end:
      epoch, at = divmod(begin, self._rows)
      order = np.random.default_rng([self._seed, epoch]).permutation(
        len(self._blocks)
      )
      ends = np.cumsum(self._sizes[order])
      turn = int(np.searchsorted(ends, at, side="right"))
      place, record, size = self._blocks[order[turn]]
      first = at - (int(ends[turn]) - size)
      last = min(size, first + end - begin)
      block = self._sources[place][record]
      parts.append({name: x[first:last] for name, x in block.items()})
      begin += last - first
    self._step += 1
    return self._make(
      {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}
    )

  def get_state(self) -> dict[str, int]:
    """The place in the data: batches given so far."""
    return {"step": self._step}

  def set_state(self, state: dict[str, int]) -> None:
    """Goes on exactly after `state`."""
    self._step = state["step"]
