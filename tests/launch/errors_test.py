"""What a machine lacks is one sentence; what we got wrong is a traceback."""

import re
import types

import jax
import pytest

from launch import devices, errors
from rerank_rl.config import ConfigError


def _left(error, capsys) -> str:
  """What `errors.run` prints of an error in `main`, at status 2."""

  def main():
    raise error

  app = types.SimpleNamespace(run=lambda main, flags_parser: main([]))
  with pytest.raises(SystemExit) as end:
    errors.run(app, main)
  assert end.value.code == 2
  return capsys.readouterr().err


@pytest.mark.parametrize(
  ("error", "words"),
  [
    (MemoryError("96 GiB"), "96 GiB.*ask for less"),
    (RuntimeError("RESOURCE_EXHAUSTED: Out of memory"), "smaller batch_size"),
    (
      RuntimeError("INTERNAL: Out of memory allocating 9"),
      "smaller batch_size",
    ),
    (OSError(28, "No space left on device"), "free some"),
    (OSError(2, "No such file or directory", "x.npz"), "'x.npz'"),
    (ConfigError("two\nlines"), "two lines"),
  ],
)
def test_what_a_user_or_a_machine_lacks_is_one_line(error, words, capsys):
  (line,) = _left(error, capsys).splitlines()
  assert line.startswith("error: ")
  assert re.search(words, line), line


def test_our_own_mistakes_stay_errors(capsys):
  with pytest.raises(RuntimeError, match="ours"):
    _left(RuntimeError("ours"), capsys)
  with pytest.raises(KeyError):
    _left(KeyError("ours"), capsys)


@pytest.mark.parametrize("error", [RuntimeError("no GPU"), AssertionError()])
def test_devices_that_are_not_there_are_named(error, monkeypatch):
  def fail():
    raise error

  monkeypatch.setattr(jax, "devices", fail)
  monkeypatch.setenv("JAX_PLATFORMS", "cuda")
  with pytest.raises(ConfigError, match=r"JAX_PLATFORMS='cuda'.*choose"):
    devices.check()
