"""Is evaluator A worth searching? python -m benchmarks.evaluator --workdir=RUN.

RUN is a finished run of the world. The truth judges what A ranks: candidates
sorted by what A says of each alone on top, list-greedy, and beam search.
"""

from absl import app
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import common, runs
from launch import errors
from rerank_rl.evaluation import bootstrap
from rerank_rl.models import ensemble
from rerank_rl.rl import agents
from rerank_rl.training import systems
from rerank_rl.training.setting import Setting, by_chunks, valuer
from rerank_rl.types import PAD, Array, Impression, Request

_CHUNK = 128


def sorted_by_a(setting: Setting, impressions: Impression) -> np.ndarray:
  """Candidates by what A says of each alone on top, i32[n, K]."""
  model, fitted = setting.judges["a"]
  features, weights = setting.catalogue.features, jnp.asarray(setting.weights)

  @jax.jit
  def rank(fitted, request: Request) -> Array:
    score = ensemble.next_values(model, fitted, features, request, weights)
    B = request.candidates.shape[0]
    first = score(jnp.full((B, 1, model.slots), PAD, jnp.int32), 0)[:, 0]
    return agents.top(request, first, model.slots)

  return by_chunks(lambda r: rank(fitted, r), _CHUNK, impressions.request)


def main() -> None:
  """Prints the table."""
  setting = runs.learnt("tokenizer", "evaluators")
  part = runs.requests(setting)
  truth = valuer(setting.reward("world"))
  bounds = systems.bounds_of(setting.world, setting.config.seed, part)
  best = truth(part, bounds["optimum"])
  base = truth(part, sorted_by_a(setting, part))
  found = {
    "sorted by A": base,
    "list-greedy on A": truth(part, systems.beam_on_a(setting, part, 1)),
    "beam 8 on A": truth(part, systems.beam_on_a(setting, part, 8)),
  }
  rows = []
  for name, worth in found.items():
    d = bootstrap.paired_difference(worth[None], base[None], best[None])
    rows.append((name, f"{worth.sum() / best.sum():.4f}", d.signed()))
  columns = ("list", "share of optimum", "minus sorted by A")
  common.show(
    f"{len(base)} requests of seed {setting.config.seed}", columns, rows
  )


if __name__ == "__main__":
  errors.run(app, main)
