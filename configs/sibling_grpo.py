"""Sibling-GRPO (V-STAR, arXiv 2602.10699): credit where rollouts part.

  python -m launch.train --config=configs/sibling_grpo.py --workdir=DIR

GloRank's job with V-STAR's credit: each token is also held against the other
tokens that were tried after the same prefix. Search is not part of it.

To expect: .907 of the world's optimum with `--config.rl.group=4
--config.rl_train.batch_size=16` (three seeds); V-STAR, of as many tokens, has
.912. Variants: see README.md.
"""

from configs import common

CHANGES = {"name": "sibling_grpo", "rl.credit": "group+sibling"}


def get_config(variant: str = ""):
  """The default world, 50 -> 6."""
  return common.build(CHANGES, variant)
