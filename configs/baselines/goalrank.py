r"""GoalRank: cross-entropy to the softmax of a group's rewards.

  python -m launch.train --workdir=DIR \
    --config=configs/baselines/goalrank.py

To expect: .911 of the world's optimum (three seeds).
Variants: see README.md.
"""

from configs import common

CHANGES = {
  "name": "goalrank",
  "rl.credit": "group",
  "rl.objective": "reference",
  "rl.entropy": 0.0,
}


def get_config(variant: str = ""):
  """The default world, 50 -> 6."""
  return common.build(CHANGES, variant, common.PATIENT)
