import contextlib
import dataclasses
import itertools
import json
import os
import signal
import time

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rerank_rl.config import ConfigError
from rerank_rl.training import mesh
from tests import programs
from tests.training import toy


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
  """A run that nothing interrupted."""
  folder = tmp_path_factory.mktemp("undisturbed")
  return folder, toy.flat(toy.fit(folder))


@contextlib.contextmanager
def wide():
  """64 bits in every thread (`jax.enable_x64` means only the current one)."""
  jax.config.update("jax_enable_x64", True)
  try:
    yield
  finally:
    jax.config.update("jax_enable_x64", False)


def one():
  """A mesh of one device."""
  return mesh.make(jax.devices()[:1])


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


@pytest.mark.parametrize("at", [1, 13])
def test_resume_is_exact(tmp_path, undisturbed, at):
  with pytest.raises(RuntimeError, match="crash"):
    toy.fit(tmp_path, batches=Interrupting(at, crash))
  assert_same(tmp_path, toy.fit(tmp_path), undisturbed)


@pytest.mark.parametrize("at", [7, 23])
def test_sigterm_saves_and_exits(tmp_path, undisturbed, at):
  before = signal.getsignal(signal.SIGTERM)
  ask = lambda: os.kill(os.getpid(), signal.SIGTERM)
  with pytest.raises(SystemExit) as stopped:
    toy.fit(tmp_path, batches=Interrupting(at, ask))
  assert stopped.value.code == 143
  assert signal.getsignal(signal.SIGTERM) is before
  # The step under way is saved, though 8 is no multiple of checkpoint_every;
  # a signal during the last step is not lost either.
  assert (tmp_path / "checkpoints" / str(at + 1)).exists()
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
  assert history[-1] < 0.8 * history[0]


def test_selection_and_patience(tmp_path, caplog):
  # The figure peaks at the third evaluation, then never again.
  figures = iter([0.0, 1.0, 5.0, float("nan"), 5.0, 9.0])
  seen = []

  def evaluate(params):
    seen.append(jax.tree.map(np.asarray, params))
    return {"gain": next(figures)}

  config = dataclasses.replace(toy.CONFIG, patience=2)
  # Patience does not change the step.
  again = dict(
    config=config,
    step_fn=toy.step_of(),
    evaluate=evaluate,
    select=("gain", True),
  )
  result = toy.fit(tmp_path, **again)
  assert [h["step"] for h in result.history] == [0, 4, 8, 12, 16]
  chex.assert_trees_all_equal(result.best_params, seen[2])
  chex.assert_trees_all_equal(toy.fit(tmp_path, **again).best_params, seen[2])
  assert "its start" not in caplog.text


def test_what_cannot_be_judged_is_refused_at_once(tmp_path):
  evaluate = lambda params: {"gain": float("nan")}
  with pytest.raises(ValueError, match=r"'gain', which is nan at step 0"):
    toy.fit(tmp_path, evaluate=evaluate, select=("gain", True))


def test_who_keeps_what_the_stage_began_with_is_told(tmp_path, caplog):
  figures = itertools.count(0, -1)
  result = toy.fit(
    tmp_path,
    evaluate=lambda params: {"gain": next(figures)},
    select=("gain", True),
  )
  start = jax.tree.map(np.asarray, toy.init().params)
  chex.assert_trees_all_equal(result.best_params, start)
  assert "toy: no step was better" in caplog.text


def test_what_knows_nothing_is_not_selected(tmp_path):
  figures, seen = itertools.chain([9.0, 1.0, 3.0], itertools.repeat(2.0)), []

  def evaluate(params):
    seen.append(jax.tree.map(np.asarray, params))
    return {"gain": next(figures)}

  change = dict(evaluate=evaluate, select=("gain", True), since=1)
  result = toy.fit(tmp_path, **change)
  assert result.history[0]["gain"] == 9
  chex.assert_trees_all_equal(result.best_params, seen[2])


def test_without_selection_the_last_average_wins(tmp_path):
  result = toy.fit(tmp_path, evaluate=None, select=None)
  assert result.history == []
  chex.assert_trees_all_equal(result.best_params, result.state.ema)


