"""DeGRe (arXiv 2605.25749): plan offline, be greedy online.

  python -m launch.train --config=configs/degre.py --workdir=DIR

A lookahead evaluator, fitted to evaluator A's third of the log, is searched by
beams over training requests; the policy learns the lists found and, at each of
their prefixes, what the evaluator says of every candidate. It serves greedily.

Ablations, as flags; mined lists are shared where nothing of theirs changes:
  soft labels' weight  --config.distill.soft=1; 0 leaves hard labels alone
  soft labels only     --config.distill.hard=0
  mining depth, width  --config.distill.lists=1; --config.mine.width=4
  sharpness of labels  --config.distill.tau_q=.2
  clicked-first labels configs/glorank_sft.py --config.demo.rule=relevant_first
  list reward only     configs/glorank_sft.py --config.demo.rule=draws

To expect: .917 of the world's optimum (five seeds); 6.103 by B on KuaiRand and
13.635 on MovieLens (three). Variants: `preference` (DPO of the same mined lists
against the logged slate), and those in README.md.
"""

from configs import common

CHANGES = {
  "name": "degre",
  "stages": ("tokenizer", "evaluators", "lookahead", "mine", "distill"),
}


def get_config(variant: str = ""):
  """The default world, 50 -> 6."""
  return common.build(CHANGES, variant)
