"""Trains and reports: python -m launch.train --config=configs/NAME.py."""

import os
import pathlib
import shlex
import sys

from absl import app, flags, logging
from ml_collections import config_flags

from launch import devices, errors
from rerank_rl import config as config_lib
from rerank_rl import files
from rerank_rl.evaluation import report
from rerank_rl.training import mesh, tasks

_CONFIG = config_flags.DEFINE_config_file(
  "config", None, "What to run: configs/NAME.py or configs/NAME.py:variant."
)
flags.mark_flag_as_required("config")
_WORKDIR = flags.DEFINE_string(
  "workdir", None, "Folder of this run.", required=True
)
_ARTIFACTS = flags.DEFINE_string(
  "artifacts", None, "Folder of the stages' artifacts; default: the workdir."
)
_COORDINATOR = flags.DEFINE_string("coordinator", "", "host:port of process 0.")
_PROCESSES = flags.DEFINE_integer("num_processes", 0, "Processes of the run.")
_PROCESS = flags.DEFINE_integer("process_id", -1, "This process's number.")


def main() -> None:
  """Runs what the flags say and prints the table."""
  logging.set_verbosity(logging.INFO)
  asked = _CONFIG.value
  if not hasattr(asked, "to_dict"):
    raise config_lib.ConfigError(
      f"the file of --config gives {type(asked).__name__}; let its get_config "
      "return what configs.common.build does."
    )
  config = config_lib.freeze(asked.to_dict())
  if config.quick_compile:
    devices.quick_compile()
  mesh.initialize_distributed(
    _COORDINATOR.value, _PROCESSES.value, _PROCESS.value
  )
  devices.check()
  workdir = _folder("workdir", _WORKDIR.value)
  artifacts = _ARTIFACTS.value
  rows = tasks.of(config).run(
    config,
    workdir,
    _folder("artifacts", artifacts) if artifacts else workdir,
    shlex.join(["python", "-m", "launch.train", *sys.argv[1:]]),
  )
  print(report.table(rows))


def _folder(flag: str, name: str) -> pathlib.Path:
  """The folder that a flag names.

  Raises:
    ConfigError: there cannot be one.
  """
  path = pathlib.Path(name)
  try:
    there = files.standing(path)
    fit = bool(name) and there.is_dir() and os.access(there, os.W_OK)
  except OSError:  # A name that is too long, for one.
    fit = False
  if not fit:
    raise config_lib.ConfigError(
      f"--{flag}={name} can be no folder: give a path below a folder that you "
      "may write to, and not that of a file."
    )
  return path


if __name__ == "__main__":
  errors.run(app, main)
