"""What one greedy pass saves: against a beam of 8 on the same policy.

python -m benchmarks.greedy [--large]: one slate a request, prompt included and
without it (the game prepared beforehand).
"""

from collections.abc import Callable
import functools

from absl import app
import jax
import numpy as np

from benchmarks import common
from launch import errors
from rerank_rl.decoding import beam, sample

WIDTH = 8


def greedy(policy, params, game):
  """One greedy slate a request, i32[B, K]."""
  key = jax.random.key(0)  # Unused at temperature 0.
  return sample.chains(policy, params, game, key, 1, 0.0).slate[:, 0]


def wide(policy, params, game):
  """The best slate of a beam, i32[B, K]."""
  return beam.beam(policy, params, game, WIDTH).slate[:, 0]


def whole(problem: common.Problem, decode: Callable) -> Callable:
  """() -> slates, prompt included; decode: (policy, params, game) -> slates."""
  policy, params, catalogue, request = problem

  @jax.jit
  def rank(params, request):
    # The request is an argument: a constant's trie would be built beforehand.
    game = sample.prepare(policy, params, catalogue, request)
    return decode(policy, params, game)

  return functools.partial(rank, params, request)


def run(setting: common.Setting, pairs: int) -> list[float]:
  """Prints the table; greedy's time over the beam's: whole, without prompt."""
  problem = common.problem(setting)
  policy, params, catalogue, request = problem

  def timed(decode):
    """(with the prompt, without it)."""
    alone = jax.jit(functools.partial(decode, policy))
    return whole(problem, decode), functools.partial(alone, params, game)

  prepare = jax.jit(functools.partial(sample.prepare, policy))
  game = prepare(params, catalogue, request)
  names = ("whole", "without the prompt")
  calls = dict(zip(names, zip(timed(greedy), timed(wide)), strict=True))
  flat = [call for pair in calls.values() for call in pair]
  times = common.paired(*flat, pairs=pairs)
  ratios, rows = [], []
  for i, name in enumerate(calls):
    one, other = times[:, 2 * i], times[:, 2 * i + 1]
    ratios.append(common.ratio(one, other))
    seen = (f"{1e3 * np.median(t):.1f}" for t in (one, other))
    rows.append((name, *seen, f"{ratios[-1]:.2f}"))
  columns = ("part", "greedy, ms", f"beam {WIDTH}, ms", "greedy / beam")
  common.show(f"Serving ({setting})", columns, rows)
  return ratios


if __name__ == "__main__":
  errors.run(app, lambda: common.main(run))
