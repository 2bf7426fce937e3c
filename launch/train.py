"""Trains and reports: python -m launch.train --config=configs/NAME.py."""

import pathlib
import shlex
import sys

from absl import app, flags, logging
from ml_collections import config_flags

from launch import devices, errors
from rerank_rl import config as config_lib
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


def main(argv: list[str]) -> None:
  """Runs what the flags say and prints the table."""
  if len(argv) > 1:
    raise config_lib.ConfigError(
      f"{argv[1]!r} is not a flag; use --flag=value."
    )
  logging.set_verbosity(logging.INFO)
  config = config_lib.freeze(_CONFIG.value.to_dict())
  if config.quick_compile:
    devices.quick_compile()
  mesh.initialize_distributed(
    _COORDINATOR.value, _PROCESSES.value, _PROCESS.value
  )
  workdir = pathlib.Path(_WORKDIR.value)
  rows = tasks.of(config).run(
    config,
    workdir,
    pathlib.Path(_ARTIFACTS.value or workdir),
    shlex.join(["python", "-m", "launch.train", *sys.argv[1:]]),
  )
  print(report.table(rows))


if __name__ == "__main__":
  errors.run(app, main)
