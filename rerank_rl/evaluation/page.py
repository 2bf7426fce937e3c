"""report.html: one self-contained page of tables and figures.

No script, no network, no font of its own: figures are embedded, and every
one of them is described in words and followed by its numbers. It follows the
reader's light or dark setting and scrolls wide tables in place.
"""

import base64
from collections.abc import Mapping, Sequence
import html
import math
from typing import Any

from rerank_rl.evaluation import figures

# The order of columns; the first that a report has is its headline figure.
HEADLINE = (
  "true_utility",
  "share",
  "evaluator_b",
  "win_rate_b",
  "evaluator_a",
  "evaluator_s",
  "evaluator_lookahead",
  "gap_a_truth",
  "gap_a_b",
  "precision",
  "ndcg",
  "recall",
  "map",
  "f1",
  "coverage",
  "ild",
  "cold_share",
  "cold_ndcg",
  "discounted_reward",
  "total_reward",
  "slate_reward",
  "return_days",
)

_MEANING = {
  "true_utility": "expected utility of the slate in the true world",
  "share": "sum of true utility over the sum of the optimum's",
  "regret": "1 - share",
  "evaluator_a": "value by evaluator A, which rewards RL by value",
  "evaluator_s": "value by evaluator S, which selects checkpoints by value",
  "evaluator_b": "value by evaluator B, which only reports",
  "evaluator_lookahead": "value by the evaluator whose lists were mined",
  "win_rate_b": "how often B prefers the slate to the logged one, ties 1/2",
  "gap_a_b": "A - B: how far A outruns an independent judge",
  "gap_a_truth": "A - true utility: how far A was fooled",
  "precision": "relevant items shown / slots",
  "recall": "relevant items shown / relevant items",
  "ndcg": "discounted gain / the best possible",
  "map": "average precision, divided by min(relevant, slots)",
  "f1": "harmonic mean of precision and recall",
  "without_relevant": "requests that NDCG, MAP and recall leave out",
  "coverage": "distinct items shown / distinct candidates",
  "ild": "diversity in a slate: 1 - mean pairwise cosine of features",
  "groups": "distinct topics, genres or tags in a slate",
  "discounted_reward": "a session's rewards, discounted a slate",
  "total_reward": "a session's rewards, until the user leaves",
  "slate_reward": "the mean reward of a session's slates",
  "return_days": "days until the user returns, 0 if he is still there",
  "requests": "requests judged",
  "cold_requests": "requests with a candidate unseen in training",
}

_STYLE = """
:root { color-scheme: light dark; --ground: #ffffff; --ink: #1b1f24;
  --soft: #57606a; --line: #d0d7de; --band: #f3f5f7; }
@media (prefers-color-scheme: dark) { :root { --ground: #15181d;
  --ink: #e4e7eb; --soft: #a3abb5; --line: #3a414b; --band: #1e2229; } }
body { background: var(--ground); color: var(--ink); margin: 2rem auto;
  max-width: 72rem; padding: 0 1rem;
  font: 1rem/1.5 system-ui, sans-serif; }
code { overflow-wrap: anywhere; }
dt { font-weight: 600; } dd { margin: 0 0 .4rem 1.2rem; }
.wide { overflow-x: auto; } .wide:focus { outline: 2px solid var(--soft); }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--soft); padding: .3rem 0; }
th, td { padding: .25rem .6rem; text-align: right; white-space: nowrap;
  border-bottom: 1px solid var(--line); vertical-align: top; }
th[scope=row], thead th:first-child { text-align: left; }
thead th { background: var(--band); white-space: normal; }
td small { display: block; color: var(--soft); }
figure { margin: 1.5rem 0; } img { max-width: 100%; height: auto; }
figcaption { color: var(--soft); }
"""


def _base(metric: str) -> str:
  """A metric's name without its cut-off: `cold_ndcg@6` -> `cold_ndcg`."""
  return metric.split("@")[0]


