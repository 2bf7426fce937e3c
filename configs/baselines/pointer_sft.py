r"""A pointer network over the candidates, cloning the same slates.

  python -m launch.train --workdir=DIR \
    --config=configs/baselines/pointer_sft.py

Variants: see configs/common.py.
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
