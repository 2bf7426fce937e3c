r"""Advantage actor-critic over sessions, without levels: HSRL's plain rival.

  python -m launch.train --workdir=DIR --config=configs/a2c.py[:trust][,smoke]

A transformer that points at candidates, and one advantage for a whole slate,
r + gamma V(s') - V(s); users, critic and numbers are those of configs/hsrl.py.
"""

from configs import common, hsrl

CHANGES = {
  **hsrl.CHANGES,
  "name": "a2c",
  "policy.head": "pointer",
  "rl.credit": "a2c",
}

OWN = {"learnt": {"rl.entropy": 0.025}}


def get_config(variant: str = ""):
  """The synthetic world's users, or the small world of trust."""
  return common.build(CHANGES, variant, OWN)