def _ordered(rows: Sequence[Mapping[str, Any]]) -> list[str]:
  """All metrics of the rows, the headline first, then by name."""
  order = {name: i for i, name in enumerate(HEADLINE)}
  names = {name for row in rows for name in row["metrics"]}
  return sorted(names, key=lambda x: (order.get(_base(x), len(order)), x))


def headline(rows: Sequence[Mapping[str, Any]]) -> list[str]:
  """The metrics worth a column in a short table, most important first.

  Args:
    rows: of `judge.summarise`.

  Returns:
    Names as they stand in the rows, cut-off included.
  """
  return [name for name in _ordered(rows) if _base(name) in HEADLINE]


def number(value: float | None) -> str:
  """Three digits that tell, whole numbers as such, a dash for nothing."""
  if value is None or not math.isfinite(value):
    return "-"
  if isinstance(value, int) or (value.is_integer() and abs(value) >= 2):
    return str(int(value))
  return _short(value)


def _short(value: float) -> str:
  """Three decimals, or four below .1, where recall among all items lies."""
  digits = 4 if abs(value) < 0.1 else 3
  # Adding 0 turns -0.0 into 0.0.
  return f"{round(value, digits) + 0.0:.{digits}f}"


def bounds(interval: Sequence[float] | None) -> str:
  """An interval as text; empty where there is none."""
  if not interval or any(x is None or not math.isfinite(x) for x in interval):
    return ""
  return f"[{_short(interval[0])}, {_short(interval[1])}]"


def render(
  facts: Mapping[str, str],
  rows: Sequence[Mapping[str, Any]],
  *,
  history: Mapping[str, Sequence[Mapping[str, float]]],
  calibrations: Mapping[str, Mapping[str, Any]],
  deciles: Mapping[str, Sequence[Mapping[str, float]]],
) -> str:
  """The whole page.

  Args:
    facts: name -> text at the top: dataset, its version, ..., command.
    rows: of `judge.summarise`.
    history: stage -> [{"step": 10, metric: value}].
    calibrations: title -> `judge.calibration`.
    deciles: title -> `judge.gap_by_decile`.

  Returns:
    HTML text; equal input gives equal text.
  """
  sections = [_facts(facts), _results(rows)]
  if deciles:
    sections.append("<h2>Does the reward outrun an independent judge?</h2>")
    sections += [_decile(*item) for item in deciles.items()]
  if calibrations:
    sections.append("<h2>Calibration</h2>")
    sections += [_calibration(*item) for item in calibrations.items()]
  curves = {name: records for name, records in history.items() if records}
  if curves:
    sections.append("<h2>Training</h2>")
    sections += [_curves(*item) for item in curves.items()]
  title = html.escape(f"Reranking report: {facts.get('dataset', '')}")
  return (
    '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    '<meta name="viewport" content="width=device-width">\n'
    f"<title>{title}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
    f"<main>\n<h1>{title}</h1>\n" + "\n".join(sections) + "\n</main>\n"
    "</body>\n</html>\n"
  )


def _facts(facts: Mapping[str, str]) -> str:
  items = "".join(
    f"<dt>{html.escape(name)}</dt><dd><code>{html.escape(text)}</code></dd>"
    for name, text in facts.items()
  )
  return f"<dl>{items}</dl>"


def _results(rows: Sequence[Mapping[str, Any]]) -> str:
  """The table of systems, its glossary and the headline figure."""
  if not rows:
    return "<p>No system was judged.</p>"
  metrics = _ordered(rows)
  body = []
  for row in rows:
    cells = [html.escape(str(row["system"])), str(row["seed"])]
    for name in metrics:
      interval = bounds(row["intervals"].get(name))
      small = f"<small>{interval}</small>" if interval else ""
      cells.append(number(row["metrics"].get(name)) + small)
    body.append(cells)
  head = ["system", "seed"] + [name.replace("_", " ") for name in metrics]
  caption = (
    "Every system on the same requests; 95 % bootstrap intervals over "
    "requests in brackets."
  )
  known = {_base(name).removeprefix("cold_") for name in metrics}
  known |= {"cold_requests"} & set(metrics)
  glossary = "".join(
    f"<dt>{name.replace('_', ' ')}</dt><dd>{html.escape(text)}</dd>"
    for name, text in _MEANING.items()
    if name in known
  )
  figure = ""
  if first := headline(rows)[:1]:
    figure = _figure(
      figures.systems(rows, first[0]),
      "; ".join(
        f"{row['system']} (seed {row['seed']}) "
        f"{number(row['metrics'].get(first[0]))}"
        for row in rows
      ),
      f"{first[0].replace('_', ' ')} of every system, 95 % intervals.",
    )
  return (
    "<h2>Results</h2>"
    + _table(head, body, caption)
    + figure
    + f"<details><summary>What the columns mean</summary><dl>{glossary}</dl>"
    "<p>Columns that begin with “cold” are the same figures over the "
    "requests with a candidate unseen in training.</p></details>"
  )


