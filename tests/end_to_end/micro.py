"""A run of seconds, as a process of its own: one, or one of several."""

import dataclasses
import pathlib

from absl import logging
import jax

from configs import common
from rerank_rl import config as config_lib
from rerank_rl.training import mesh, pipeline

TINY = {
  "world.num_items": 100,
  "world.num_candidates": 8,
  "world.slate_size": 3,
  "world.history_size": 4,
  "world.num_train": 1024,
  "world.num_valid": 32,
  "world.num_test": 32,
  "tokenizer.levels": 3,
  "tokenizer.codes": 8,
  "tokenizer.iterations": 3,
  "evaluators.max_epochs": 1,
  "evaluators.batch_size": 64,
  "evaluators.dim": 8,
  "policy.dim": 8,
  "policy.layers": 1,
  "sft.steps": 20,
  "sft.batch_size": 16,
  "sft.warmup_steps": 2,
  "sft.eval_every": 10,
  "sft.checkpoint_every": 5,
  "rl.group": 4,
  "rl_train.steps": 20,
  "rl_train.batch_size": 16,
  "rl_train.warmup_steps": 2,
  "rl_train.eval_every": 10,
  "rl_train.checkpoint_every": 5,
}


KINDS = {
  "whole": TINY,
  # The two stages that learn a policy, in 64 bits.
  "parity": common.ORACLE | TINY | {"policy.dtype": "float64"},
  # Mining, in many shards.
  "mine": TINY
  | {
    "protocol": "oracle",  # Asks for no other evaluator.
    "stages": ("tokenizer", "lookahead", "mine"),
    "mine.requests": 1000,
    "mine.shards": 25,
    "mine.width": 4,
  },
}


def config(kind: str):
  """A run of `KINDS`."""
  return config_lib.freeze(common.build(KINDS[kind]).to_dict())


def main(argv: list[str]) -> None:
  """Runs the stages; "whole" also writes the report.

  Args:
    argv: ROOT KIND [PORT PROCESSES PROCESS].
  """
  root, kind, *cluster = argv
  if kind == "mine":  # Says what it has mined.
    logging.set_verbosity(logging.INFO)
  if cluster:
    port, processes, process = map(int, cluster)
    mesh.initialize_distributed(f"localhost:{port}", processes, process)
  jax.config.update("jax_enable_x64", kind == "parity")
  made = config(kind)
  if kind != "whole":
    pipeline.learn(pipeline.begin(made, pathlib.Path(root)))
    return
  pipeline.run(
    dataclasses.replace(made, name="glorank_rl"),
    pathlib.Path(root),
    pathlib.Path(root),
    "micro",
  )
