"""V-STAR (arXiv 2602.10699): search where it pays, credit where paths part.

  python -m launch.train --config=configs/vstar.py --workdir=DIR

A critic, fitted to the SFT policy and then trained beside it, guides which
prefixes the rollouts share and where they part (VED); each token is held
against its siblings. They are weighed by the policy's probability, which the
paper's credit does not do: with that one, a policy that has been cloned well
gets worse (docs/results.md). It is had by
  --config.rl.credit=group+sibling --config.rl.biased_credit=True
A request's 68 forward tokens are those of four slates drawn independently.
Serving decodes greedily: search is for training alone. On KuaiRand the walks
of the search are drawn from the policy: from greedy ones it learns less.

The critic takes three minutes of a core, RL as long. To expect: .912 of the
world's optimum (five seeds), level with as many independent tokens; 6.139 by B
on KuaiRand, level with them. Variants: see README.md.
"""

from configs import common

CHANGES = {
  "name": "vstar",
  "stages": ("tokenizer", "evaluators", "sft", "critic", "rl"),
  "rl.explore": "value_guided",
  "rl.credit": "confined",
  "rl.budget": 68,
  "rl.group": 16,  # Leaves, at most.
  "rl_train.batch_size": 16,  # Little noise: half the requests do.
}


OWN = {"kuairand_pure": {"rl.walks": "drawn", "rl_train.patience": 0}}


def get_config(variant: str = ""):
  """The default world, 50 -> 6."""
  return common.build(CHANGES, variant, OWN)
