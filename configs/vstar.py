"""V-STAR (arXiv 2602.10699): search where it pays, credit where paths part.

  python -m launch.train --config=configs/vstar.py --workdir=DIR

A critic, fitted to the SFT policy and then trained beside it, guides which
prefixes the rollouts share and where they part (VED); each token is held
against its siblings, and each slate against its group (Sibling-GRPO). Leaves
of a search are no samples of the policy, hence `biased_credit`, as published.
Serving decodes greedily: search is for training alone.
Variants: see configs/common.py.
"""

from configs import common

CHANGES = {
  "name": "vstar",
  "stages": ("tokenizer", "evaluators", "sft", "critic", "rl"),
  "rl.explore": "value_guided",
  "rl.credit": "group+sibling",
  "rl.biased_credit": True,
}


def get_config(variant: str = ""):
  """The default world, 50 -> 6."""
  return common.build(CHANGES, variant)
