r"""NAR4Rec (arXiv 2402.06871): slots matched with items in one shot.

  python -m launch.train --workdir=DIR \
    --config=configs/baselines/nar4rec.py

Variants: see configs/common.py.
"""

from configs import common

CHANGES = {
  "name": "nar4rec",
  "stages": ("tokenizer", "evaluators", "ranker"),
  "ranker.name": "nar4rec",
}


def get_config(variant: str = ""):
  """The default world, 50 -> 6."""
  return common.build(CHANGES, variant)
