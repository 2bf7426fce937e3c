"""What the candidates' order does: python -m benchmarks.permutation.

Two figures a head, on random parameters: how many greedy slates change when
the candidates are permuted (GloRank: none with global tokens), and the
variance over permutations of the gradient of an output row (Prop. 2.1).
"""

import dataclasses

from absl import app
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import common
from launch import errors
from rerank_rl.decoding import sample
from rerank_rl.models.policy import make_policy
from rerank_rl.rl import learner
from rerank_rl.types import PAD

ROWS = {"global": "sid", "local_index": "index_out"}  # Output embeddings.
GAP = 1e-4  # Below it a greedy choice hangs on rounding.
ORDERS, SAMPLES, SHARPNESS = 8, 200, 1.3


def permuted(request, order):
  """The request with candidate `order[b, n]` at position n."""
  take = lambda x: jnp.take_along_axis(x, order, axis=1)
  return request.replace(
    candidates=take(request.candidates), scores=take(request.scores)
  )


def changed(policy, params, problem) -> tuple[int, int]:
  """(greedy slates that a permutation changed, slates whose gap counts)."""
  catalogue, request = problem.catalogue, problem.request

  @jax.jit
  def decode(params, request):
    game = sample.prepare(policy, params, catalogue, request)
    key = jax.random.key(0)  # Unused: greedy.
    slate = sample.chains(policy, params, game, key, 1, 0.0).slate
    dist = learner.score_slates(policy, params, game, slate)
    logits = jnp.where(dist.legal, dist.dist, -jnp.inf)
    top = jax.lax.top_k(logits, 2)[0]
    gap = jnp.where(jnp.isfinite(top[..., 1]), top[..., 0] - top[..., 1], 1)
    items = jnp.take_along_axis(request.candidates, slate[:, 0], axis=1)
    return items, gap.min((1, 2))

  items, gap = decode(params, request)
  clear = np.asarray(gap > GAP)
  random = np.random.default_rng(0)
  count = 0
  for _ in range(ORDERS):
    order = np.argsort(random.random(request.candidates.shape), axis=1)
    again, _ = decode(params, permuted(request, jnp.asarray(order)))
    count += ((np.asarray(again) != items).any(1) & clear).sum()
  return int(count), ORDERS * int(clear.sum())


def variance(policy, params, problem, table: str) -> tuple[float, float]:
  """Prop. 2.1 for the log-probability of one request's first item.

  Returns:
    (sum over rows of Var(g_j) over that of |E g_j|^2; the least of Var(g_j)
    over its bound q (1 - q) |mu_j|^2, q the share of orders that put the
    item at j, which tends to 1/N; NaN for rows that no order moves).
  """
  catalogue = problem.catalogue
  one = jax.tree.map(lambda x: x[:1], problem.request)
  N = one.candidates.shape[1]

  def first(rows, order):
    request = permuted(one, order[None])
    target = jnp.argmax(order == 0)  # Where the same item now stands.
    slate = jnp.full((1, 1, policy.slots), PAD).at[0, 0, 0].set(target)
    mine = {**params, table: rows}
    game = sample.prepare(policy, mine, catalogue, request)
    scores = learner.score_slates(policy, mine, game, slate.astype(jnp.int32))
    return scores.logp.sum()

  grad = jax.jit(jax.grad(first))
  random = np.random.default_rng(0)
  orders = [random.permutation(N) for _ in range(SAMPLES)]
  g = np.stack([grad(params[table], jnp.asarray(o)) for o in orders])
  g = g.reshape(SAMPLES, -1, g.shape[-1]).astype(np.float64)
  mean = g.mean(0)
  spread = ((g - mean) ** 2).sum(-1).mean(0)
  relative = spread.sum() / (mean**2).sum()
  if table != "index_out":
    return relative, np.nan
  at = np.array([np.flatnonzero(o == 0)[0] for o in orders])
  ratios = []
  for j in range(N):
    hit = at == j
    if not hit.any():
      continue
    share = hit.mean()
    mu = g[hit, j].mean(0) - g[~hit, j].mean(0)
    ratios.append(spread[j] / (share * (1 - share) * (mu**2).sum()))
  return relative, min(ratios)


def run(setting: common.Setting) -> dict:
  """Prints the table; head -> (`changed`, *`variance`)."""
  problem = common.problem(setting)
  found = {}
  for head, table in ROWS.items():
    config = dataclasses.replace(setting.policy, head=head)
    policy = make_policy(config, setting.data)
    params = jax.jit(policy.init)(
      jax.random.key(1), problem.catalogue, problem.request
    )
    params = jax.tree.map(lambda x: x * SHARPNESS, params)
    found[head] = (
      changed(policy, params, problem),
      *variance(policy, params, problem, table),
    )
  rows = [
    (
      head,
      f"{count} of {total}",
      f"{relative:.2g}",
      "" if np.isnan(bound) else f"{bound:.3f}",
    )
    for head, ((count, total), relative, bound) in found.items()
  ]
  columns = ("head", "slates changed", "Var / |mean|^2", "least Var / bound")
  common.show("Permuted candidates", columns, rows)
  return found


def main() -> None:
  """Prints the table."""
  run(common.Setting(requests=128))


if __name__ == "__main__":
  errors.run(app, main)
