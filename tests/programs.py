"""Programs that tests start: on how many devices, and that they end well.

All are forks of one process that has imported what they need, which would take
each of them seconds.
"""

from collections.abc import Callable, Sequence
import multiprocessing
import os
import pathlib
import shutil
import socket
import sys
import tempfile

import jax

from launch import devices as launch_devices

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["rerank_rl.training.tasks", "launch.errors"])


class Program:
  """`main(argv)` in a process of its own, from the moment it is made."""

  def __init__(
    self,
    main: Callable[[list[str]], None],
    argv: Sequence[object],
    devices: int,
  ):
    """Starts it.

    Args:
      main: a module's function.
      argv: arguments, made text.
      devices: how many of the CPU's it sees.
    """
    self._said = tempfile.NamedTemporaryFile()
    args = main, [str(x) for x in argv], devices, self._said.name
    self._process = _FORKS.Process(target=_run, args=args, daemon=True)
    self._process.start()

  @property
  def alive(self) -> bool:
    """Whether it has not ended."""
    return self._process.is_alive()

  def wait(self, seconds: float) -> None:
    """Until it ends, or for so long."""
    self._process.join(seconds)

  def kill(self) -> None:
    """SIGKILL, if it has not ended."""
    self._process.kill()
    self._process.join()

  def end(self, seconds: float = 900) -> tuple[int | None, str]:
    """Its status, None if it does not end in time, and what it printed."""
    self._process.join(seconds)
    text = pathlib.Path(self._said.name).read_text(errors="replace")
    return self._process.exitcode, text


def _run(main, argv, devices, said) -> None:
  out = os.open(said, os.O_WRONLY)
  for stream in (1, 2):
    os.dup2(out, stream)
  os.chdir(pathlib.Path(__file__).parents[1])
  # The last flag wins; the rest is what the tests' process compiles with.
  os.environ["XLA_FLAGS"] += (
    f" --xla_force_host_platform_device_count={devices}"
  )
  launch_devices.quick_compile()  # Its collector's numbers are not inherited.
  sys.argv = [main.__module__, *argv]
  main(argv)
  # A fork ends without what JAX would do at exit.
  if jax.distributed.is_initialized():
    jax.distributed.shutdown()


def finish(*programs: Program) -> list[str]:
  """What they said, once all have ended with status 0."""
  texts = []
  try:
    for program in programs:
      status, text = program.end()
      assert status == 0, (status, text[-3000:])
      texts.append(text)
  finally:
    for program in programs:
      program.kill()
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
