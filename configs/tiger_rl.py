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
  "rl.group": 16,
  "rl.kl": 0.03,
  "rl.entropy": 0.0,
  "rl_train.steps": 120,
  "rl_train.batch_size": 256,
  "rl_train.learning_rate": 1e-4,
  "rl_train.warmup_steps": 20,
  "rl_train.ema": 0.99,
  "rl_train.eval_every": 40,
}


def get_config(variant: str = ""):
  """The default world, or Amazon Beauty."""
  return common.build(CHANGES, variant)
