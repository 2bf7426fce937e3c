"""Whether a run of configs/mocdt.py does as it is asked: --workdir=RUN.

python -m benchmarks.control --workdir=RUN: asks for a grid of 5 x 5 goals
inside what fixed behaviours achieved among the users whom it learnt from, and
plays them with the test split's users, who behave as that simulator says and,
with learnt users, as the other one does, which no part of the run has seen.
--figure=FILE draws asked, achieved and the fixed behaviours.
"""

import pathlib

from absl import app, flags
import numpy as np

from benchmarks import common, runs
from launch import errors
from rerank_rl.config import ConfigError
from rerank_rl.evaluation import figures
from rerank_rl.training import goals
from rerank_rl.training.session_setting import SessionRun
from rerank_rl.training.stages import relabel

_FIGURE = flags.DEFINE_string("figure", "", "Where a PNG goes.")
_PEOPLE = flags.DEFINE_integer("people", 1000, "Of the test split, a goal.")
_SIDE = 5
_FIXED = 40  # Behaviours of the figure, drawn anew.


def played(
  setting: SessionRun, users: int
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
  """(asked f32[25, 2], whose users -> achieved f32[25, 2])."""
  params = setting.params[setting.config.name]
  asked = goals.grid(np.asarray(params["region"]), _SIDE)
  places = {"as in training": setting.environment("train")}
  if setting.users:
    places["as b says"] = setting.environment("test")
  act = relabel.act_of(setting)
  return asked, {
    place: goals.measure(setting, "test", act, params, asked, users, users_of)
    for place, users_of in places.items()
  }


def drawn(setting: SessionRun, asked: np.ndarray, achieved: np.ndarray):
  """The figure, PNG, beside behaviours that learning has not met."""
  own = goals.behaviours(setting.key("fixed"), _FIXED)
  here = setting.environment("train")
  fixed = relabel.achieved(setting, "test", own, environment=here)
  return figures.control(asked, achieved, fixed, goals.OBJECTIVES)


def main() -> None:
  """Prints the table."""
  setting = runs.sessions()
  if relabel.STAGE not in setting.config.stages:
    raise ConfigError("--workdir is not a run of configs/mocdt.py.")
  asked, achieved = played(setting, _PEOPLE.value)
  rows = []
  for place, reached in achieved.items():
    found = goals.control(asked, reached)
    columns = asked.min(0), asked.max(0), found.slope, found.error
    for name, *values in zip(goals.OBJECTIVES, *columns, strict=True):
      rows.append((place, name, *(f"{value:.3f}" for value in values)))
  columns = ("users", "objective", "asked from", "to", "slope", "error / range")
  common.show("Asked and achieved, 5 x 5 goals", columns, rows)
  if _FIGURE.value:
    image = drawn(setting, asked, next(iter(achieved.values())))
    pathlib.Path(_FIGURE.value).write_bytes(image)


if __name__ == "__main__":
  errors.run(app, main)
