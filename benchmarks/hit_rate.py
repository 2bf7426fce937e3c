"""How near a list is to the evaluator's best: --workdir=RUN.

python -m benchmarks.hit_rate --workdir=RUN --requests=200: RUN is a run of
configs/degre.py on a world that is small enough to list all slates, such as
--config.world.num_candidates=10 --config.world.slate_size=5 (30,240 slates a
request). HR@q: the list is among the share q of all slates that the lookahead
evaluator likes best. That is agreement with what was distilled; evaluator B and
the truth stand beside it.
"""

import itertools
import math

from absl import app
import numpy as np

from benchmarks import common, runs
from launch import errors
from rerank_rl.config import ConfigError
from rerank_rl.models import ensemble
from rerank_rl.training import systems
from rerank_rl.training.setting import (
  Setting,
  by_chunks,
  greedy_ranker,
  valuer,
)
from rerank_rl.training.stages import mine
from rerank_rl.types import Impression

_MOST = 100_000  # Slates a request.


def every_value(setting: Setting, part: Impression) -> np.ndarray:
  """What the lookahead evaluator says of every slate, f32[n, P(N, K)].

  Raises:
    ConfigError: there are too many.
  """
  N, K = part.request.candidates.shape[1], part.slate.shape[1]
  if math.perm(N, K) > _MOST:
    raise ConfigError(
      f"{N} candidates for {K} slots make {math.perm(N, K):,} slates; name a "
      "run of a smaller world."
    )
  every = np.array(list(itertools.permutations(range(N), K)), np.int32)
  model, fitted = setting.judges["lookahead"]
  features = setting.catalogue.features

  def value(request):
    logits = ensemble.predict(model, fitted, features, request, every[None])
    return ensemble.values(logits, every[None], setting.weights).sum(-1)

  return by_chunks(value, 1, part.request)


def place(every: np.ndarray, own: np.ndarray) -> np.ndarray:
  """Share f64[n] of all slates f32[n, P] that are worth more than f32[n].

  Values that differ by rounding alone are equal.
  """
  edge = own[:, None] + 1e-5 * np.abs(own[:, None])
  return (every > edge).mean(1)


def main() -> None:
  """Prints the table."""
  setting = runs.learnt()
  part = runs.requests(setting)
  truth = valuer(setting.reward("world"))
  judges = {n: valuer(setting.judged_by(n)) for n in ("lookahead", "a", "b")}
  every = every_value(setting, part)
  slates = {
    "ranker_order": systems.simple(setting, part)["ranker_order"],
    "mined": mine.lists(setting, part)["slate"][:, 0],
  }
  for name, params in setting.params.items():
    slates[name] = greedy_ranker(setting)(params, part)
  optimum = systems.bounds_of(setting.world, setting.config.seed, part)
  best = truth(part, optimum["optimum"]).sum()
  rows = []
  for name, slate in slates.items():
    at = place(every, judges["lookahead"](part, slate))
    rows.append(
      (
        name,
        *(f"{(at < q).mean():.3f}" for q in (0.001, 0.01)),
        *(f"{judge(part, slate).mean():.4f}" for judge in judges.values()),
        f"{truth(part, slate).sum() / best:.4f}",
      )
    )
  columns = ("list", "HR@.1 %", "HR@1 %", *judges, "share of optimum")
  title = f"{len(every)} requests, {every.shape[1]:,} slates each"
  common.show(title, columns, rows)


if __name__ == "__main__":
  errors.run(app, main)
