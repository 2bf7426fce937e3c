r"""DDPG over sessions (Lillicrap et al. 2016): the action is a point.

  python -m launch.train --workdir=DIR --config=configs/ddpg.py[:VARIANTS]

z = mu(s), the slate is the top-K of z . e_i, a critic values (s, z); exploring
is Gaussian noise on z (docs/methods.md). All else as in configs/dqn.py.

Learning takes 3 to 6 minutes of a core. To expect among learnt users (total
reward, five seeds): 7.07 on KuaiRand and 23.08 on MovieLens, where HSRL has
8.59 and 24.12.
"""

from configs import common, dqn

CHANGES = {**dqn.CHANGES, "name": "ddpg", "replay.agent": "ddpg"}

# Points want a higher rate than values of items.
OWN = {**dqn.OWN, "learnt": {"rl_train.learning_rate": 6e-3}}


def get_config(variant: str = ""):
  """The synthetic world's users, or the small world of trust."""
  return common.build(CHANGES, variant, OWN)
