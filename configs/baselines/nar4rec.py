r"""NAR4Rec (arXiv 2402.06871): slots matched with items in one shot.

  python -m launch.train --workdir=DIR \
    --config=configs/baselines/nar4rec.py

To expect: .845 of the world's optimum (three seeds).
Variants: see README.md.
"""

from configs import common

CHANGES = {
  "name": "nar4rec",
  "stages": ("tokenizer", "evaluators", "ranker"),
  # Of 1e-3, 2e-3 the better by S on validation.
  "sft.learning_rate": 2e-3,
  "ranker.name": "nar4rec",
}


def get_config(variant: str = ""):
  """The default world, 50 -> 6."""
  return common.build(CHANGES, variant)
