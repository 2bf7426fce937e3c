"""How long one request waits for its slate, from each kind of reranker.

python -m benchmarks.latency [--large]: requests come one at a time, prompt
included; the same sizes for all, random parameters, everything compiled before.
"""

import dataclasses
import functools

from absl import app
import jax
import numpy as np

from benchmarks import common, greedy
from launch import errors
from rerank_rl.models import rerankers

ROUNDS = 20  # A tail needs more calls than a median.


def _reranker(setting: common.Setting, problem: common.Problem, queries: int):
  """() -> slates of a supervised reranker with `queries` score rows."""
  sizes = setting.data
  model = rerankers.make_reranker(setting.policy, sizes, queries)
  params = jax.jit(model.init)(
    jax.random.key(0), problem.catalogue, problem.request
  )

  @jax.jit
  def rank(params, request):
    logits = model.logits(params, problem.catalogue, request)
    return rerankers.assign(logits, request, sizes.slots)

  return functools.partial(rank, params, problem.request)


def run(setting: common.Setting, pairs: int) -> dict[str, float]:
  """Prints the table; each one's median wait over PRM's."""
  setting = dataclasses.replace(setting, requests=1, group=1)
  problem = common.problem(setting)
  ways = {
    "PRM": _reranker(setting, problem, 1),
    "NAR4Rec": _reranker(setting, problem, setting.data.slots),
    "policy, one greedy pass": greedy.whole(problem, greedy.greedy),
    f"policy, beam of {greedy.WIDTH}": greedy.whole(problem, greedy.wide),
  }
  times = common.paired(*ways.values(), pairs=ROUNDS * pairs)
  ratios, rows = {}, []
  for name, own in zip(ways, times.T, strict=True):
    ratios[name] = common.ratio(own, times[:, 0])
    seen = (f"{1e3 * np.quantile(own, q):.2f}" for q in (0.5, 0.95))
    rows.append((name, *seen, f"{ratios[name]:.2f}"))
  columns = ("reranker", "median, ms", "95 %, ms", "over PRM's")
  common.show(f"One request at a time ({setting})", columns, rows)
  return ratios


if __name__ == "__main__":
  errors.run(app, lambda: common.main(run))
