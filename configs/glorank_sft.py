r"""GloRank's first stage alone: cloning evaluator-improved slates.

  python -m launch.train --workdir=DIR \
    --config=configs/glorank_sft.py

To expect: .899 of the world's optimum (five seeds). Variants: see README.md.
"""

from configs import common

CHANGES = {
  "name": "glorank_sft",
  "stages": ("tokenizer", "evaluators", "sft"),
}


def get_config(variant: str = ""):
  """The default world, 50 -> 6."""
  return common.build(CHANGES, variant)
