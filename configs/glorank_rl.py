"""GloRank (arXiv 2604.25291): semantic IDs, SFT, then group-relative RL.

  python -m launch.train --config=configs/glorank_rl.py --workdir=DIR

4 to 12 minutes on two cores; `smoke` takes one. To expect: .914 of the world's
optimum where SFT has .899 (five seeds), and regrets of .5 to .7 % in `oracle`.
Variants: see README.md; `kuairand_pure,recovery` and the like combine.
"""

from configs import common


def get_config(variant: str = ""):
  """The default world, 50 -> 6, reward by evaluator A."""
  return common.build({"name": "glorank_rl"}, variant, common.PATIENT)
