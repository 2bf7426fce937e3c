"""Path blocks against their oracle: a dense ancestor mask over the tree."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import dense
from rerank_rl.decoding import beam, sample, tree
from rerank_rl.rl import credit, learner, objectives
from rerank_rl.types import Outcome
from tests import toys


def _chains(policy, params, game):
  return sample.chains(policy, params, game, jax.random.key(0), 8)


EXPLORERS = {
  "chains": _chains,
  "merged": lambda *args: tree.merge(_chains(*args)),
  "beam": lambda *args: beam.beam(*args, width=6),
}


@pytest.mark.parametrize("head", toys.HEADS)
@pytest.mark.parametrize("explorer", EXPLORERS)
def test_log_probs_and_gradients_equal_the_dense_oracle(head, explorer):
  policy, params = toys.policy(head)
  game = sample.prepare(policy, params, toys.catalogue(), toys.request())
  made = EXPLORERS[explorer](policy, params, game)
  every = np.arange(made.token.shape[1])
  oracle = dense.policy(policy, made, dense.ancestors(made), every)
  reward = jnp.sin(made.slate @ jnp.array([5.0, 3.0, 1.0]))
  given = credit.group(made, Outcome(reward, reward[..., None], 0 * reward))

  def loss(params, scored):
    game = sample.prepare(policy, params, toys.catalogue(), toys.request())
    scores = learner.score_slates(scored, params, game, made.slate)
    out = objectives.clipped(made, scores, given, 0.2)
    return out.total / out.denominator, scores.logp

  # Away from the sampling policy, so that clipping acts.
  moved = jax.tree.map(lambda x: x * 1.05, params)
  with jax.default_matmul_precision("highest"):
    one, two = (
      jax.jit(jax.value_and_grad(lambda p, s=s: loss(p, s), has_aux=True))(
        moved
      )
      for s in (policy, oracle)
    )
  (_, logp), gradient = one
  assert np.ptp(logp) > 1
  assert max(jnp.abs(g).max() for g in jax.tree.leaves(gradient)) > 0.01
  for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5)


def test_oracle_sees_ancestors_only():
  policy, params = toys.policy("global")
  game = sample.prepare(policy, params, toys.catalogue(), toys.request())
  merged = tree.merge(_chains(policy, params, game))
  mask = np.asarray(dense.ancestors(merged))
  assert (merged.path[:, :, 0, None] == merged.path[:, None, :, 0]).sum() > 32
  for b, path in enumerate(np.asarray(merged.path)):
    for edges in path:
      edges = edges[edges >= 0]
      for t, edge in enumerate(edges):
        assert sorted(np.flatnonzero(mask[b, edge])) == sorted(edges[: t + 1])
