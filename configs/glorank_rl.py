"""GloRank (arXiv 2604.25291): semantic IDs, SFT, then group-relative RL.

  python -m launch.train --config=configs/glorank_rl.py --workdir=DIR

Variants (combine with commas): smoke (a minute on two cores), oracle (fully
observed, enumerable world), movielens_1m, kuairand_pure, recovery, m, l.
"""

from configs import common


def get_config(variant: str = ""):
  """The default world, 50 -> 6, reward by evaluator A."""
  return common.build({"name": "glorank_rl"}, variant, common.PATIENT)
