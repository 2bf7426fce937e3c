"""SIGTERM, by which schedulers ask a run to end: noted, not obeyed at once."""

import signal
import threading

import jax
from jax.experimental import multihost_utils

PREEMPTED = 128 + signal.SIGTERM  # Exit status; schedulers know it.


class Preemption:
  """Whether SIGTERM has asked for the end; a context manager.

  A signal that comes too late to stop the loop still ends the program on
  exit, or the next stage would begin as if nothing had been asked.
  """

  def __init__(self):
    self._asked = False
    self._old = None
    # JAX watches for the signal itself in runs of many processes, and Python
    # lets only the main thread listen.
    main = threading.current_thread() is threading.main_thread()
    self._listens = main and jax.process_count() == 1

  def __enter__(self):
    if self._listens:
      self._old = signal.signal(signal.SIGTERM, self._ask)
    return self

  def __exit__(self, kind, *_):
    if self._listens:
      signal.signal(signal.SIGTERM, self._old or signal.SIG_DFL)
    if self._asked and kind is None:
      raise SystemExit(PREEMPTED)

  def _ask(self, *_):
    self._asked = True

  def __call__(self, step: int) -> bool:
    """Whether to stop after `step`; processes agree on the step."""
    if jax.process_count() > 1:
      return multihost_utils.reached_preemption_sync_point(step)
    return self._asked
