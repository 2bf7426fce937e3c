r"""HAC over sessions (arXiv 2302.03431): KuaiSim's Hyper-Actor Critic.

  python -m launch.train --workdir=DIR --config=configs/hac.py[:VARIANTS]

A Gaussian actor over points z, slates as in configs/ddpg.py; the critic values
z and the point that the slate itself stands for, and both are aligned
(docs/methods.md). All else as in configs/dqn.py.

Learning takes 3 to 6 minutes of a core. To expect among learnt users (total
reward, five seeds): 6.97 on KuaiRand and 22.99 on MovieLens, where HSRL has
8.59 and 24.12.
"""

from configs import common, ddpg, dqn

CHANGES = {**dqn.CHANGES, "name": "hac", "replay.agent": "hac"}


def get_config(variant: str = ""):
  """The synthetic world's users, or the small world of trust."""
  return common.build(CHANGES, variant, ddpg.OWN)
