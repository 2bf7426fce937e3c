"""Devices: one "data" axis over all of them, on one host or many.

Everything is replicated but the batch, unless a rule says otherwise. The
axis is Auto: Explicit, the default of `jax.make_mesh`, breaks Linen.
"""

from collections.abc import Sequence
import os
import re
import socket
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
import numpy as np

from rerank_rl.config import ConfigError

Rules = Sequence[tuple[str, PartitionSpec]]


def initialize_distributed(
  coordinator: str = "", num_processes: int = 0, process_id: int = -1
) -> None:
  """Joins the other processes of a run; call before anything touches JAX.

  Without arguments Slurm, Open MPI, GKE and TPU pods are recognised by their
  environment, and anything else is a run of one process.

  Args:
    coordinator: "host:port" of process 0; "" = recognise the environment.
    num_processes: processes in the run; 0 = not given.
    process_id: this process, 0 <= process_id < num_processes; -1 = not given.

  Raises:
    ConfigError: some but not all of the three are given, or out of range.
  """
  given = (bool(coordinator), num_processes > 0, process_id >= 0)
  if any(given):
    if not all(given) or process_id >= num_processes or ":" not in coordinator:
      raise ConfigError(
        f"coordinator={coordinator!r}, num_processes={num_processes}, "
        f"process_id={process_id}: give all three (host:port, the number of "
        "processes, 0 <= process_id < num_processes) or none."
      )
    _check_address(coordinator)
    jax.distributed.initialize(coordinator, num_processes, process_id)
    return
  # One Slurm task needs no partners, and JAX would bind it to one GPU.
  if os.environ.get("SLURM_NTASKS") == "1":
    return
  try:
    jax.distributed.initialize()
  except ValueError as error:
    # JAX's words for "no cluster around"; any other trouble is real.
    if "coordinator_address should be defined" not in str(error):
      raise


def _check_address(coordinator: str) -> None:
  """Raises ConfigError: no host and port, which JAX would crash on."""
  host, _, port = coordinator.rpartition(":")
  try:
    if not 0 < int(port) < 2**16:
      raise ValueError(f"{port} is no port")
    socket.getaddrinfo(host.strip("[]"), port)
  except (ValueError, OSError) as error:
    raise ConfigError(
      f"coordinator={coordinator!r}: {error}; give the host that process 0 "
      "runs on and a port from 1 to 65535, such as 10.0.0.1:1234."
    ) from error


def make(devices: Sequence[jax.Device] | None = None) -> Mesh:
  """A mesh with the axis "data" over `devices` (None = all of the run's)."""
  devices = jax.devices() if devices is None else list(devices)
  return jax.make_mesh(
    (len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices
  )


def replicated(mesh: Mesh) -> NamedSharding:
  """The sharding of what every device holds whole."""
  return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """The sharding of batches: the leading dimension is split over "data"."""
  return NamedSharding(mesh, PartitionSpec("data"))


def shardings(mesh: Mesh, tree: Any, rules: Rules = ()) -> Any:
  """Where each leaf of `tree` lives.

  Args:
    mesh: the mesh.
    tree: arrays or what `jax.eval_shape` returns.
    rules: pairs (regular expression, PartitionSpec); the first whose
      expression is found in a leaf's path ("params/layer_0/kernel") wins, and
      a leaf without one is replicated.

  Returns:
    `tree` with a NamedSharding for each leaf.
  """

  def place(path, _):
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    specs = (spec for pattern, spec in rules if re.search(pattern, name))
    return NamedSharding(mesh, next(specs, PartitionSpec()))

  return jax.tree_util.tree_map_with_path(place, tree)


def indivisible(mesh: Mesh, rows: int, at: str) -> ConfigError:
  """What to say of `rows` a batch, set in field `at`, that do not split."""
  return ConfigError(
    f"{at}={rows} cannot be split over {mesh.size} devices; choose a multiple "
    f"of {mesh.size} or run on fewer devices."
  )


def put_batch(mesh: Mesh, local: Any) -> Any:
  """A global batch on the mesh from the rows that each process holds.

  Args:
    mesh: the mesh, over the devices of all processes.
    local: pytree of numpy arrays [rows, ...]; process p holds rows
      [p * rows, (p + 1) * rows) of the global batch.

  Returns:
    The same pytree of jax.Arrays [rows * processes, ...], split over "data".

  Raises:
    ConfigError: the mesh does not divide the batch.
  """
  processes = len({device.process_index for device in mesh.devices.flat})
  sharding = batch_sharding(mesh)

  def put(leaf):
    leaf = np.asarray(leaf)
    rows = (leaf.shape[0] if leaf.ndim else 1) * processes
    if rows % mesh.size or not leaf.ndim:
      raise indivisible(mesh, rows, "batch_size")
    # What jit would do to a numpy argument: 64 bits only under x64.
    leaf = leaf.astype(jax.dtypes.canonicalize_dtype(leaf.dtype), copy=False)
    return jax.make_array_from_process_local_data(sharding, leaf)

  return jax.tree.map(put, local)
