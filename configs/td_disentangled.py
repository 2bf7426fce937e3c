r"""Disentangled TD (arXiv 2501.17409): the policy's chance apart from users'.

  python -m launch.train --workdir=DIR \
    --config=configs/td_disentangled.py[:VARIANTS]

A2C whose Q learns from rewards and V of what follows, and whose V from Q
(docs/methods.md). The variant `disentangled` does the same to configs/hsrl.py,
dqn.py, ddpg.py and hac.py.

To expect on KuaiRand's learnt users: total reward of 6.89 for A2C's 6.94, five
seeds; of the five learners none gains beyond chance (docs/results.md).
"""

from configs import a2c, common

CHANGES = {
  **a2c.CHANGES,
  "name": "td_disentangled",
  **common.VARIANTS["disentangled"],
}


def get_config(variant: str = ""):
  """The synthetic world's users, or the small world of trust."""
  return common.build(CHANGES, variant, a2c.OWN)
