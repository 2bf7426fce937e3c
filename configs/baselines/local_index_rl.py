r"""GloRank's ablation: tokens are the request's own indices.

  python -m launch.train --workdir=DIR \
    --config=configs/baselines/local_index_rl.py

To expect: .708 of the world's optimum, the ranker's order has .710: positions
of shuffled candidates teach it nothing (three seeds).
Variants: see README.md.
"""

from configs import common

CHANGES = {
  "name": "local_index_rl",
  "sft_name": "local_index_sft",
  "policy.head": "local_index",
}


def get_config(variant: str = ""):
  """The default world, 50 -> 6."""
  return common.build(CHANGES, variant, common.PATIENT)
