r"""Advantage actor-critic over sessions: HSRL's plain rival.

  python -m launch.train --workdir=DIR --config=configs/a2c.py[:VARIANTS]

A Gaussian actor over points z, slates as in configs/ddpg.py; what did better
than the critic foretold, r + gamma V(s') - V(s), is made more likely. It learns
from the slates that it has just shown (docs/methods.md). All else as in
configs/dqn.py.

Learning takes 3 to 6 minutes of a core. To expect among learnt users (total
reward, five seeds): 6.94 on KuaiRand and 23.29 on MovieLens, where HSRL has
8.59 and 24.12.
"""

from configs import common, dqn

CHANGES = {
  **dqn.CHANGES,
  "name": "a2c",
  "replay.agent": "a2c",
  "replay.capacity": 1,
}
# A gain of log-likelihood wants more noise than -Q does, and no higher rate.
OWN = {
  **dqn.OWN,
  "learnt": {"rl_train.learning_rate": 2e-3, "replay.noise": 1.0},
}


def get_config(variant: str = ""):
  """The synthetic world's users, or the small world of trust."""
  return common.build(CHANGES, variant, OWN)
