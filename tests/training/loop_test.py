import dataclasses
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rerank_rl.config import ConfigError
from rerank_rl.training import loop, mesh
from tests.training import toy

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
  """A run that nothing interrupted."""
  folder = tmp_path_factory.mktemp("undisturbed")
  return folder, toy.flat(toy.fit(folder))


def lines(folder):
  return (folder / "metrics.jsonl").read_bytes()


def assert_same(folder, result, undisturbed):
  other, expected = undisturbed
  chex.assert_trees_all_equal(toy.flat(result), expected)
  assert lines(folder) == lines(other)


class Interrupting(toy.Batches):
  """Calls `act` as batch number `at` is asked for."""

  def __init__(self, at, act):
    super().__init__(toy.CONFIG.batch_size)
    self._at, self._act = at, act

  def __next__(self):
    if self._step == self._at:
      self._act()
    return super().__next__()


def crash():
  raise RuntimeError("crash")


@pytest.mark.parametrize("at", [1, 5, 13])
def test_resume_is_exact(tmp_path, undisturbed, at):
  with pytest.raises(RuntimeError, match="crash"):
    toy.fit(tmp_path, batches=Interrupting(at, crash))
  assert_same(tmp_path, toy.fit(tmp_path), undisturbed)


def test_sigterm_saves_and_exits(tmp_path, undisturbed):
  before = signal.getsignal(signal.SIGTERM)
  ask = lambda: os.kill(os.getpid(), signal.SIGTERM)
  with pytest.raises(SystemExit) as stopped:
    toy.fit(tmp_path, batches=Interrupting(7, ask))
  assert stopped.value.code == 143
  assert signal.getsignal(signal.SIGTERM) is before
  # Step 8 was under way; 8 is no multiple of checkpoint_every.
  assert (tmp_path / "checkpoints" / "8").exists()
  assert_same(tmp_path, toy.fit(tmp_path), undisturbed)


def test_finished_stage_is_skipped(undisturbed):
  folder, _ = undisturbed

  def never(*_):
    raise AssertionError

  result = toy.fit(
    folder, batches=Interrupting(0, crash), step_fn=never, evaluate=never
  )
  assert_same(folder, result, undisturbed)


def test_metrics_lines(undisturbed):
  rows = [json.loads(x) for x in lines(undisturbed[0]).splitlines()]
  train = [r["step"] for r in rows if r["split"] == "train"]
  valid = [r["step"] for r in rows if r["split"] == "valid"]
  assert train == list(range(1, 25))
  assert valid == [0, 4, 8, 12, 16, 20, 24]
  assert [r["step"] for r in rows] == sorted(r["step"] for r in rows)
  timing = json.loads((undisturbed[0] / "timing.json").read_text())
  assert timing["steps"] == 24 and timing["seconds"] > 0


def test_learns_and_selects_the_best(undisturbed):
  history = undisturbed[1]["history"]
  assert history[-1] < 0.6 * history[0]


def test_selection_and_patience(tmp_path):
  # The figure peaks at the third evaluation, then never again.
  figures = iter([0.0, 1.0, 5.0, float("nan"), 5.0, 9.0])
  seen = []

  def evaluate(params):
    seen.append(jax.tree.map(np.asarray, params))
    return {"gain": next(figures)}

  config = dataclasses.replace(toy.CONFIG, patience=2)
  result = toy.fit(
    tmp_path, config, evaluate=evaluate, select=("gain", True)
  )
  assert [h["step"] for h in result.history] == [0, 4, 8, 12, 16]
  chex.assert_trees_all_equal(result.best_params, seen[2])
  again = toy.fit(tmp_path, config, evaluate=None, select=None) if False else (
    toy.fit(tmp_path, config, evaluate=evaluate, select=("gain", True))
  )
  chex.assert_trees_all_equal(again.best_params, seen[2])


def test_without_selection_the_last_average_wins(tmp_path):
  result = toy.fit(tmp_path, evaluate=None, select=None)
  assert result.history == []
  chex.assert_trees_all_equal(result.best_params, result.state.ema)


def test_one_trace_and_donation(tmp_path):
  chex.clear_trace_counter()
  step = chex.assert_max_traces(toy.step_of.__wrapped__(), n=1)
  data = mesh.make()
  state = jax.device_put(toy.init(), mesh.replicated(data))
  result = toy.fit(tmp_path, state=state, step_fn=step, mesh=data)
  assert all(x.is_deleted() for x in jax.tree.leaves(state))
  assert not any(x.is_deleted() for x in jax.tree.leaves(result.state))


def test_bound_arrays_are_not_donated(tmp_path):
  frozen = toy.init().params
  inner = toy.step_of()

  def step(frozen, state, batch, key):
    state, metrics = inner(state, batch, key)
    gap = jnp.abs(state.params["in"]["bias"] - frozen["in"]["bias"])
    return state, {**metrics, "gap": (gap.sum(), gap.size)}

  bound = jax.tree_util.Partial(step, frozen)
  toy.fit(tmp_path, step_fn=bound, evaluate=None, select=None)
  assert not any(x.is_deleted() for x in jax.tree.leaves(frozen))
  last = json.loads(lines(tmp_path).splitlines()[-1])
  assert last["gap"] > 0


