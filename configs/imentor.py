"""i-MENTOR (arXiv 2505.17621): failures are paid for being new.

  python -m launch.train --config=configs/imentor.py --workdir=DIR

GloRank's job with group-relative credit divided by std, a reward of 1 for a
good slate (true utility at least .95 of the optimum; on real data better than
the logged one by A) and 0 else, and a bonus of random network distillation
for rollouts that failed. `--config.rl.bonus=noise` is the paper's control.
To expect in `oracle,good` after 300 steps: pass@64 of .720 to .797, no better
than the control's .665 to .788 (three seeds). Variants: see README.md.
"""

from configs import common

CHANGES = {
  "name": "imentor",
  "rl.credit": "group",
  "rl.reward": "good",
  "rl.bonus": "novelty",
}


def get_config(variant: str = ""):
  """The default world, 50 -> 6."""
  return common.build(CHANGES, variant)
