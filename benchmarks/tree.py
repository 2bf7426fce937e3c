"""The learner's layouts on a tree: python -m benchmarks.tree [--large].

A fixed 4 x 4 x 4 tree branches at the first token of its first three items,
where most items part: 64 leaves a request, as many slates in all as
benchmarks.learner has chains. Separate sequences recompute the prompt.
"""

import dataclasses

from absl import app

from benchmarks import common, learner
from launch import errors
from rerank_rl.decoding import fixed_tree
from rerank_rl.rl import credit


def branching(levels: int) -> tuple[int, ...]:
  """4 x 4 x 4, at the first token of the first three items."""
  item = (4, *[1] * (levels - 1))
  return (*item, *item, 4)


def run(setting: common.Setting, pairs: int) -> list[float]:
  """Prints the table; returns each layout's time over separate sequences'."""
  shape = branching(setting.data.levels)
  group = fixed_tree.leaves(shape)
  requests = max(1, setting.requests * setting.group // group)
  setting = dataclasses.replace(setting, requests=requests, group=group)
  explore = lambda policy, params, game, key: fixed_tree.fixed_tree(
    policy, params, game, shape, key
  )
  return learner.compare(
    setting, explore, credit.sibling, "A 4 x 4 x 4 tree", pairs
  )


if __name__ == "__main__":
  errors.run(app, lambda: common.main(run))
