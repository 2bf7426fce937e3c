r"""PRM (arXiv 1904.06813): transformer over the candidates, sort.

  python -m launch.train --workdir=DIR \
    --config=configs/baselines/prm.py

To expect: .837 of the world's optimum (three seeds).
Variants: see README.md.
"""

from configs import common

CHANGES = {
  "name": "prm",
  "stages": ("tokenizer", "evaluators", "ranker"),
  # Of 1e-3, 2e-3 the better by S on validation.
  "sft.learning_rate": 2e-3,
  "ranker.name": "prm",
}


def get_config(variant: str = ""):
  """The default world, 50 -> 6."""
  return common.build(CHANGES, variant)
