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
from rerank_rl.training import goals, session
from rerank_rl.training.stages import relabel

_FIGURE = flags.DEFINE_string("figure", "", "Where a PNG goes.")
_USERS = flags.DEFINE_integer("users", 1000, "Of the test split.")
_SIDE = 5
_FIXED = 40  # Behaviours of the figure, drawn anew.


def main(argv: list[str]) -> None:
  """Prints the tables."""
  del argv
  setting = runs.sessions()
  if relabel.STAGE not in setting.config.stages:
    raise ConfigError("--workdir is not a run of configs/mocdt.py.")
  params = setting.params[setting.config.name]
  asked = goals.grid(np.asarray(params["region"]), _SIDE)
  places = {"as in training": setting.environment("train")}
  if setting.judges:
    places["as b says"] = session.visitors(setting, "b")
  act, rows, drawn = relabel.act_of(setting), [], {}
  for place, environment in places.items():
    reached = goals.measure(
      setting, "test", act, params, asked, _USERS.value, environment
    )
    drawn.setdefault("achieved", reached)
    found = goals.control(asked, reached)
    for i, name in enumerate(goals.OBJECTIVES):
      low, high = asked[:, i].min(), asked[:, i].max()
      figures_of = (low, high, found.slope[i], found.error[i])
      rows.append((place, name, *(f"{value:.3f}" for value in figures_of)))
  columns = ("users", "objective", "asked from", "to", "slope", "error / range")
  common.show("Asked and achieved, 5 x 5 goals", columns, rows)
  if _FIGURE.value:
    own = goals.behaviours(setting.key("fixed"), _FIXED)
    fixed = relabel.achieved(
      setting, "test", own, environment=places["as in training"]
    )
    image = figures.control(asked, drawn["achieved"], fixed, goals.OBJECTIVES)
    pathlib.Path(_FIGURE.value).write_bytes(image)


if __name__ == "__main__":
  errors.run(app, main)
