r"""TIGER's policy, then RL on its own rankings (docs/methods.md).

  python -m launch.train --workdir=DIR \
    --config=configs/tiger_rl.py[:amazon_beauty]

An evaluator, a matrix over pairs of items that is fitted in closed form, tells
what the policy's own best items are worth after histories whose continuation
nobody has been told; the KL holds the policy near SFT's.

Published RL's reward, labels, and its control, SFT going on for as many steps:

    --config.rl.reward=labels --config.rl.credit=ranking
    --config.rl.reward=labels --config.rl.objective=likelihood

On Amazon Beauty it gains 8.3 % of SFT's NDCG@10 on test (.0483 for .0446, mean
of three seeds); labels gain .35 % (docs/results.md). 17 minutes of one core, of
which SFT takes 10 and RL 6.
"""

from configs import common, tiger

CHANGES = {
  **tiger.CHANGES,
  "name": "tiger_rl",
  "stages": ("tokenizer", "sft", "evaluators", "rl"),
  "rl.explore": "beam",
  "rl.credit": "expected",
  "rl.objective": "reinforce",
  "rl.reward": "evaluator",
  "rl.group": 32,
  "rl.kl": 1.0,
  "rl.entropy": 0.0,
  "rl_train.steps": 160,
  "rl_train.batch_size": 128,
  "rl_train.learning_rate": 1e-3,
  "rl_train.warmup_steps": 20,
  "rl_train.ema": 0.99,
  "rl_train.eval_every": 40,
}


def get_config(variant: str = ""):
  """The default world, or Amazon Beauty."""
  return common.build(CHANGES, variant)
