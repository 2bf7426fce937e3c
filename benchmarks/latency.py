"""How long one request waits for its slate, from each kind of reranker.

python -m benchmarks.latency [--large]: requests come one at a time, prompt
included; the same sizes for all, random parameters, everything compiled before.
"""

from collections.abc import Callable
import dataclasses
import functools

from absl import app
import jax
import numpy as np

from benchmarks import common
from rerank_rl.config import PolicyConfig
from rerank_rl.decoding import beam, sample
from rerank_rl.models import rerankers

WIDTH = 8
ROUNDS = 20  # A tail needs more calls than a median.


def _reranker(setting: common.Setting, problem: common.Problem, queries: int):
  """() -> slates of a supervised reranker with `queries` score rows."""
  sizes = setting.data
  config = PolicyConfig(
    dim=setting.dim, layers=setting.layers, heads=setting.heads
  )
  model = rerankers.make_reranker(config, sizes, queries)
  params = jax.jit(model.init)(
    jax.random.key(0), problem.catalogue, problem.request
  )

  @jax.jit
  def rank(params, request):
    logits = model.logits(params, problem.catalogue, request)
    return rerankers.assign(logits, request, sizes.slots)

  return functools.partial(rank, params, problem.request)


def _decoder(problem: common.Problem, decode: Callable):
  """() -> slates of the policy; decode: (policy, params, game) -> slates."""
  policy, params, catalogue, request = problem

  @jax.jit
  def rank(params, request):
    game = sample.prepare(policy, params, catalogue, request)
    return decode(policy, params, game)

  return functools.partial(rank, params, request)


def _greedy(policy, params, game):
  key = jax.random.key(0)  # Unused at temperature 0.
  return sample.chains(policy, params, game, key, 1, 0.0).slate[:, 0]


def _beam(policy, params, game):
  return beam.beam(policy, params, game, WIDTH).slate[:, 0]


def run(setting: common.Setting, pairs: int) -> dict[str, float]:
  """Prints the table; each one's median wait over PRM's."""
  setting = dataclasses.replace(setting, requests=1, group=1)
  problem = common.problem(setting)
  ways = {
    "PRM": _reranker(setting, problem, 1),
    "NAR4Rec": _reranker(setting, problem, setting.data.slots),
    "policy, one greedy pass": _decoder(problem, _greedy),
    f"policy, beam of {WIDTH}": _decoder(problem, _beam),
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
  app.run(lambda argv: common.main(run))
