r"""The next item as a semantic ID (TIGER, arXiv 2305.05065), by SFT.

  python -m launch.train --workdir=DIR \
    --config=configs/tiger.py[:amazon_beauty]

An item-level trunk and a small decoder of tokens (docs/methods.md). Without
a variant it learns from histories of the synthetic world's users; its variants
are `amazon_beauty`, `smoke`, `m` and `l`.

1,500 steps are 15 passes over Amazon Beauty and take 10 minutes of one core;
two members learn apart and decide together. Mean of three seeds on test:
NDCG@10 .0446 and Recall@10 .0784, above ActionPiece's published .0424 and
.0775, which one member (NDCG@10 .0424, Recall@10 .0744) does not reach
(docs/results.md).
"""

from configs import common

CHANGES = {
  "name": "tiger",
  "sft_name": "tiger",
  "protocol": "next_item",
  "stages": ("tokenizer", "sft"),
  "world.num_train": 20_000,
  "world.cold_share": 0.0,
  "policy.dim": 128,
  "policy.heads": 4,
  "next_item.members": 2,
  "next_item.own_dim": 32,
  "next_item.dropout": 0.15,
  "next_item.item_dropout": 0.5,
  "sft.steps": 1500,
  "sft.learning_rate": 3e-3,
  "sft.warmup_steps": 100,
  "sft.weight_decay": 0.05,
  "sft.ema": 0.998,
  "sft.eval_every": 250,
  "sft.checkpoint_every": 500,
}


def get_config(variant: str = ""):
  """The default world, or Amazon Beauty."""
  return common.build(CHANGES, variant)
