"""Preference pairs on mined lists: DPO against the logged slate.

  python -m launch.train --config=configs/degre_preference.py --workdir=DIR

DeGRe's mined lists (configs/degre.py) with another objective: a policy that
has cloned what was shown learns that each mined list is better than it.
Variants: see configs/common.py.
"""

from configs import common

CHANGES = {
  "name": "degre_preference",
  "sft_name": "logged_sft",
  "stages": ("tokenizer", "evaluators", "lookahead", "mine", "sft", "distill"),
  "demo.rule": "logged",
  "distill.objective": "preference",
}


def get_config(variant: str = ""):
  """The default world, 50 -> 6."""
  return common.build(CHANGES, variant)
