"""The one loop of every stage that learns.

A stage brings a step and an evaluation; the loop brings order: batches onto
the mesh, one key a step, figures, selection, checkpoints, resuming. A run
that is killed at any moment and started again ends with the same bytes as
one that was not.
"""

import base64
from collections.abc import Callable, Mapping
from concurrent import futures
import contextlib
import dataclasses
import functools
import math
import os
import pathlib
import time
from typing import Any

from absl import logging
import jax
import numpy as np
import tqdm

from rerank_rl import config as config_lib
from rerank_rl.training import checkpoint as checkpoint_lib
from rerank_rl.training import mesh as mesh_lib
from rerank_rl.training import metrics as metrics_lib
from rerank_rl.training import preemption
from rerank_rl.training import state as state_lib


@dataclasses.dataclass(frozen=True)
class FitResult:
  """What a stage learnt.

  Attributes:
    best_params: averaged parameters of the best evaluation, or the last ones
      where nothing selects.
    state: the final TrainState; both are on the mesh.
    history: one dict an evaluation, {"step": batches so far, name: value}.
  """

  best_params: Any
  state: state_lib.TrainState
  history: list[dict[str, float]]


@dataclasses.dataclass
class _Progress:
  """The loop's bookkeeping, saved with every checkpoint."""

  config: str
  step: int = 0
  history: list[dict[str, float]] = dataclasses.field(default_factory=list)
  best: float | None = None
  stale: int = 0  # Evaluations since the best.
  finished: bool = False
  seconds: float = 0.0
  evaluating: float = 0.0
  batches: Any = None


class _Selection:
  """Keeps the best parameters; `select` = (metric, maximise) or None."""

  def __init__(self, select, since, title):
    self._select = select
    self._since = since
    self._title = title

  def better(self, values: Mapping[str, float], progress: _Progress) -> bool:
    """Notes an evaluation in `progress`; whether it is the best so far."""
    if self._select is None:
      return False
    name, maximise = self._select
    if name not in values:
      raise ValueError(
        f"{self._title} selects by {name!r}, which its evaluation does not "
        f"return; choose from {', '.join(sorted(values))}."
      )
    if progress.step < self._since:
      return False
    value, best = values[name], progress.best
    if best is None and math.isnan(value):
      raise ValueError(
        f"{self._title} selects by {name!r}, which is nan at step "
        f"{progress.step}: validation holds nothing to judge by, such as an "
        "item that was liked; give other rows, signals or weights."
      )
    gain = best is None or (value > best if maximise else value < best)
    progress.stale = 0 if gain else progress.stale + 1
    progress.best = value if gain else best
    return gain


