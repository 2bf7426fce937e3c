"""Path blocks against their oracle: a dense ancestor mask over the tree."""

import jax
import numpy as np
import pytest

from benchmarks import dense
from rerank_rl.decoding import beam, sample, tree
from rerank_rl.rl import credit, learner, objectives
from rerank_rl.types import PAD
from tests import toys


def _merged(policy, params, game):
  made = sample.chains(policy, params, game, jax.random.key(0), 8)
  return tree.merge(made)


EXPLORERS = {
  "merged": _merged,
  "beam": lambda *args: beam.beam(*args, width=6),
}


def _explore(explorer, policy, params):
  explore = jax.jit(EXPLORERS[explorer], static_argnums=0)
  return explore(policy, params, toys.game(policy, params))


@pytest.mark.parametrize(
  "explorer, head",
  [
    ("merged", "global"),
    ("beam", "global"),
    ("beam", "pointer"),
  ],
)
def test_log_probs_and_gradients_equal_the_dense_oracle(explorer, head):
  with jax.enable_x64(True):
    policy, params = toys.wide_policy(head, layers=2)
    made = _explore(explorer, policy, params)
    every = np.arange(made.token.shape[1])
    oracle = dense.policy(policy, made, dense.ancestors(made), every)
    given = credit.group(made, toys.outcome(made))

    def loss(params, scored):
      scores = learner.score_slates(
        scored, params, toys.game(policy, params), made.slate
      )
      out = objectives.clipped(made, scores, given, 0.2)
      return out.total / out.denominator, scores.logp

    @jax.jit
    def both(params):
      grad = jax.value_and_grad(loss, has_aux=True)
      return grad(params, policy), grad(params, oracle)

    # Away from the sampling policy, so that clipping acts.
    one, two = both(toys.scaled(params, 1.05))
  (_, logp), gradient = one
  assert logp.dtype == np.float64
  assert np.ptp(logp) > 1
  assert max(np.abs(g).max() for g in jax.tree.leaves(gradient)) > 0.01
  for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-9)


def test_oracle_sees_ancestors_only():
  policy, params = toys.policy("global")
  merged = _explore("merged", policy, params)
  path = np.asarray(merged.path)
  mask = np.asarray(jax.jit(dense.ancestors)(merged))
  # Chains do share edges, or nothing is tested.
  assert (path[:, :1, 0] == path[:, 1:, 0]).any()
  for b, t in np.ndindex(path.shape[0], path.shape[2]):
    for edges in path[b]:
      above = set(edges[: t + 1]) - {PAD}
      if edges[t] != PAD:
        assert set(np.flatnonzero(mask[b, edges[t]])) == above
