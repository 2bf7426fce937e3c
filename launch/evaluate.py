"""Judges a finished run again: python -m launch.evaluate --workdir=DIR."""

import pathlib

from absl import app, flags, logging

from launch import devices, errors
from rerank_rl.evaluation import report
from rerank_rl.training import tasks

_WORKDIR = flags.DEFINE_string(
  "workdir", None, "Folder of the run.", required=True
)
_ARTIFACTS = flags.DEFINE_string(
  "artifacts", None, "Folder of the stages' artifacts; default: the workdir."
)


def main() -> None:
  """Reloads the run's stages, writes its report anew, prints the table."""
  logging.set_verbosity(logging.INFO)
  workdir = pathlib.Path(_WORKDIR.value)
  config = tasks.finished(workdir)
  if config.quick_compile:  # So that the figures are the run's, to the bit.
    devices.quick_compile()
  devices.check()
  command = tasks.command(workdir)
  setting = tasks.reload(config, pathlib.Path(_ARTIFACTS.value or workdir))
  rows = tasks.of(config).evaluate(setting, workdir, command)
  print(report.table(rows))


if __name__ == "__main__":
  errors.run(app, main)
