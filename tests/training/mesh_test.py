import chex
import jax
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest

from rerank_rl.config import ConfigError
from rerank_rl.training import mesh


def test_batch_keeps_rows_and_is_split():
  data = mesh.make()
  local = {"x": np.arange(48.0).reshape(16, 3), "ids": np.arange(16)}
  batch = mesh.put_batch(data, local)
  chex.assert_trees_all_equal(batch, jax.tree.map(np.asarray, batch))
  np.testing.assert_array_equal(batch["x"], local["x"])
  np.testing.assert_array_equal(batch["ids"], local["ids"])
  rows = [s.data.shape[0] for s in batch["x"].addressable_shards]
  assert rows == [2] * 8
  # As jit would take it: 32 bits unless x64 is on.
  assert batch["ids"].dtype == np.int32


@pytest.mark.parametrize("rows", [1, 12, 9])
def test_indivisible_batch_is_named(rows):
  words = f"batch_size={rows} cannot be split over 8 devices; .* multiple of 8"
  with pytest.raises(ConfigError, match=words):
    mesh.put_batch(mesh.make(), np.zeros((rows, 2)))


def test_one_device_takes_any_batch():
  data = mesh.make(jax.devices()[:1])
  assert mesh.put_batch(data, np.zeros((7, 2))).shape == (7, 2)


def test_first_rule_found_in_a_path_wins():
  tree = {"layer_0": {"kernel": np.zeros((4, 8)), "bias": np.zeros(8)}}
  rules = [(r"layer_\d/kernel$", P(None, "data")), ("layer", P())]
  places = mesh.shardings(mesh.make(), jax.eval_shape(lambda: tree), rules)
  assert places["layer_0"]["kernel"].spec == P(None, "data")
  assert places["layer_0"]["bias"].spec == P()
  everywhere = jax.tree.leaves(mesh.shardings(mesh.make(), tree))
  assert all(p.is_fully_replicated for p in everywhere)


def test_axes_are_auto():
  assert mesh.make().axis_types == (jax.sharding.AxisType.Auto,)
  assert mesh.make().shape == {"data": 8}


@pytest.mark.parametrize(
  "flags", [("host:1", 0, -1), ("", 2, 0), ("host:1", 2, 2), ("host", 2, 0)]
)
def test_half_given_flags_are_refused(flags):
  with pytest.raises(ConfigError, match="give all three"):
    mesh.initialize_distributed(*flags)


def test_what_the_environment_says(monkeypatch):
  calls = []
  monkeypatch.setattr(jax.distributed, "initialize", lambda *a: calls.append(a))
  mesh.initialize_distributed("localhost:1", 2, 1)
  mesh.initialize_distributed()
  assert calls == [("localhost:1", 2, 1), ()]
  # One Slurm task must keep all its GPUs.
  monkeypatch.setenv("SLURM_NTASKS", "1")
  mesh.initialize_distributed()
  assert len(calls) == 2


def test_only_a_missing_cluster_is_forgiven(monkeypatch):
  def fail(text):
    def initialize():
      raise ValueError(text)

    monkeypatch.setattr(jax.distributed, "initialize", initialize)

  monkeypatch.delenv("SLURM_NTASKS", raising=False)
  fail("coordinator_address should be defined.")
  mesh.initialize_distributed()
  fail("The process id of the current process must be defined.")
  with pytest.raises(ValueError, match="process id"):
    mesh.initialize_distributed()
