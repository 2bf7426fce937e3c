r"""MocDT (arXiv 2501.07212): slates that achieve what they are asked for.

  python -m launch.train --workdir=DIR --config=configs/mocdt.py[:VARIANTS]

A goal, the mean reward and the mean diversity of a user's next slates, is one
token of the prompt; the policy clones behaviours whose slates are relabelled
with what they achieved (docs/methods.md). `python -m benchmarks.control
--workdir=DIR` asks a run for a grid of goals; seven minutes on one core, slopes
of .74 to 1.03 in the synthetic world (docs/results.md). Users as in
configs/hsrl.py: `learnt,kuairand_pure` and `learnt,movielens_1m` have users
learnt from logs.
"""

from configs import common, hsrl

CHANGES = {
  **hsrl.CHANGES,
  "name": "mocdt",
  "stages": ("tokenizer", "relabel"),
  "policy.head": "pointer",
  "policy.layers": 2,
  "rl_train.batch_size": 64,
  "rl_train.learning_rate": 6e-3,
  "rl_train.eval_every": 250,
}

OWN = {"learnt": {"rl_train.steps": CHANGES["rl_train.steps"]}}


def get_config(variant: str = ""):
  """The synthetic world's users, or users learnt from a log."""
  return common.build(CHANGES, variant, OWN)
