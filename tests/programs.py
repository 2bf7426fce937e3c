"""Programs that tests start: on how many devices, and that they end well."""

from concurrent import futures
import os
import pathlib
import shutil
import socket
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]


def start(module, *argv, devices=1) -> subprocess.Popen:
  """Starts `python -m module argv` on CPU devices.

  Args:
    module: dotted name.
    *argv: arguments, made text.
    devices: how many it sees.
  """
  env = dict(os.environ, PYTHONPATH=str(ROOT))
  # The last flag wins; the rest is what this process compiles with.
  env["XLA_FLAGS"] += f" --xla_force_host_platform_device_count={devices}"
  return subprocess.Popen(
    [sys.executable, "-m", module, *map(str, argv)],
    env=env,
    cwd=ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def finish(*runs) -> list[str]:
  """What they said, once all have ended with status 0."""
  try:
    # All at once: whoever is not read stops at a full pipe.
    with futures.ThreadPoolExecutor(len(runs)) as pool:
      texts = list(pool.map(lambda run: run.communicate(timeout=900)[0], runs))
    for run, text in zip(runs, texts, strict=True):
      assert run.returncode == 0, text[-3000:]
  finally:
    for run in runs:
      run.kill()
  return texts


def lend(source: pathlib.Path, root: pathlib.Path, *stages: str) -> None:
  """Gives a run what another of the same config has made in some stages."""
  for stage in stages:
    (made,) = source.glob(f"{stage}-*")
    shutil.copytree(made, root / made.name)


def free_port() -> int:
  """A port that nobody listens at."""
  with socket.socket() as probe:
    probe.bind(("localhost", 0))
    return probe.getsockname()[1]
