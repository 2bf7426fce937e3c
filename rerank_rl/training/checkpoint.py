"""Checkpoints of running stages and artifacts of finished ones (Orbax).

A checkpoint holds a pytree and the loop's own bookkeeping, the position in
the data included: together or not at all. An artifact is a folder whose
meta.json names its arrays, so that replacing meta.json, which is atomic,
replaces the artifact. Both carry a checksum of every array, since a flipped
bit in a weight is otherwise read without complaint.
"""

import json
import os
import pathlib
import re
import shutil
from typing import Any
import zlib

import jax
from jax.experimental import multihost_utils
import numpy as np
from orbax.checkpoint import v1 as ocp

from rerank_rl import config as config_lib
from rerank_rl import files

_META = "meta.json"


def _checksums(tree: Any) -> list[int]:
  """CRC-32 of each leaf's bytes, however it is spread over devices."""

  def whole(leaf):
    if isinstance(leaf, jax.Array) and not (
      leaf.is_fully_addressable or leaf.is_fully_replicated
    ):
      leaf = multihost_utils.process_allgather(leaf, tiled=True)
    return np.asarray(leaf)

  return [zlib.crc32(whole(leaf).tobytes()) for leaf in jax.tree.leaves(tree)]


def _signature(tree: Any) -> str:
  """A hash of a pytree's paths, shapes and types."""
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return config_lib.fingerprint(
    [f"{jax.tree_util.keystr(p)} {x.dtype}{x.shape}" for p, x in leaves]
  )


class Checkpoints:
  """The checkpoints of one running stage, in one folder.

  Saving is asynchronous; one that a kill interrupts leaves those before it as
  they were. All processes of a run call every method.
  """

  def __init__(self, folder: str | os.PathLike, keep: int = 2):
    """Opens (and creates) `folder`, which keeps the `keep` latest.

    Raises:
      ConfigError: it is a file.
    """
    self._folder = pathlib.Path(folder).absolute()
    if self._folder.is_file():
      raise files.damaged(
        self._folder, "it is a file", "remove it to start again"
      )
    # Devices that hold the same array share its writing: to cut up a small one
    # costs each of them more than to write all of it.
    context = ocp.Context()
    context.array.saving.min_slice_bytes_for_replica_parallel = 1 << 20
    registry = ocp.handlers.local_registry()
    registry.add(ocp.handlers.JsonHandler, checkpointable_name="progress")
    context.checkpointables.registry = registry
    self._checkpointer = ocp.training.Checkpointer(
      self._folder,
      context=context,
      preservation_policy=ocp.training.preservation_policies.LatestN(keep),
      cleanup_tmp_directories=True,
    )

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self.close()

  @property
  def latest(self) -> int | None:
    """The step of the latest checkpoint, None without one.

    Raises:
      ValueError: a later one is there but has lost its commit mark.
    """
    done = [c.step for c in self._checkpointer.checkpoints]
    there = [int(p.name) for p in self._folder.iterdir() if p.name.isdigit()]
    if there and max(there) > max(done, default=-1):
      raise self._damaged(max(there), "it was never completed")
    return max(done, default=None)

  def save(self, step: int, tree: Any, progress: dict[str, Any]) -> None:
    """Starts saving; returns when `tree` may be donated.

    Args:
      step: non-negative; a step that is already there is left alone.
      tree: pytree of jax.Arrays.
      progress: what JSON can hold; process 0's is kept.
    """
    if any(c.step == step for c in self._checkpointer.checkpoints):
      return
    text = json.dumps(progress)
    self._checkpointer.save_checkpointables_async(
      step,
      {
        "arrays": {"tree": tree},
        "progress": {
          "text": text,
          "hash": config_lib.fingerprint(text),
          "signature": _signature(tree),
          "checksums": _checksums(tree),
        },
      },
      force=True,
    )

  def restore(self, like: Any) -> tuple[Any, dict[str, Any]]:
    """Reads the latest checkpoint, wherever and on whatever it was written.

    Args:
      like: pytree of arrays or `jax.ShapeDtypeStruct`s with the shardings
        that are wanted, on any mesh.

    Returns:
      (tree, progress).

    Raises:
      ValueError: there is none, it belongs to another model, or it is
        damaged.
    """
    self.wait()
    step = self.latest
    if step is None:
      raise ValueError(f"{self._folder} holds no checkpoint.")
    like = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
      like,
    )
    at = self._folder / str(step)
    progress = files.check_object(
      self._read(step, "progress", None),
      at / "progress",
      self._remedy(step),
      text=str,
      hash=str,
      signature=str,
      checksums=list,
    )
    if config_lib.fingerprint(progress["text"]) != progress["hash"]:
      raise self._damaged(step, "its progress does not match its hash")
    if progress["signature"] != _signature(like):
      raise ValueError(
        f"{at} holds arrays of other names, shapes or types than this run's; "
        f"use another workdir or remove {self._folder}."
      )
    tree = self._read(step, "arrays", {"tree": like})["tree"]
    if _checksums(tree) != progress["checksums"]:
      raise self._damaged(step, "its arrays do not match their checksums")
    return tree, json.loads(progress["text"])

  def wait(self) -> None:
    """Waits until what was saved is on the disk."""
    self._checkpointer.wait()

  def close(self) -> None:
    """Waits and releases the folder."""
    self._checkpointer.close()

  def _read(self, step: int, part: str, like: Any) -> Any:
    try:
      return self._checkpointer.load_checkpointables(step, {part: like})[part]
    # Files may be missing, cut short or altered anywhere; Orbax and the
    # libraries below it have an exception for each, in words of their own.
    except Exception as error:
      raise self._damaged(step, f"its {part} cannot be read") from error

  def _damaged(self, step: int, reason: str) -> config_lib.ConfigError:
    name = f"The checkpoint {self._folder / str(step)}"
    return files.damaged(name, reason, self._remedy(step))

  def _remedy(self, step: int) -> str:
    older = [c.step for c in self._checkpointer.checkpoints if c.step < step]
    after = f"resume from step {max(older)}" if older else "start again"
    return f"remove {self._folder / str(step)} to {after}"


