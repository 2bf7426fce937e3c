"""The learner's layouts: path blocks, separate sequences, a dense mask.

python -m benchmarks.learner [--large]: forward and backward of the clipped
loss of the same slates, after checking that all three agree.
"""

from collections.abc import Callable

from absl import app
import chex
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import common, dense
from launch import errors
from rerank_rl.decoding import sample
from rerank_rl.rl import credit, learner, objectives
from rerank_rl.types import ROOT, Outcome, TokenTree


def layouts(problem: common.Problem, tree: TokenTree) -> dict:
  """Functions params -> PathScores of the tree's slates, by layout's name."""
  policy, _, catalogue, request = problem
  B, G, _ = tree.path.shape
  fed = np.unique(tree.parent)
  fed = fed[fed != ROOT]
  # Made once, outside of what is timed.
  mask = jax.jit(lambda t: dense.ancestors(t)[:, fed][:, :, fed])(tree)
  masked = dense.policy(policy, tree, mask, fed)
  repeated = jax.tree.map(lambda x: jnp.repeat(x, G, axis=0), request)
  alone = tree.slate.reshape(B * G, 1, -1)

  def paths(params):
    game = sample.prepare(policy, params, catalogue, request)
    return learner.score_slates(policy, params, game, tree.slate)

  def separate(params):
    game = sample.prepare(policy, params, catalogue, repeated)
    out = learner.score_slates(policy, params, game, alone)
    return jax.tree.map(lambda x: x.reshape(B, G, *x.shape[2:]), out)

  def one_row(params):
    game = sample.prepare(policy, params, catalogue, request)
    return learner.score_slates(masked, params, game, tree.slate)

  return {
    "path blocks": paths,
    "dense ancestor mask": one_row,
    "separate sequences": separate,
  }


def run(setting: common.Setting, pairs: int) -> list[float]:
  """Prints the table; returns each layout's time over separate sequences'."""
  explore = lambda *args: sample.chains(*args, setting.group)
  return compare(setting, explore, credit.group, "Learner", pairs)


def compare(
  setting: common.Setting,
  explore: Callable,
  give: Callable,
  title: str,
  pairs: int,
) -> list[float]:
  """Prints the table of a tree's layouts.

  Args:
    setting: sizes.
    explore: (policy, params, game, key) -> TokenTree.
    give: the credit, (tree, outcome) -> Credit.
    title: of the table.
    pairs: rounds of timing.

  Returns:
    Each layout's time over separate sequences'.
  """
  problem = common.problem(setting)
  policy, params, catalogue, request = problem

  @jax.jit
  def play(params):
    game = sample.prepare(policy, params, catalogue, request)
    return explore(policy, params, game, jax.random.key(1))

  tree = play(params)
  shape = tree.slate.shape[:2]
  reward = jax.random.normal(jax.random.key(2), shape)
  given = give(tree, Outcome(reward, reward[..., None], 0 * reward))

  def gradient(scored):
    def loss(params):
      scores = scored(params)
      out = objectives.clipped(tree, scores, given, 0.2)
      return out.total / out.denominator, scores.logp

    return jax.jit(jax.value_and_grad(loss, has_aux=True))

  functions = {k: gradient(f) for k, f in layouts(problem, tree).items()}
  first, *rest = [f(params) for f in functions.values()]
  for other in rest:
    chex.assert_trees_all_close(other, first, atol=1e-4, rtol=1e-4)
  times = common.paired(
    *(lambda f=f: f(params) for f in functions.values()), pairs=pairs
  )
  ratios = [common.ratio(column, times[:, -1]) for column in times.T]
  common.show(
    f"{title}, forward and backward ({setting})",
    ("layout", "ms", "time over separate sequences'"),
    [
      (name, f"{1e3 * t:.0f}", f"{r:.2f}")
      for name, t, r in zip(functions, np.median(times, axis=0), ratios)
    ],
  )
  return ratios


if __name__ == "__main__":
  errors.run(app, lambda: common.main(run))