def _decile(title: str, rows: Sequence[Mapping[str, float]]) -> str:
  text = "; ".join(
    f"decile {row['decile']}: A {number(row['a'])}, B {number(row['b'])}"
    for row in rows
  )
  return (
    f"<h3>{html.escape(title)}</h3>"
    + _figure(figures.deciles(rows), text, "Mean of A and B by decile of A.")
    + _records(rows, f"{title}: A - B by decile of A")
  )


def _calibration(title: str, calibration: Mapping[str, Any]) -> str:
  ece = number(calibration["ece"])
  text = "; ".join(
    f"predicted {number(row['predicted'])}, observed {number(row['observed'])}"
    for row in calibration["bins"]
  )
  return (
    f"<h3>{html.escape(title)}</h3>"
    + _figure(
      figures.reliability(calibration),
      text,
      f"Observed against predicted; expected calibration error {ece}.",
    )
    + _records(calibration["positions"], f"{title}: by position")
    + _records(calibration["bins"], f"{title}: by predicted probability")
  )


def _curves(title: str, records: Sequence[Mapping[str, float]]) -> str:
  series = figures.points(records)
  if not series:
    return ""
  text = "; ".join(
    f"{name} from {number(y[0])} to {number(y[-1])}"
    for name, (_, y) in series.items()
  )
  summary = [
    {
      "metric": name,
      "first step": int(x[0]),
      "last step": int(x[-1]),
      "first": y[0],
      "last": y[-1],
      "lowest": min(y),
      "highest": max(y),
    }
    for name, (x, y) in series.items()
  ]
  return (
    f"<h3>{html.escape(title)}</h3>"
    + _figure(figures.curves(records), text, f"{title}: metrics by step.")
    + _records(summary, f"{title}: the curves in numbers")
  )


def _records(rows: Sequence[Mapping[str, Any]], caption: str) -> str:
  """A table of records that share their keys; nothing if there are none."""
  if not rows:
    return ""
  head = list(rows[0])
  body = [
    [
      html.escape(row[name])
      if isinstance(row[name], str)
      else number(row[name])
      for name in head
    ]
    for row in rows
  ]
  return _table(head, body, caption)


def _table(
  head: Sequence[str], body: Sequence[Sequence[str]], caption: str
) -> str:
  """A captioned table; cells are HTML already, heads and captions text."""
  heads = "".join(f'<th scope="col">{html.escape(x)}</th>' for x in head)
  lines = "".join(
    f'<tr><th scope="row">{cells[0]}</th>'
    + "".join(f"<td>{cell}</td>" for cell in cells[1:])
    + "</tr>\n"
    for cells in body
  )
  label = html.escape(caption, quote=True)
  return (
    f'<div class="wide" tabindex="0" role="region" aria-label="{label}">'
    f"<table><caption>{html.escape(caption)}</caption>"
    f"<thead><tr>{heads}</tr></thead>\n<tbody>\n{lines}</tbody></table></div>"
  )


def _figure(image: bytes, text: str, caption: str) -> str:
  """A figure, white on any ground."""
  data = base64.b64encode(image).decode()
  return (
    f'<figure><img src="data:image/png;base64,{data}" '
    f'alt="{html.escape(text, quote=True)}">'
    f"<figcaption>{html.escape(caption)}</figcaption></figure>"
  )
