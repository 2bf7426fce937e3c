r"""DQN over sessions (Mnih et al. 2015): a rival of HSRL that values items.

  python -m launch.train --workdir=DIR --config=configs/dqn.py[:VARIANTS]

Q(s, slate) is the mean of its items' Q(s, i), learnt from replay with a target
network; exploring is epsilon-greedy slot by slot (docs/methods.md). Users, the
reading of them and the number of sessions played are those of
configs/hsrl.py; so are the variants, `disentangled` among them.

Learning takes 3 to 6 minutes of a core. To expect among learnt users (total
reward, five seeds): 8.40 on KuaiRand and 23.48 on MovieLens, where HSRL has
8.59 and 24.12.
"""

from configs import common, hsrl

CHANGES = {
  **hsrl.CHANGES,
  "name": "dqn",
  "stages": ("tokenizer", "replay"),
  "replay.agent": "dqn",
  "rl_train.ema": 0.995,  # There are several gradient steps a step.
}

# What variants mean for agents that learn from replay.
OWN = {
  # There clicks mislead: they are what costs trust.
  "trust": {"replay.clicks": 0.0},
  "learnt": {"rl_train.learning_rate": 2e-3},
}


def get_config(variant: str = ""):
  """The synthetic world's users, or the small world of trust."""
  return common.build(CHANGES, variant, OWN)
