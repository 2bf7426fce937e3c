"""Diversity: python -m benchmarks.diversity --workdirs=RUN,RUN,...

Finished runs of one world, the first of which the others are held against.
Each run's policy and the SFT policy write 256 slates a request; good is a
slate whose true utility is at least .95 of the optimum's, and slates differ
where any slot does.
"""

import pathlib
from typing import Any

from absl import app, flags
import jax
import numpy as np

from benchmarks import common, runs
from launch import errors
from rerank_rl.decoding import sample
from rerank_rl.evaluation import bootstrap
from rerank_rl.training.setting import Setting, by_chunks, local
from rerank_rl.types import Impression

_WORKDIRS = flags.DEFINE_list("workdirs", [], "Finished runs of one world.")

SAMPLES = 256  # Slates a request.
TRIES = 64  # Of pass@64.
_CHUNK = 8


def good_samples(
  setting: Setting, params: Any, impressions: Impression
) -> tuple[np.ndarray, np.ndarray]:
  """(slates i32[n, 256, K], whether each is good bool[n, 256])."""
  policy = setting.policy

  @jax.jit
  def draw(params, catalogue, reward, batch, key):
    game = sample.prepare(policy, params, catalogue, batch.request)
    slate = sample.chains(policy, params, game, key, SAMPLES).slate
    return slate, reward(batch, slate).reward > 0

  params, reward = local(params), setting.reward("good")
  key = setting.key("diversity")
  return by_chunks(
    lambda x: draw(params, setting.catalogue, reward, x, key),
    _CHUNK,
    impressions,
  )


def distinct(slates: np.ndarray, good: np.ndarray) -> np.ndarray:
  """How many different good slates each request has, f64[n]."""
  return np.array(
    [len(np.unique(s[g], axis=0)) for s, g in zip(slates, good)], np.float64
  )


def pass_at(good: np.ndarray, tries: int) -> np.ndarray:
  """Probability that some of `tries` of the samples drawn is good, f64[n].

  1 - C(S - c, tries) / C(S, tries), with c good ones among S.

  Args:
    good: bool[n, S].
    tries: <= S, drawn without replacement.
  """
  n, S = good.shape
  bad = S - good.sum(1)
  place = np.arange(tries)
  left = np.maximum(bad[:, None] - place[None], 0) / (S - place)[None]
  return 1 - left.prod(1)


def main() -> None:
  """Prints the table."""
  settings = runs.several(_WORKDIRS.value)
  first = next(iter(settings.values()))
  part = runs.requests(first)
  todo = {
    name: (setting, setting.params[setting.config.name])
    for name, setting in settings.items()
  }
  sft = first.config.sft_name
  if sft in first.params:
    todo[sft] = first, first.params[sft]
  rows, base = [], None
  for name, (setting, params) in todo.items():
    slates, good = good_samples(setting, params, part)
    found, passed = distinct(slates, good), pass_at(good, TRIES)
    base = base or (found, passed)
    cells = [
      f"{good.mean():.4f}",
      f"{found.mean():.2f}",
      f"{passed.mean():.4f}",
    ]
    times = bootstrap.over_requests(found[:, None], base[0][:, None])[0]
    gap = bootstrap.paired_difference(passed[None], base[1][None])
    ratio = "{:.2f} [{:.2f}, {:.2f}]".format(*times)
    rows.append((pathlib.Path(name).name, *cells, ratio, gap.signed()))
  columns = (
    "run",
    "good samples",
    f"distinct good of {SAMPLES}",
    f"pass@{TRIES}",
    "distinct, times the first's",
    f"pass@{TRIES} minus the first's",
  )
  title = f"{len(base[0])} requests of seed {first.config.seed}"
  common.show(title, columns, rows)


if __name__ == "__main__":
  errors.run(app, main)
