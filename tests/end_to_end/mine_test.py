"""Mining as real programs: SIGKILL halfway, and two processes."""

import pathlib
import re
import time

import numpy as np
import pytest

from rerank_rl.data import shards
from tests import programs
from tests.end_to_end import micro

ROWS = micro.KINDS["mine"]["mine.requests"]
SHARDS = micro.KINDS["mine"]["mine.shards"]


def _start(root, *cluster):
  return programs.Program(micro.main, (root, "mine", *cluster), 1)


def _shards(root: pathlib.Path) -> dict[str, pathlib.Path]:
  """The complete shards by name."""
  found = root.glob("mine-*/shards/shard-*")
  return {path.name: path for path in found if path.suffix != ".tmp"}


def _table(root: pathlib.Path) -> dict[str, np.ndarray]:
  """All rows, in the order of the requests."""
  (folder,) = root.glob("mine-*/shards")
  layout = shards.Layout(folder, ROWS, SHARDS)
  table = next(shards.Stream(layout, ROWS, 0))
  order = np.argsort(table["row"])
  return {name: column[order] for name, column in table.items()}


def _said(text: str) -> list[int]:
  """The shards that a process says it mined."""
  return [int(i) - 1 for i in re.findall(r"mined shard (\d+) of", text)]


@pytest.fixture(scope="module")
def calm(tmp_path_factory):
  folder = tmp_path_factory.mktemp("mine")
  (text,) = programs.finish(_start(folder / "calm"))
  assert _said(text) == list(range(SHARDS))
  return folder


def test_killed_halfway_no_shard_is_lost_or_made_twice(calm):
  root = calm / "killed"
  programs.lend(calm / "calm", root, "tokenizer", "lookahead")
  run = _start(root)
  while len(_shards(root)) < 3 and run.alive:
    time.sleep(0.005)
  run.kill()
  before = {
    name: path.stat().st_mtime_ns for name, path in _shards(root).items()
  }
  assert 3 <= len(before) < SHARDS
  (text,) = programs.finish(_start(root))
  assert len(_said(text)) == SHARDS - len(before)
  assert all(
    _shards(root)[n].stat().st_mtime_ns == t for n, t in before.items()
  )
  wanted, found = _table(calm / "calm"), _table(root)
  assert np.unique(found["row"]).size == ROWS
  for name, column in wanted.items():
    np.testing.assert_array_equal(found[name], column)


def test_two_processes_mine_disjoint_shards(calm):
  root, port = calm / "two", programs.free_port()
  programs.lend(calm / "calm", root, "tokenizer", "lookahead")
  one, two = map(
    _said,
    programs.finish(*(_start(root, port, 2, p) for p in range(2))),
  )
  assert sorted(one + two) == list(range(SHARDS))
  assert one and two
  assert np.unique(_table(root)["row"]).size == ROWS
