"""Does the lookahead evaluator mean what it says? --workdir=RUN.

python -m benchmarks.lookahead --workdir=RUN [--requests=N]: RUN is a run of
configs/degre.py on any data. On logged slates that nobody was fitted to: is
P(V >= k) calibrated, how far off is V-hat, and does it order slates better than
evaluator A and than a pointwise control of the same size, fitted to its rows?
"""

from typing import Any

from absl import app
import numpy as np

from benchmarks import common, runs
from launch import errors
from rerank_rl.evaluation import bootstrap, judge
from rerank_rl.models import lookahead, pointwise
from rerank_rl.training.setting import (
  CHUNK,
  Setting,
  by_chunks,
  valuer,
)
from rerank_rl.training.stages import evaluators as evaluator_stage
from rerank_rl.types import PAD, Impression

CONTROL = "pointwise"


def with_control(setting: Setting) -> Setting:
  """The setting with the pointwise control among its judges."""
  a = evaluator_stage.model_of(setting, "a")
  model = pointwise.PointwiseEvaluator(
    a.slots, a.signals, a.dim, a.rank, a.heads, dropout=a.dropout
  )
  return evaluator_stage.uncalibrated(setting, CONTROL, model)


def list_auc(value: np.ndarray, outcome: np.ndarray) -> float:
  """P(value orders two slates as their outcomes do), ties of value 1/2.

  Args:
    value: f[n], what an evaluator says of n slates.
    outcome: f[n], what came of them; pairs of equal outcome do not count.

  Returns:
    The share of the ordered pairs; NaN without any.
  """
  won = total = 0.0
  for level in np.unique(outcome):
    low = np.sort(value[outcome < level])
    high = value[outcome == level]
    below = np.searchsorted(low, high, side="left").sum()
    upto = np.searchsorted(low, high, side="right").sum()
    won += (below + upto) / 2
    total += low.size * high.size
  return won / total if total else float("nan")


def lead(own: np.ndarray, other: np.ndarray, outcome: np.ndarray) -> float:
  """How much higher one evaluator's `list_auc` is than another's."""
  return list_auc(own, outcome) - list_auc(other, outcome)


def counts_of(setting: Setting, part: Impression) -> np.ndarray:
  """P(V_t >= k) of the logged slates, f32[n, K, S, K]."""
  model, fitted = setting.judges["lookahead"]
  features = setting.catalogue.features
  return by_chunks(
    lambda x: lookahead.counts(
      model, fitted, features, x.request, x.slate[:, None]
    ),
    CHUNK,
    part,
  )[:, 0]


def reliability(p: np.ndarray, part: Impression, signal: int) -> dict[str, Any]:
  """`judge.calibration` of one signal's P(V_t >= k), k <= t, of all prefixes.

  Args:
    p: f32[n, K, S, K], from `counts_of`.
    part: the impressions.
    signal: which of the S.
  """
  n, K = part.slate.shape
  k = np.arange(1, K + 1)
  seen = np.cumsum(part.feedback[..., signal], 1)[..., None] >= k
  possible = (part.slate != PAD)[..., None] & (k <= k[:, None])
  flat = lambda x: x.reshape(n, K * K)
  return judge.calibration(flat(p[:, :, signal]), flat(seen), flat(possible))


def main() -> None:
  """Prints the tables."""
  stages = ("tokenizer", "evaluators", "lookahead")
  setting = with_control(runs.learnt(*stages, world=False))
  part = runs.requests(setting)
  p = counts_of(setting, part)
  for i, signal in enumerate(setting.dataset.signals):
    found = reliability(p, part, i)
    common.show(
      f"P(V >= k), {signal}: calibration error {found['ece']:.4f}",
      ("from", "to", "prefixes", "predicted", "observed"),
      [
        (
          f"{b['low']:.1f}",
          f"{b['high']:.1f}",
          f"{b['count']:,}",
          f"{b['predicted']:.4f}",
          f"{b['observed']:.4f}",
        )
        for b in found["bins"]
      ],
    )
  weights = np.asarray(setting.weights)
  outcome = (part.feedback @ weights).sum(1)
  known = setting.world is not None
  expected = (
    valuer(setting.reward("world"))(part, part.slate) if known else outcome
  )
  names = "lookahead", "a", CONTROL
  said = {n: valuer(setting.judged_by(n))(part, part.slate) for n in names}
  ahead = {
    name: bootstrap.of_sample(lead, said["lookahead"], said[name], outcome)
    for name in names[1:]
  }
  rows = []
  for name, value in said.items():
    gap = value - expected
    rows.append(
      (
        name,
        f"{list_auc(value, outcome):.4f}",
        ahead[name].signed() if name in ahead else "",
        f"{list_auc(value, expected):.4f}" if known else "",
        f"{gap.mean():+.4f}",
        f"{np.abs(gap).mean():.4f}" if known else "",
      )
    )
  common.show(
    f"{len(outcome)} logged slates, mean feedback {outcome.mean():.4f}",
    (
      "evaluator",
      "list AUC",
      "lookahead minus it",
      "of expected",
      "mean gap",
      "mean |gap|",
    ),
    rows,
  )


if __name__ == "__main__":
  errors.run(app, main)
