r"""TIGER's policy, then RL on its own rankings (docs/methods.md).

python -m launch.train --workdir=DIR \
    --config=configs/tiger_rl.py[:amazon_beauty]
"""

from configs import common, tiger

CHANGES = {
  **tiger.CHANGES,
  "name": "tiger_rl",
  "stages": ("tokenizer", "sft", "rl"),
  "rl.explore": "beam",
  "rl.credit": "ranking",
  "rl.objective": "reinforce",
  "rl.reward": "labels",
  "rl.group": 32,
  "rl.temperature": 0.5,
  "rl.kl": 0.01,
  "rl.entropy": 0.0,
  "rl_train.steps": 400,
  "rl_train.batch_size": 64,
  "rl_train.learning_rate": 3e-4,
  "rl_train.eval_every": 100,
}


def get_config(variant: str = ""):
  """The default world, or Amazon Beauty."""
  return common.build(CHANGES, variant)
