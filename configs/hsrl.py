r"""HSRL (arXiv 2510.09167): long-term value over sessions.

  python -m launch.train --workdir=DIR --config=configs/hsrl.py[:VARIANTS]

A user meets one slate after another, tires of what he sees too often, and
leaves when he has lost patience. The policy acts on semantic IDs, level by
level; a critic of every level gives each token its advantage
(docs/methods.md). Without a variant users are those of the synthetic world;
`trust` is a small world that is solved exactly, `learnt,kuairand_pure` and
`learnt,movielens_1m` have users who behave as models learnt from logs do
(`learnt,ensemble,...`: users of another make). The policy is the paper's (HPN)
but for learnt users, whose slates the transformer over semantic IDs writes: it
sees what it has placed (`--config.policy.head=hpn` for the paper's there, too).

`trust` takes two to four minutes of one core and reaches .979 to 1 of the
optimum, greedy (16 seeds); among learnt users learning takes 3 to 6. To expect
there, total reward: 8.59 on KuaiRand, 24.12 on MovieLens (five seeds).
"""

from configs import common

CHANGES = {
  "name": "hsrl",
  "protocol": "session",
  "stages": ("tokenizer", "session"),
  "policy.head": "hpn",
  "policy.dim": 32,  # As in the paper; a session is read 20 times.
  "policy.layers": 1,
  "world.num_train": 20_000,
  "world.cold_share": 0.0,
  "rl.group": 1,
  "rl.credit": "gae",
  "rl.objective": "reinforce",
  "rl.kl": 0.05,
  "rl.entropy": 0.03,
  "critic.decay": 1.0,
  "rl_train.steps": 500,
  "rl_train.batch_size": 32,
  "rl_train.learning_rate": 2e-3,
  "rl_train.ema": 0.98,
  "rl_train.patience": 0,  # A log is short, its users are met ever anew.
  "rl_train.eval_every": 100,
  "rl_train.checkpoint_every": 100,
}

OWN = {
  # HPN ranks items by one table: where bait is best shown second, it pays only
  # for a policy that hardly ever shows it first.
  "trust": {"rl.entropy": 0.01, "rl.kl": 0.02, "rl_train.steps": 1000},
  "learnt": {"policy.head": "global", "rl.entropy": 0.0125},
  # Of each choice, where a slate's later answers are mostly luck.
  "kuairand_pure": {"critic.decay": 0.75},
}


def get_config(variant: str = ""):
  """The synthetic world's users, or the small world of trust."""
  return common.build(CHANGES, variant, OWN)