def _read_index(folder: pathlib.Path) -> dict[str, Any]:
  """What meta.json says; {} without one."""
  try:
    index = files.read_object(
      folder / _META, _again(folder), meta=dict, arrays=str, checksums=list
    )
  except FileNotFoundError:
    return {}
  if not re.fullmatch(r"arrays-\d+", index["arrays"]):
    reason = f"it names {index['arrays']!r} for its arrays"
    raise files.damaged(folder / _META, reason, _again(folder))
  return index


def _again(folder: pathlib.Path) -> str:
  """The remedy for a damaged artifact."""
  return f"remove {folder} and run the stage again"


def save_artifact(
  path: str | os.PathLike, tree: Any, meta: dict[str, Any]
) -> None:
  """Writes what a stage is for; replaces what is there, or changes nothing.

  All processes of a run call it. `path` may be where `tree` was loaded from.

  Args:
    path: a folder.
    tree: pytree of dicts, lists and tuples with jax or numpy arrays.
    meta: what JSON can hold; its "fingerprint" is what `artifact_ready` asks
      for.
  """
  # A process's own arrays are the same in all of them: one is written.
  own = lambda x: isinstance(x, jax.Array) and x.is_fully_addressable
  tree = jax.tree.map(lambda x: np.asarray(x) if own(x) else x, tree)
  folder = pathlib.Path(path).absolute()
  old = _read_index(folder).get("arrays", "arrays-0")
  name = f"arrays-{int(old.rpartition('-')[2]) + 1}"
  index = {"meta": meta, "arrays": name, "checksums": _checksums(tree)}
  ocp.save(folder / name, {"tree": tree}, overwrite=True)
  if jax.process_index() == 0:
    fresh = folder / f"{_META}.tmp"
    with open(fresh, "w", encoding="utf-8") as file:
      file.write(json.dumps(index, indent=2) + "\n")
      file.flush()
      os.fsync(file.fileno())
    fresh.replace(folder / _META)
    for other in folder.glob("arrays-*"):
      if other.name != name:
        shutil.rmtree(other)
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(str(folder))


def load_artifact(path: str | os.PathLike) -> tuple[Any, dict[str, Any]]:
  """Reads an artifact on whatever devices there are.

  Args:
    path: the folder given to `save_artifact`.

  Returns:
    (tree with numpy arrays, tuples having become lists; meta).

  Raises:
    ValueError: there is none or it is damaged.
  """
  folder = pathlib.Path(path).absolute()
  index = _read_index(folder)
  if not index:
    raise ValueError(f"{folder} holds no artifact; run its stage first.")
  arrays = folder / index["arrays"]
  try:
    like = jax.tree.map(
      lambda x: np.empty(x.shape, x.dtype), ocp.metadata(arrays).metadata
    )
    tree = ocp.load(arrays, like)["tree"]
    intact = _checksums(tree) == index["checksums"]
  # As in Checkpoints._read: damage has many names.
  except Exception as error:
    raise files.damaged(arrays, "it cannot be read", _again(folder)) from error
  if not intact:
    reason = "it does not match its checksums"
    raise files.damaged(arrays, reason, _again(folder))
  return tree, index["meta"]


def check_meta(
  path: str | os.PathLike, meta: dict[str, Any], **fields: type
) -> None:
  """Checks that `meta`, of the artifact at `path`, has these fields.

  Raises:
    ConfigError: it has not.
  """
  folder = pathlib.Path(path).absolute()
  files.check_object(meta, folder / _META, _again(folder), **fields)


def artifact_ready(path: str | os.PathLike, fingerprint: str) -> bool:
  """Whether `path` holds an artifact made under this fingerprint.

  Raises:
    ConfigError: it holds one whose meta.json is damaged.
  """
  meta = _read_index(pathlib.Path(path).absolute()).get("meta", {})
  return meta.get("fingerprint") == fingerprint
