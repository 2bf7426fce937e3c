r"""A pointer network with GloRank's SFT and RL.

  python -m launch.train --workdir=DIR \
    --config=configs/baselines/pointer_rl.py

To expect: .914 of the world's optimum, level with GloRank (three seeds).
Variants: see README.md.
"""

from configs import common

CHANGES = {
  "name": "pointer_rl",
  "sft_name": "pointer_sft",
  "policy.head": "pointer",
}


def get_config(variant: str = ""):
  """The default world, 50 -> 6."""
  return common.build(CHANGES, variant, common.PATIENT)