@pytest.mark.parametrize("rules", [(), ((r"kernel", "data"),)])
def test_one_and_eight_devices_agree(tmp_path, rules):
  rules = [(p, jax.sharding.PartitionSpec(None, a)) for p, a in rules]
  rules = [(r"in/kernel", spec) for _, spec in rules]
  with jax.enable_x64(True):
    one = toy.fit(tmp_path / "1", mesh=mesh.make(jax.devices()[:1]))
    eight = toy.fit(tmp_path / "8", rules=rules)
  if rules:
    kernel = eight.state.opt_state
    assert any(
      not x.is_fully_replicated for x in jax.tree.leaves(kernel)
    )
  chex.assert_trees_all_close(toy.flat(one), toy.flat(eight), rtol=1e-9)


def test_checkpoints_change_hands_between_meshes(tmp_path):
  with jax.enable_x64(True):
    expected = toy.flat(toy.fit(tmp_path / "whole"))
    toy.begin(tmp_path / "parts", toy.Batches(16, limit=10))
    one = mesh.make(jax.devices()[:1])
    result = toy.fit(tmp_path / "parts", mesh=one)
  assert result.state.step.sharding.device_set == {jax.devices()[0]}
  chex.assert_trees_all_close(toy.flat(result), expected, rtol=1e-9)


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"select": ("nothing", True)}, "nothing.*choose from error"),
    ({"evaluate": None}, "never evaluates"),
    ({"batches": toy.Batches(16, limit=3)}, "ended before step 4"),
    ({"batches": toy.Batches(12)}, "batch_size=12.*8 devices.*multiple of 8"),
  ],
)
def test_mistakes_are_named(tmp_path, changes, message):
  with pytest.raises(ValueError, match=message):
    toy.fit(tmp_path, **changes)


def test_divergence_is_named(tmp_path):
  bad = lambda state, batch, key: (state, {"loss": (jnp.nan, 1)})
  with pytest.raises(ValueError, match="toy: the loss is nan at step 1;"):
    toy.fit(tmp_path, step_fn=bad)


def test_other_configuration_is_refused(undisturbed):
  config = dataclasses.replace(toy.CONFIG, learning_rate=0.01)
  with pytest.raises(ConfigError, match="another configuration"):
    toy.fit(undisturbed[0], config)


def launch(*flags, devices=8, cache):
  """Starts the toy as a program."""
  environment = {
    **os.environ,
    "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
    "PYTHONPATH": str(ROOT),
    "JAX_COMPILATION_CACHE_DIR": str(cache),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
  }
  return subprocess.Popen(
    [sys.executable, "-m", "tests.training.toy", *map(str, flags)],
    env=environment,
    stderr=subprocess.PIPE,
  )


def finish(process):
  _, errors = process.communicate(timeout=120)
  assert process.returncode == 0, errors.decode()


def test_sigkill_at_any_moment(tmp_path):
  with jax.enable_x64(True):
    expected = tmp_path / "whole", toy.flat(toy.fit(tmp_path / "whole"))
  folder, rng = tmp_path / "killed", np.random.default_rng()
  kills = int(os.environ.get("KILLS", "2"))
  for count in range(kills):
    process = launch(folder, "--pause", 0.02, cache=tmp_path)
    seen = lines(folder).count(b"train") if count else 0
    while process.poll() is None:
      path = folder / "metrics.jsonl"
      if path.exists() and lines(folder).count(b"train") != seen:
        break
      time.sleep(0.01)
    time.sleep(rng.uniform(0, 0.6))
    process.kill()
    process.communicate()
  finish(launch(folder, cache=tmp_path))
  with np.load(folder / "result.npz") as result:
    chex.assert_trees_all_equal(dict(result), expected[1])
  assert lines(folder) == lines(expected[0])


def test_two_processes_and_one_interchange(tmp_path):
  with jax.enable_x64(True):
    expected = toy.flat(toy.fit(tmp_path / "whole"))
    toy.begin(tmp_path / "from_one", toy.Batches(16, limit=10))
  with socket.socket() as free:
    free.bind(("localhost", 0))
    address = f"localhost:{free.getsockname()[1]}"
  flags = [tmp_path / "from_one", "--partial", tmp_path / "from_two"]
  flags += ["--coordinator", address, "--process"]
  pair = [launch(*flags, p, devices=4, cache=tmp_path) for p in range(2)]
  for process in pair:
    finish(process)
  with np.load(tmp_path / "from_one" / "result.npz") as result:
    chex.assert_trees_all_close(dict(result), expected, rtol=1e-9)
  with jax.enable_x64(True):
    result = toy.fit(tmp_path / "from_two")
  chex.assert_trees_all_close(toy.flat(result), expected, rtol=1e-9)
  for folder in ("from_one", "from_two"):
    rows = [json.loads(x) for x in lines(tmp_path / folder).splitlines()]
    assert [r["step"] for r in rows if r["split"] == "train"] == list(
      range(1, 25)
    )
