"""Stage `lookahead`: the evaluator that plans, fitted to evaluator A's rows.

It stands where A stands: it is what learning sees, and neither S nor B has
seen a row of its own. It is not calibrated, since V-hat would part from its
own sum of P(V >= k).
"""

from rerank_rl.models import lookahead
from rerank_rl.training.setting import Setting
from rerank_rl.training.stages import evaluators

STAGE = "lookahead"


def model_of(setting: Setting) -> lookahead.LookaheadEvaluator:
  """The network, of evaluator A's sizes."""
  a = evaluators.model_of(setting, "a")
  return lookahead.LookaheadEvaluator(
    slots=a.slots,
    signals=a.signals,
    dim=a.dim,
    rank=a.rank,
    heads=a.heads,
    dropout=a.dropout,
  )


def run(setting: Setting) -> Setting:
  """Fits or reloads the lookahead evaluator.

  Returns:
    With `judges["lookahead"]`.
  """
  return evaluators.uncalibrated(setting, STAGE, model_of(setting))
