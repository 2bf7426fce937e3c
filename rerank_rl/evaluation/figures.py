"""The figures of a report, as PNG bytes.

Lines differ in marker as well as in colour; the colours have a contrast of 3
or more on white and stay apart for colour-blind readers.
"""

from collections.abc import Callable, Mapping, Sequence
import io
import math
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
import numpy as np

_COLOURS = ("#1f83c4", "#d55e00", "#009e73")
_COLUMNS = 3  # Panels side by side.

_STYLE = {
  "axes.grid": True,
  "axes.spines.right": False,
  "axes.spines.top": False,
  "figure.dpi": 110,
  "font.size": 9,
  "grid.alpha": 0.15,
}


def _drawn(
  draw: Callable[[Figure], None], width: float, height: float
) -> bytes:
  """PNG of a figure (inches)."""
  with rc_context(_STYLE):
    figure = Figure(figsize=(width, height), layout="tight")
    draw(figure)
    buffer = io.BytesIO()
    # Without the metadata equal figures are equal bytes.
    FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})
  return buffer.getvalue()


def systems(rows: Sequence[Mapping[str, Any]], metric: str) -> bytes:
  """One metric of every system, a dot a seed, with 95 % intervals.

  Args:
    rows: of `judge.summarise`.
    metric: one that at least one row has.
  """
  rows = [row for row in rows if row["metrics"].get(metric) is not None]
  names = list(dict.fromkeys(row["system"] for row in rows))
  seeds = sorted({row["seed"] for row in rows})

  def draw(figure: Figure) -> None:
    axes = figure.add_subplot()
    for row in rows:
      shift = (seeds.index(row["seed"]) + 1) / (len(seeds) + 1) - 0.5
      y = names.index(row["system"]) + 0.6 * shift
      x = row["metrics"][metric]
      axes.plot(x, y, "o", color=_COLOURS[0], markersize=5)
      interval = row["intervals"].get(metric)
      if interval and None not in interval:
        axes.plot(interval, [y, y], color=_COLOURS[0], linewidth=1.5)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlabel(metric.replace("_", " "))

  return _drawn(draw, 7.0, 1.0 + 0.3 * len(names))


def curves(records: Sequence[Mapping[str, float]]) -> bytes:
  """A panel a metric, over steps.

  Args:
    records: [{"step": 10, metric: value}]; a metric may miss some steps.
  """
  series = points(records)

  def draw(figure: Figure) -> None:
    grid = (-(-len(series) // _COLUMNS), _COLUMNS)
    for i, (metric, (x, y)) in enumerate(series.items()):
      axes = figure.add_subplot(*grid, i + 1)
      marker = "." if len(x) < 30 else ""
      axes.plot(x, y, color=_COLOURS[0], linewidth=1.2, marker=marker)
      axes.set_title(metric, fontsize=9)
      axes.tick_params(labelsize=7)
      axes.locator_params(nbins=4)  # Most of the time goes into ticks.
    figure.supxlabel("step", fontsize=9)

  height = 0.4 + 1.9 * -(-len(series) // _COLUMNS)
  return _drawn(draw, 9.0, height)


def points(
  records: Sequence[Mapping[str, float]],
) -> dict[str, tuple[list[float], list[float]]]:
  """Steps and finite values of every metric that has any."""
  series: dict[str, tuple[list[float], list[float]]] = {}
  for record in records:
    for metric, value in record.items():
      if metric != "step" and math.isfinite(value):
        x, y = series.setdefault(metric, ([], []))
        x.append(float(record["step"]))
        y.append(float(value))
  return series


def reliability(calibration: Mapping[str, Any]) -> bytes:
  """Observed against predicted, by bin and by position.

  Args:
    calibration: of `judge.calibration`.
  """

  def draw(figure: Figure) -> None:
    left, right = figure.subplots(1, 2)
    left.plot([0, 1], [0, 1], "--", color=_COLOURS[2], label="perfect")
    left.plot(
      [row["predicted"] for row in calibration["bins"]],
      [row["observed"] for row in calibration["bins"]],
      "o-",
      color=_COLOURS[0],
      label="evaluator",
    )
    left.set(xlabel="predicted", ylabel="observed", title="by probability")
    left.legend(frameon=False)
    _by(right, calibration["positions"], "position", ("predicted", "observed"))
    right.set(title="by position")

  return _drawn(draw, 9.0, 3.4)


def deciles(rows: Sequence[Mapping[str, float]]) -> bytes:
  """A and B by decile of A.

  Args:
    rows: of `judge.gap_by_decile`.
  """

  def draw(figure: Figure) -> None:
    axes = figure.add_subplot()
    _by(axes, rows, "decile", ("a", "b"))
    axes.set(xlabel="decile of A", ylabel="value")

  return _drawn(draw, 6.0, 3.2)


def control(
  asked: np.ndarray,
  achieved: np.ndarray,
  fixed: np.ndarray,
  names: Sequence[str],
) -> bytes:
  """Goals, what was achieved for each, and what fixed policies achieve.

  Args:
    asked: f32[P, 2].
    achieved: f32[P, 2].
    fixed: f32[X, 2], whose Pareto front is drawn as a line.
    names: of the two objectives.
  """

  def draw(figure: Figure) -> None:
    axes = figure.add_subplot()
    for goal, found in zip(asked, achieved, strict=True):
      axes.plot(*np.stack([goal, found]).T, color=_COLOURS[0], linewidth=0.6)
    axes.plot(*asked.T, "s", color=_COLOURS[2], markersize=4, label="asked")
    axes.plot(*achieved.T, "o", color=_COLOURS[0], markersize=4, label="got")
    axes.plot(*fixed.T, "^", color=_COLOURS[1], markersize=4, label="fixed")
    above = (fixed[None] >= fixed[:, None]).all(-1).sum(1) == 1
    front = fixed[above]
    axes.plot(*front[np.argsort(front[:, 0])].T, color=_COLOURS[1])
    axes.set_xlabel(names[0].replace("_", " "))
    axes.set_ylabel(names[1].replace("_", " "))
    axes.legend(frameon=False)

  return _drawn(draw, 6.0, 4.2)


def _by(
  axes: Axes,
  rows: Sequence[Mapping[str, float]],
  over: str,
  names: Sequence[str],
) -> None:
  """Columns `names` against the column `over`."""
  for name, marker, colour in zip(names, "os", _COLOURS, strict=False):
    axes.plot(
      [row[over] for row in rows],
      [row[name] for row in rows],
      marker=marker,
      color=colour,
      label=name.upper() if len(name) == 1 else name,
    )
  axes.set_xticks([row[over] for row in rows])
  axes.set_xlabel(over)
  axes.legend(frameon=False)