class _Fit:
  """One call of `fit`."""

  def __init__(self, state, mesh, config, folder, title, select, since, writer):
    self.state = state
    self.best = None if select is None else state_lib.copy(state.ema)
    self.mesh = mesh
    self.config = config
    self.title = title
    self.writer = writer
    self.selection = _Selection(select, since, title)
    self.progress = _Progress(config_lib.fingerprint(config))
    self.checkpoints = checkpoint_lib.Checkpoints(folder / "checkpoints")
    self._pending = None
    self._since = time.monotonic()

  def tree(self):
    """What a checkpoint holds in arrays."""
    extra = {} if self.best is None else {"best": self.best}
    return {"state": self.state, **extra}

  def resume(self, batches) -> None:
    """Takes up the latest checkpoint, where there is one."""
    if self.checkpoints.latest is None:
      self.writer.resume(-1)
      return
    tree, saved = self.checkpoints.restore(self.tree())
    if saved["config"] != self.progress.config:
      raise config_lib.ConfigError(
        f"{self.title}'s folder holds checkpoints of another configuration; "
        "use another workdir or remove that folder."
      )
    self.progress = _Progress(**saved)
    self.state, self.best = tree["state"], tree.get("best")
    self.writer.resume(self.progress.step)
    if not self.progress.finished:
      batches.set_state(_decode(self.progress.batches))
      logging.info("%s resumes at step %d.", self.title, self.progress.step)

  def save(self, batches) -> None:
    """Figures first, so that no checkpoint is ahead of them."""
    self.flush()
    self.writer.flush()
    now = time.monotonic()
    progress = self.progress
    progress.seconds += now - self._since
    self._since = now
    progress.batches = _encode(batches.get_state())
    self.checkpoints.save(
      progress.step, self.tree(), dataclasses.asdict(progress)
    )
    learning = progress.seconds - progress.evaluating
    self.writer.timing(
      {
        "steps": progress.step,
        "seconds": progress.seconds,
        "evaluating": progress.evaluating,
        "steps_per_second": progress.step / max(learning, 1e-9),
      }
    )

  def flush(self, following=None) -> None:
    """Writes the figures of the step before `following`, which waits."""
    pending, self._pending = self._pending, following
    if pending is None:
      return
    step, metrics = pending
    values = metrics_lib.reduce(metrics)
    loss = values.get("loss")
    if loss is not None and not math.isfinite(loss):
      raise ValueError(
        f"{self.title}: the loss is {loss} at step {step}; lower "
        "learning_rate or clip_norm, or look for NaN in the data."
      )
    self.writer.write(step, "train", values)

  def evaluate(self, evaluate) -> None:
    """Runs the evaluation and keeps what is best."""
    self.flush()
    start = time.monotonic()
    values = {k: float(v) for k, v in evaluate(self.state.ema).items()}
    self.progress.evaluating += time.monotonic() - start
    step = self.progress.step
    self.progress.history.append({"step": step, **values})
    self.writer.write(step, "valid", values)
    self.writer.log(self.title, step, values)
    if self.selection.better(values, self.progress):
      self.best = state_lib.copy(self.state.ema)

  def result(self) -> FitResult:
    """The stage's result."""
    progress = self.progress
    # The first evaluation is of what the stage began with.
    if 0 < progress.stale == len(progress.history) - 1:
      logging.warning(
        "%s: no step was better on validation than its start, which is kept.",
        self.title,
      )
    best = self.state.ema if self.best is None else self.best
    return FitResult(best, self.state, progress.history)


def _encode(position: Any) -> Any:
  """An iterator's state as JSON: bytes become text."""
  if isinstance(position, bytes):
    return {"base64": base64.b64encode(position).decode()}
  return {"json": position}


def _decode(position: Any) -> Any:
  if "base64" in position:
    return base64.b64decode(position["base64"])
  return position["json"]


def _next(batches, title: str, step: int):
  try:
    return next(batches)
  except StopIteration:
    raise ValueError(
      f"{title}: the batches ended before step {step + 1}; repeat them or "
      "lower steps."
    ) from None


@functools.lru_cache(maxsize=8)
def _advance(treedef, places, whole, impl):
  """The jitted step: (step_fn, state, batch, key, number) -> state, metrics.

  Cached, so that equal stages (three evaluators) compile once.

  Args:
    treedef: the state's.
    places: the shardings of its leaves.
    whole: the sharding of the metrics.
    impl: the key's; its data travel, as keys cannot be put on other hosts.
  """

  @functools.partial(
    jax.jit,
    donate_argnums=1,
    out_shardings=(jax.tree.unflatten(treedef, places), whole),
  )
  def advance(step_fn, state, batch, key, number):
    key = jax.random.wrap_key_data(key, impl=impl)
    return step_fn(state, batch, jax.random.fold_in(key, number))

  return advance