def test_one_trace_and_donation_of_the_state_alone(tmp_path):
  inner, frozen = toy.step_of(), toy.init().params

  def step(frozen, state, batch, key):
    state, metrics = inner(state, batch, key)
    gap = jnp.abs(state.params["in"]["bias"] - frozen["in"]["bias"])
    return state, {**metrics, "gap": (gap.sum(), gap.size)}

  chex.clear_trace_counter()
  step = jax.tree_util.Partial(chex.assert_max_traces(step, n=1), frozen)
  state = jax.device_put(toy.init(), mesh.replicated(one()))
  result = toy.fit(tmp_path, state=state, step_fn=step, mesh=one())
  assert all(x.is_deleted() for x in jax.tree.leaves(state))
  for kept in (frozen, result.state, result.best_params):
    assert not any(x.is_deleted() for x in jax.tree.leaves(kept))
  last = json.loads(lines(tmp_path).splitlines()[-2])
  assert last["gap"] > 0


def test_the_step_is_compiled_once_and_beside_the_first_evaluation(
  tmp_path, caplog
):
  jax.clear_caches()
  jax.config.update("jax_log_compiles", True)
  try:
    toy.fit(tmp_path, mesh=one())
  finally:
    jax.config.update("jax_log_compiles", False)
  threads = [
    record.threadName
    for record in caplog.records
    if "XLA compilation of jit(advance)" in record.getMessage()
  ]
  assert len(threads) == 1 and threads[0] != "MainThread"


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
  """An undisturbed run in 64 bits on one device."""
  folder = tmp_path_factory.mktemp("alone")
  with wide():
    return folder, toy.flat(toy.fit(folder, mesh=one()))


def test_eight_devices_equal_one(tmp_path, alone):
  with wide():
    eight = toy.flat(toy.fit(tmp_path))
  chex.assert_trees_all_close(eight, alone[1], rtol=1e-9)


def test_checkpoints_change_meshes(tmp_path, alone):
  # Begun on one device; ended on eight, weights and moments split.
  rules = [(r"in/kernel", jax.sharding.PartitionSpec(None, "data"))]
  with wide():
    toy.begin(tmp_path, toy.Batches(16, limit=10), mesh=one())
    result = toy.fit(tmp_path, rules=rules)
  assert not result.state.params["in"]["kernel"].is_fully_replicated
  assert result.state.params["in"]["bias"].is_fully_replicated
  assert len(result.state.step.sharding.device_set) == 8
  chex.assert_trees_all_close(toy.flat(result), alone[1], rtol=1e-9)


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


def launch(*flags, devices):
  """Starts the toy as a program."""
  return programs.Program(toy.main, flags, devices)


def test_sigkill_at_any_moment(tmp_path, alone):
  folder, rng = tmp_path / "killed", np.random.default_rng()
  for count in range(int(os.environ.get("KILLS", "2"))):
    process = launch(folder, "--pause", 0.02, devices=1)
    seen = lines(folder).count(b"train") if count else 0
    while process.alive:
      if (folder / "metrics.jsonl").exists():
        if lines(folder).count(b"train") != seen:
          break
      time.sleep(0.01)
    time.sleep(rng.uniform(0, 0.6))
    process.kill()
  programs.finish(launch(folder, devices=1))
  with np.load(folder / "result.npz") as result:
    chex.assert_trees_all_equal(dict(result), alone[1])
  assert lines(folder) == lines(alone[0])


def test_one_and_two_processes_interchange(tmp_path, alone):
  from_one, from_two = tmp_path / "from_one", tmp_path / "from_two"
  with wide():
    toy.begin(from_one, toy.Batches(16, limit=10), mesh=one())
  address = f"localhost:{programs.free_port()}"
  flags = [from_one, "--partial", from_two, "--coordinator", address]
  pair = [launch(*flags, "--process", p, devices=2) for p in range(2)]
  programs.finish(*pair)
  with np.load(from_one / "result.npz") as result:
    chex.assert_trees_all_close(dict(result), alone[1], rtol=1e-9)
  assert (from_two / "checkpoints" / "9").exists()
  with wide():
    result = toy.fit(from_two, mesh=one())
  chex.assert_trees_all_close(toy.flat(result), alone[1], rtol=1e-9)
  for folder in (from_one, from_two):
    rows = [json.loads(x) for x in lines(folder).splitlines()]
    steps = [r["step"] for r in rows if r["split"] == "train"]
    assert steps == list(range(1, 25))
