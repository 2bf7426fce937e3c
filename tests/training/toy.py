"""A stage small enough to fit in milliseconds, for tests and as a program.

As a program it fits the stage in FOLDER and writes FOLDER/result.npz, alone
or as one of two processes; --partial is a folder to begin and not to finish.
"""

import argparse
import contextlib
import functools
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np

from rerank_rl.config import TrainConfig
from rerank_rl.training import loop, mesh, state

CONFIG = TrainConfig(
  steps=24,
  batch_size=16,
  learning_rate=0.05,
  warmup_steps=2,
  ema=0.9,
  eval_every=4,
  checkpoint_every=3,
)
ROWS = 64


class Batches:
  """Rows in an order that depends only on the step; process p's share."""

  def __init__(self, batch_size, pause=0.0, process=0, processes=1, limit=1000):
    rng = np.random.default_rng(0)
    self._x = rng.normal(size=(ROWS, 4))
    self._y = np.sin(self._x.sum(-1))
    self._size, self._pause, self._limit = batch_size, pause, limit
    self._share = slice(
      process * batch_size // processes, (process + 1) * batch_size // processes
    )
    self._step = 0

  def __iter__(self):
    return self

  def __next__(self):
    if self._step == self._limit:
      raise StopIteration
    time.sleep(self._pause)
    rng = np.random.default_rng([1, self._step])
    rows = rng.choice(ROWS, self._size, replace=False)[self._share]
    self._step += 1
    return {"x": self._x[rows], "y": self._y[rows]}

  def get_state(self):
    return {"step": self._step}

  def set_state(self, position):
    self._step = position["step"]


def init(config=CONFIG):
  """A fresh state of a two-layer network."""
  rng = np.random.default_rng(3)
  params = {
    "in": {"kernel": rng.normal(size=(4, 8)), "bias": np.zeros(8)},
    "out": {"kernel": rng.normal(size=(8, 1)) * 0.1},
  }
  params = jax.tree.map(jnp.asarray, params)
  return state.create(params, state.optimizer(config))


def predict(params, x):
  """[B, 4] -> [B]."""
  h = x @ params["in"]["kernel"] + params["in"]["bias"].reshape(1, -1)
  return (jnp.tanh(h) @ params["out"]["kernel"]).squeeze(-1)


@functools.lru_cache
def step_of(config=CONFIG):
  """A step that also uses its key, so that resumed keys matter."""
  tx = state.optimizer(config)

  def step(train, batch, key):
    noise = 0.01 * jax.random.normal(key, batch["y"].shape)

    def loss(params):
      error = predict(params, batch["x"]) - batch["y"] - noise
      return jnp.square(error).sum() / error.size, error

    grads, error = jax.grad(loss, has_aux=True)(train.params)
    train = state.apply_gradients(train, grads, tx, config.ema)
    return train, {"loss": (jnp.square(error).sum(), error.size)}

  return step


@jax.jit
def _valid(params):
  data = Batches(ROWS)
  batch = next(data)
  return jnp.square(predict(params, batch["x"]) - batch["y"]).mean()


def evaluate(params):
  """Mean squared error on all rows."""
  return {"error": _valid(params)}


def fit(folder, config=CONFIG, batches=None, **changes):
  """`loop.fit` on the toy."""
  arguments = dict(
    folder=folder, title="toy", evaluate=evaluate, select=("error", False)
  )
  return loop.fit(
    changes.pop("state", None) or init(config),
    changes.pop("step_fn", None) or step_of(config),
    batches or Batches(config.batch_size),
    config,
    jax.random.key(7),
    **{**arguments, **changes},
  )


def begin(folder, batches, **changes):
  """Fits until the batches end."""
  with contextlib.suppress(ValueError):
    fit(folder, batches=batches, **changes)


def flat(result):
  """All numbers of a FitResult, by name."""
  tree = {"best": result.best_params, "state": result.state}
  out = {
    jax.tree_util.keystr(path): np.asarray(leaf)
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }
  return {**out, "history": np.asarray([h["error"] for h in result.history])}


def main(argv):
  parser = argparse.ArgumentParser()
  parser.add_argument("folder", type=pathlib.Path)
  parser.add_argument("--pause", type=float, default=0.0)
  parser.add_argument("--coordinator", default="")
  parser.add_argument("--process", type=int, default=-1)
  parser.add_argument("--partial", type=pathlib.Path)
  flags = parser.parse_args(argv)
  jax.config.update("jax_enable_x64", True)
  several = bool(flags.coordinator)
  mesh.initialize_distributed(
    flags.coordinator, 2 if several else 0, flags.process
  )
  share = jax.process_index(), jax.process_count()
  result = fit(flags.folder, batches=Batches(16, flags.pause, *share))
  if flags.partial:
    begin(flags.partial, Batches(16, 0.0, *share, limit=10))
  if jax.process_index() == 0:
    np.savez(flags.folder / "result.npz", **flat(result))
