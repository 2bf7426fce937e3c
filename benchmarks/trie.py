"""Does a step over the catalogue cost more when it is larger?

python -m benchmarks.trie

Builds trees of random semantic IDs and walks down each with the same number
of prefixes and random logits: children, log-probabilities, a draw. With as
many child slots as codes every catalogue does the same arithmetic, and what
grows is the way to memory; with as many as its nodes have children (`fans`),
which beams use, a larger catalogue also has more tokens to choose among.
"""

from collections.abc import Sequence
import time

from absl import app, flags
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import common
from launch import errors
from rerank_rl.decoding import catalogue
from rerank_rl.models import next_item

_SIZES = flags.DEFINE_list(
  "sizes", ["10000", "100000", "1000000", "10000000"], "Sizes of catalogues."
)
CODES, LEVELS, PREFIXES = 256, 3, 1600  # 32 requests x 50 beams.


def sids(items: int) -> np.ndarray:
  """Distinct random semantic IDs i32[items, LEVELS]."""
  random = np.random.default_rng(items)
  number = random.choice(CODES**LEVELS, items, replace=False)
  parts = np.unravel_index(number, (CODES,) * LEVELS)
  return np.stack(parts, axis=1).astype(np.int32)


def walk(tree: catalogue.Tree, logits, key, widths: Sequence[int]):
  """Items i32[X] drawn token by token, logits f32[L, X, V]; jit it."""
  node = jnp.full(logits.shape[1], catalogue.ROOT, jnp.int32)
  for level, width in enumerate(widths):
    child = catalogue.children(tree, node, width)
    code = catalogue.token_of(tree, child)
    logp = catalogue.log_probs(next_item.at_codes(logits[level], code), child)
    drawn = jax.random.categorical(jax.random.fold_in(key, level), logp)
    node = jnp.take_along_axis(child, drawn[:, None], axis=1)[:, 0]
  return catalogue.item_at(tree, node)


def run(items: Sequence[int], pairs: int) -> list[tuple[float, float]]:
  """Times all sizes in turn and prints a table.

  Args:
    items: sizes; the first is what the others are compared with.
    pairs: timed rounds.

  Returns:
    A step's time over the first size's, with slots for all codes and with
    slots for the most children, a pair a size.
  """
  logits = jax.random.normal(jax.random.key(0), (LEVELS, PREFIXES, CODES))
  key = jax.random.key(1)
  step = jax.jit(walk, static_argnums=3)
  rows, calls = [], []
  for size in items:
    table = sids(size)
    start = time.process_time()  # One thread: a busy machine does not count.
    tree = jax.block_until_ready(catalogue.build(table))
    rows.append([f"{size:,}", f"{time.process_time() - start:.2f}", tree.fans])
    if not (np.asarray(step(tree, logits, key, tree.fans)) >= 0).all():
      raise ValueError(f"a walk over {size} items ended at no item.")
    for widths in ((CODES,) * LEVELS, tree.fans):
      calls.append(lambda t=tree, w=widths: step(t, logits, key, w))
  times = common.paired(*calls, pairs=pairs)
  out = []
  for i, row in enumerate(rows):
    ratios = [common.ratio(times[:, 2 * i + j], times[:, j]) for j in range(2)]
    out.append((ratios[0], ratios[1]))
    row += [f"{x:.2f}" for x in ratios]
  columns = [
    "items",
    "build, CPU s",
    "fans",
    "step, slots V",
    "step, slots fans",
  ]
  common.show(f"{PREFIXES} prefixes, V = {CODES}, L = {LEVELS}", columns, rows)
  return out


def main() -> None:
  """Prints the table."""
  items = [int(size) for size in _SIZES.value]
  common.main(lambda setting, pairs: run(items, pairs))


if __name__ == "__main__":
  errors.run(app, main)
