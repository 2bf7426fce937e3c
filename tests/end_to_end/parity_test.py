"""One device, eight, two processes: one result, and one checkpoint format."""

import pathlib
import shutil

import jax
import numpy as np
import pytest

from rerank_rl.training import checkpoint
from tests import programs
from tests.end_to_end import micro


def _start(root, devices, *cluster):
  return programs.Program(micro.main, (root, "parity", *cluster), devices)


def _params(root, stage):
  (folder,) = pathlib.Path(root).glob(f"{stage}-*")
  return checkpoint.load_artifact(folder)[0]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
  folder = tmp_path_factory.mktemp("parity")
  roots = {name: str(folder / name) for name in ("one", "eight", "two")}
  programs.finish(_start(roots["one"], 1))
  programs.finish(_start(roots["eight"], 8))
  port = programs.free_port()
  programs.finish(*(_start(roots["two"], 1, port, 2, p) for p in range(2)))
  return roots


def _close(a, b):
  gap = [
    np.square(x - y).sum()
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  ]
  norm = sum(np.square(x).sum() for x in jax.tree.leaves(a))
  return np.sqrt(sum(gap)) / np.sqrt(norm)


@pytest.mark.parametrize("stage", ("sft", "rl"))
@pytest.mark.parametrize("other", ("eight", "two"))
def test_twenty_steps_agree_in_64_bits(runs, stage, other):
  assert _close(_params(runs["one"], stage), _params(runs[other], stage)) < 1e-9


def test_a_checkpoint_moves_from_two_processes_to_one(runs, tmp_path):
  # The finished RL artifact is gone, its checkpoints are not: the single
  # process takes them up and must write the same parameters.
  root = tmp_path / "moved"
  shutil.copytree(runs["two"], root)
  (rl,) = root.glob("rl-*")
  (rl / "meta.json").unlink()
  last = max((rl / "checkpoints").iterdir(), key=lambda p: int(p.name))
  shutil.rmtree(last)
  programs.finish(_start(str(root), 1))
  assert _close(_params(runs["one"], "rl"), _params(root, "rl")) < 1e-9
