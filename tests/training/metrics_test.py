import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rerank_rl.config import ConfigError
from rerank_rl.training import metrics


def steps(folder):
  text = (folder / "metrics.jsonl").read_text()
  return [json.loads(x)["step"] for x in text.splitlines()]


def write(folder, start, stop):
  writer = metrics.Writer(folder)
  writer.resume(start - 1)
  for step in range(start, stop):
    writer.write(step, "train", {"loss": 1.0 / (step + 1)})
  writer.close()


def test_batches_weigh_what_they_hold():
  parts = [np.arange(2.0), np.arange(5.0) + 10]
  pooled = {"x": (sum(p.sum() for p in parts), sum(p.size for p in parts))}
  assert metrics.reduce(pooled)["x"] == np.concatenate(parts).mean()
  none = {"x": (jnp.zeros(()), jnp.zeros((), jnp.int32))}
  assert metrics.reduce(none) == {"x": None}


@pytest.mark.parametrize("restored", [-1, 0, 3, 9])
def test_resuming_leaves_no_trace(tmp_path, restored):
  write(tmp_path / "whole", 0, 10)
  write(tmp_path / "parts", 0, 8)
  write(tmp_path / "parts", min(restored, 7) + 1, 10)
  whole = (tmp_path / "whole" / "metrics.jsonl").read_bytes()
  assert (tmp_path / "parts" / "metrics.jsonl").read_bytes() == whole


def test_half_a_line_is_dropped(tmp_path):
  write(tmp_path, 0, 4)
  with open(tmp_path / "metrics.jsonl", "a") as file:
    file.write('{"step": 3, "spl')
  writer = metrics.Writer(tmp_path)
  writer.resume(3)
  writer.write(4, "train", {"loss": 0.0})
  writer.close()
  assert steps(tmp_path) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
  "row",
  [
    b"garbage",
    b"",
    b"\xff",
    b"[]",
    b"5",
    b"{}",
    b'{"step": null}',
    b"[" * 9999,
  ],
)
def test_a_row_that_cannot_be_read_is_named_and_nothing_is_lost(tmp_path, row):
  path = tmp_path / "metrics.jsonl"
  good = b'{"step": 0}\n'
  path.write_bytes(good + row + b"\n" + good)
  writer = metrics.Writer(tmp_path)
  with pytest.raises(ConfigError, match=r"jsonl, row 2, is damaged .*remove"):
    writer.resume(0)
  writer.close()
  assert path.read_bytes() == good + row + b"\n" + good
  # Cut off by a kill it is dropped, whatever it holds.
  path.write_bytes(good + row)
  writer = metrics.Writer(tmp_path)
  writer.resume(0)
  writer.close()
  assert path.read_bytes() == good


def test_a_folder_in_place_of_the_figures_is_named(tmp_path):
  (tmp_path / "metrics.jsonl").mkdir()
  with pytest.raises(ConfigError, match=r"metrics.jsonl is a folder; remove"):
    metrics.Writer(tmp_path)


def test_what_is_no_number_is_null(tmp_path):
  writer = metrics.Writer(tmp_path)
  writer.resume(-1)
  writer.write(1, "valid", {"a": float("nan"), "b": None, "c": 2.0})
  writer.close()
  line = (tmp_path / "metrics.jsonl").read_text()
  assert json.loads(line) == {
    "step": 1,
    "split": "valid",
    "a": None,
    "b": None,
    "c": 2.0,
  }
  assert "NaN" not in line


def test_only_process_zero_writes(tmp_path, monkeypatch):
  monkeypatch.setattr(jax, "process_index", lambda: 1)
  write(tmp_path, 0, 3)
  metrics.Writer(tmp_path).timing({"seconds": 1.0})
  assert not list(tmp_path.iterdir())


def test_figures_reach_tensorboard_and_times_their_file(tmp_path):
  writer = metrics.Writer(tmp_path)
  writer.resume(-1)
  writer.write(1, "train", {"loss": 2.0})
  writer.timing({"seconds": 1.5})
  writer.close()
  (events,) = (tmp_path / "tensorboard").iterdir()
  assert b"train/loss" in events.read_bytes()
  timing = json.loads((tmp_path / "timing.json").read_text())
  assert timing == {"seconds": 1.5}
