r"""A pointer network over the candidates, cloning the same slates.

  python -m launch.train --workdir=DIR \
    --config=configs/baselines/pointer_sft.py

To expect: .900 of the world's optimum (three seeds).
Variants: see README.md.
"""

from configs import common

CHANGES = {
  "name": "pointer_sft",
  "sft_name": "pointer_sft",
  "stages": ("tokenizer", "evaluators", "sft"),
  "policy.head": "pointer",
}


def get_config(variant: str = ""):
  """The default world, 50 -> 6."""
  return common.build(CHANGES, variant)
