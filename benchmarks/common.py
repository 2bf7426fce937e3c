"""What benchmarks share: the problem, paired timing, the machine's limit."""

from collections.abc import Callable, Sequence
import dataclasses
import statistics
import time
from typing import Any, NamedTuple

from absl import flags
import jax
import jax.numpy as jnp
import numpy as np
import rich
from rich import table as rich_table

from rerank_rl.config import PolicyConfig
from rerank_rl.models.policy import Policy, make_policy
from rerank_rl.models.prefix_lm import Sizes
from rerank_rl.types import Catalogue, Request

_LARGE = flags.DEFINE_bool("large", False, "Policy of d = 256, 4 layers.")
_PAIRS = flags.DEFINE_integer("pairs", 7, "Timed pairs; their median counts.")


@dataclasses.dataclass(frozen=True)
class Setting:
  """Sizes of a benchmark; the letters are those of `rerank_rl.types`."""

  dim: int = 64
  layers: int = 2
  heads: int = 2
  requests: int = 32
  group: int = 16
  items: int = 2000
  features: int = 8
  data: Sizes = Sizes(codes=256, levels=3, slots=6, history=20, candidates=50)

  @property
  def policy(self) -> PolicyConfig:
    """The network's widths."""
    return PolicyConfig(dim=self.dim, layers=self.layers, heads=self.heads)

  def __str__(self):
    d = self.data
    return (
      f"d = {self.dim}, {self.layers} layers, {self.heads} heads; "
      f"{self.requests} requests x {self.group} slates; V = {d.codes}, "
      f"L = {d.levels}, N = {d.candidates}, H = {d.history}, K = {d.slots}"
    )


class Problem(NamedTuple):
  """A policy with random parameters and requests for it."""

  policy: Policy
  params: Any
  catalogue: Catalogue
  request: Request


def main(run: Callable[[Setting, int], None]) -> None:
  """Runs a benchmark at the size that the flags ask for."""
  large = dict(dim=256, layers=4) if _LARGE.value else {}
  run(Setting(**large), pairs())


def pairs() -> int:
  """How many pairs the flags ask for."""
  return _PAIRS.value


def problem(setting: Setting, seed: int = 0) -> Problem:
  """Random items with distinct semantic IDs, full histories and candidates."""
  random = np.random.default_rng(seed)
  data, B, M = setting.data, setting.requests, setting.items
  number = random.choice(data.codes**data.levels, M, replace=False)
  sids = np.stack(np.unravel_index(number, (data.codes,) * data.levels), 1)
  features = random.normal(size=(M, setting.features))
  catalogue = Catalogue(
    jnp.asarray(features, jnp.float32), jnp.asarray(sids, jnp.int32)
  )
  draw = lambda n: jnp.asarray(
    np.stack([random.permutation(M)[:n] for _ in range(B)]), jnp.int32
  )
  request = Request(
    user=jnp.zeros((B, 0)),
    history=draw(data.history),
    candidates=draw(data.candidates),
    scores=jnp.asarray(random.normal(size=(B, data.candidates)), jnp.float32),
    size=jnp.full((B,), data.slots, jnp.int32),
  )
  policy = make_policy(setting.policy, data)
  params = jax.jit(policy.init)(jax.random.key(seed), catalogue, request)
  return Problem(policy, params, catalogue, request)


def seconds(function: Callable[[], Any]) -> float:
  """Wall clock of one call, its result waited for."""
  start = time.perf_counter()
  jax.block_until_ready(function())
  return time.perf_counter() - start


def paired(*functions: Callable[[], Any], pairs: int) -> np.ndarray:
  """Times functions in turn, so that a busy moment hits all of them.

  Args:
    *functions: what to time; each is called once before, unmeasured.
    pairs: rounds; every other one goes backwards.

  Returns:
    f64[pairs, functions], seconds.
  """
  for function in functions:
    seconds(function)
  out = np.zeros((pairs, len(functions)))
  for i in range(pairs):
    order = list(enumerate(functions))[:: 1 if i % 2 == 0 else -1]
    for j, function in order:
      out[i, j] = seconds(function)
  return out


def ratio(above: np.ndarray, below: np.ndarray) -> float:
  """Median over pairs of above / below."""
  return statistics.median(above / below)


def peak(sizes: Sequence[int] = (512, 1024, 2048), repeats: int = 5) -> float:
  """Best FLOP/s of f32 matrix products [n, n] @ [n, n], measured here."""
  best = 0.0
  for n in sizes:
    x = jax.random.normal(jax.random.key(n), (n, n), jnp.float32)
    product = jax.jit(lambda a: a @ a)
    times = paired(lambda p=product, a=x: p(a), pairs=repeats)
    best = max(best, 2 * n**3 / times.min())
  return best


def flops(function: Callable, *args: Any) -> float:
  """FLOPs of a call by XLA's cost analysis; a loop's body counts once."""
  return jax.jit(function).lower(*args).cost_analysis()["flops"]


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence]) -> None:
  """Prints a table; the first column is text."""
  table = rich_table.Table(title=title, title_justify="left")
  for i, column in enumerate(columns):
    table.add_column(column, justify="right" if i else "left")
  for row in rows:
    table.add_row(*(str(cell) for cell in row))
  rich.print(table)
