"""Exports a finished run: python -m launch.export --workdir=DIR --out=BUNDLE.

With --verify and no --workdir it checks a bundle that is there.
"""

import pathlib

from absl import app, flags, logging

from launch import devices, errors
from rerank_rl import config as config_lib
from rerank_rl.export import bundle, run
from rerank_rl.training import tasks

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the finished run.")
_ARTIFACTS = flags.DEFINE_string(
  "artifacts", None, "Folder of the stages' artifacts; default: the workdir."
)
_OUT = flags.DEFINE_string("out", None, "Folder of the bundle.", required=True)
_VERIFY = flags.DEFINE_bool("verify", False, "Check the bundle at --out.")


def main() -> None:
  """Exports, verifies or both."""
  logging.set_verbosity(logging.INFO)
  workdir, out = _WORKDIR.value, _OUT.value
  if not (workdir or _VERIFY.value):
    raise config_lib.ConfigError(
      "Give --workdir to export a run, or --verify to check the bundle at "
      "--out."
    )
  if workdir:
    config = tasks.finished(pathlib.Path(workdir))
    if config.quick_compile:
      devices.quick_compile()
    devices.check()
    run.export_run(config, _ARTIFACTS.value or workdir, out)
  if _VERIFY.value:
    bundle.verify(out)
  print(f"{out}: intact; it gives its golden output.")


if __name__ == "__main__":
  errors.run(app, main)
