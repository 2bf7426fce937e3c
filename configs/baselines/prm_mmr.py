r"""PRM re-ranked by maximal marginal relevance, tuned on validation.

  python -m launch.train --workdir=DIR \
    --config=configs/baselines/prm_mmr.py

To expect: .863 of the world's optimum (three seeds).
Variants: see README.md.
"""

from configs import common
from configs.baselines import prm

CHANGES = {**prm.CHANGES, "name": "prm_mmr", "ranker.mmr": True}


def get_config(variant: str = ""):
  """The default world, 50 -> 6."""
  return common.build(CHANGES, variant)
