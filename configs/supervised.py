r"""A supervised slate policy over sessions: a rival of HSRL that sees clicks.

  python -m launch.train --workdir=DIR --config=configs/supervised.py[:VARIANTS]

A transformer that points at candidates learns of every item that it shows
whether it is clicked under what stands above it, and of nothing that comes
later (docs/methods.md). Users and the number of sessions played are those of
configs/hsrl.py; so are the variants, but for `disentangled`.

Learning takes 3 to 6 minutes of a core. To expect among learnt users (total
reward, five seeds): 6.35 on KuaiRand and 23.82 on MovieLens, where HSRL has
8.59 and 24.12.
"""

from configs import common, hsrl

CHANGES = {
  **hsrl.CHANGES,
  "name": "supervised",
  "stages": ("tokenizer", "supervised"),
  "policy.head": "pointer",
}


def get_config(variant: str = ""):
  """The synthetic world's users, or the small world of trust."""
  return common.build(CHANGES, variant)