def fit(
  state: state_lib.TrainState,
  step_fn: Callable[..., tuple[state_lib.TrainState, dict[str, Any]]],
  batches: Any,
  config: config_lib.TrainConfig,
  key: jax.Array,
  *,
  folder: str | os.PathLike,
  title: str,
  evaluate: Callable[[Any], Mapping[str, float]] | None = None,
  select: tuple[str, bool] | None = None,
  since: int = 0,
  writer: metrics_lib.Writer | None = None,
  mesh: jax.sharding.Mesh | None = None,
  rules: mesh_lib.Rules = (),
) -> FitResult:
  """Learns, or resumes learning, or returns what an earlier run learnt.

  Args:
    state: the initial state; its memory is donated, do not use it again.
    step_fn: pure (state, batch, key) -> (state, {name: (sum, count)}), jitted
      here, in a thread beside the first evaluation; "loss" must stay finite.
      Large arrays that it needs and does not change are bound with
      `jax.tree_util.Partial`, not closed over.
    batches: iterator over this process's rows (numpy pytrees) with
      `get_state()` (bytes or JSON) and `set_state(state)`; a state must mean
      the same place in every process.
    config: the stage's numbers; a step is a batch.
    key: the stage's key; step s uses fold_in(key, s).
    folder: the stage's own; holds checkpoints/, metrics.jsonl, tensorboard/
      and timing.json.
    title: what the progress bar and messages call the stage.
    evaluate: averaged parameters -> figures, equal on all processes; called
      at step 0, every `eval_every` steps and at the end.
    select: (figure, whether more is better): picks `best_params`, and stops
      after `patience` evaluations without gain. None = the last parameters.
    since: the first step that may be picked; 1 where the initial parameters
      know nothing and a lucky draw of them is not to be kept.
    writer: where figures go; None = `folder`.
    mesh: the devices; None = all.
    rules: where parameters live, see `mesh.shardings`; default replicated.

  Returns:
    A FitResult; the same when called again on a finished folder.

  Raises:
    ValueError: a configuration that cannot run, a damaged checkpoint or one
      of another configuration, batches that end, a loss that is not finite.
    SystemExit: SIGTERM arrived; everything is saved (status 143).
  """
  state_lib.check(config, title)
  if select is not None and evaluate is None:
    raise ValueError(f"{title} selects by {select[0]!r} but never evaluates.")
  folder = pathlib.Path(folder)
  mesh = mesh_lib.make() if mesh is None else mesh
  state = jax.device_put(state, mesh_lib.shardings(mesh, state, rules))
  with contextlib.ExitStack() as stack:
    preempted = stack.enter_context(preemption.Preemption())
    if writer is None:
      writer = metrics_lib.Writer(folder)
      stack.callback(writer.close)
    run = _Fit(state, mesh, config, folder, title, select, since, writer)
    del state
    stack.callback(run.checkpoints.close)
    run.resume(batches)
    if not run.progress.finished:
      _learn(run, step_fn, batches, key, evaluate, preempted)
    return run.result()


def _evaluate_first(run, evaluate, lower, args) -> None:
  """Evaluates while a thread compiles the step: XLA needs no Python."""
  with futures.ThreadPoolExecutor(1) as pool:
    step = pool.submit(lambda: lower(*args).compile())
    run.evaluate(evaluate)
    step.result()


def _learn(run, step_fn, batches, key, evaluate, preempted) -> None:
  """The loop itself."""
  config, progress = run.config, run.progress
  if not isinstance(step_fn, jax.tree_util.Partial):
    step_fn = jax.tree_util.Partial(step_fn)
  whole = mesh_lib.replicated(run.mesh)
  step_fn = jax.device_put(step_fn, whole)
  leaves, treedef = jax.tree.flatten(run.state)
  places = tuple(leaf.sharding for leaf in leaves)
  advance = _advance(treedef, places, whole, jax.random.key_impl(key))
  key = np.asarray(jax.random.key_data(key))
  del leaves

  def take():
    batch = _next(batches, run.title, progress.step)
    return mesh_lib.put_batch(run.mesh, batch)

  batch = take()
  if evaluate is not None and not progress.history:
    first = step_fn, run.state, batch, key, np.uint32(progress.step)
    _evaluate_first(run, evaluate, advance.lower, first)
    del first
  bar = tqdm.tqdm(
    total=config.steps,
    initial=progress.step,
    desc=run.title,
    disable=None if jax.process_index() == 0 else True,
  )
  with bar:
    while True:
      run.state, metrics = advance(
        step_fn, run.state, batch, key, np.uint32(progress.step)
      )
      progress.step += 1
      run.flush((progress.step, metrics))  # The previous step's, while this
      bar.update()  # one computes.
      last = progress.step == config.steps
      if evaluate and (last or progress.step % config.eval_every == 0):
        run.evaluate(evaluate)
      progress.finished = last or 0 < config.patience <= progress.stale
      stop = preempted(progress.step) and not progress.finished
      due = progress.step % config.checkpoint_every == 0
      if due or stop or progress.finished:
        run.save(batches)
      if stop:
        run.checkpoints.wait()
        logging.warning(
          "%s stops at step %d as asked; the same command resumes it.",
          run.title,
          progress.step,
        )
        raise SystemExit(preemption.PREEMPTED)
      if progress.finished:
        break
      batch = take()
