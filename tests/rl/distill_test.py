"""Soft labels and what is distilled from them, against brute force."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rerank_rl.decoding import legality
from rerank_rl.rl import learner, objectives
from rerank_rl.types import PAD
from tests import toys

B, N, K, L = 4, 5, 3, 3


def _trie():
  request = toys.request()
  sids = toys.catalogue().sids[jnp.maximum(request.candidates, 0)]
  return legality.build(sids, request.candidates >= 0, request.size)


def _worth(seed, slates):
  shape = (B, slates, K, N)
  worth = np.random.default_rng(seed).normal(size=shape) * 2
  return jnp.asarray(worth, jnp.float32)


def _softmax(worth, legal):
  q = np.where(legal, np.exp(np.float64(worth)), 0)
  return q / max(q.sum(), 1e-30)


def _slates():
  """Two slates a request, short where candidates are few."""
  slate = np.array([[0, 3, 1], [2, 1, 4]], np.int32)
  slate = np.tile(slate[None], (B, 1, 1))
  slate[1, 1] = [2, 1, 3]
  slate[2] = [[1, 0, PAD], [0, PAD, PAD]]
  return slate


def test_token_labels_are_the_items_labels_summed_under_prefixes():
  trie, worth, slate = _trie(), _worth(0, 2), _slates()
  out = jax.jit(learner.soft_labels)(trie, slate, worth)
  codes = np.take_along_axis(
    np.asarray(trie.codes), np.asarray(trie.rank)[..., None], 1
  )  # By position.
  request, shared = toys.request(), 0
  for b, g, k in np.ndindex(B, 2, K):
    if slate[b, g, k] == PAD:
      assert not out.legal[b, g, k * L : k * L + L].any()
      continue
    legal = np.asarray(request.candidates[b]) >= 0
    legal[slate[b, g, :k]] = False
    q = _softmax(worth[b, g, k], legal)
    for level in range(L):
      same = (codes[b, :, :level] == codes[b, slate[b, g, k], :level]).all(-1)
      wanted: dict[int, float] = {}
      for item in np.flatnonzero(legal & same):
        code = int(codes[b, item, level])
        wanted[code] = wanted.get(code, 0) + q[item] / q[legal & same].sum()
      t = k * L + level
      ranks = np.flatnonzero(out.legal[b, g, t])
      found = {
        int(trie.codes[b, r, level]): float(np.exp(out.dist[b, g, t, r]))
        for r in ranks
      }
      assert len(found) == len(ranks) and found.keys() == wanted.keys()
      for code, p in wanted.items():
        np.testing.assert_allclose(found[code], p, atol=1e-5)
      own = wanted[int(codes[b, slate[b, g, k], level])]
      np.testing.assert_allclose(np.exp(out.logp[b, g, t]), own, atol=1e-5)
      shared += len(wanted) < (legal & same).sum()
  assert shared > 10  # Prefixes were really shared.


def test_token_divergences_add_up_to_the_items():
  # KL over items = sum over y of q(y) x the KLs of the tokens that lead to y.
  trie = _trie()
  slate = np.full((B, N, K), PAD, np.int32)
  slate[:, :, 0] = np.arange(N)
  slate = np.where(np.asarray(trie.rank)[:, :, None] >= 0, slate, PAD)
  real = np.asarray(toys.request().candidates) >= 0
  slate = np.where(real[..., None], slate, PAD)
  q_worth, p_worth = (
    jnp.broadcast_to(_worth(seed, 1), (B, N, K, N)) for seed in (1, 2)
  )
  labels, policy = (
    jax.jit(learner.soft_labels)(trie, slate, w) for w in (q_worth, p_worth)
  )
  far = np.asarray(objectives.kl(labels, policy)).sum(-1)
  for b in range(B):
    q, p = (_softmax(w[b, 0, 0], real[b]) for w in (q_worth, p_worth))
    wanted = np.sum(q[real[b]] * np.log(q[real[b]] / p[real[b]]))
    assert wanted > 0.1
    np.testing.assert_allclose((q * far[b]).sum(), wanted, rtol=1e-4)


@functools.cache
def _scored():
  """(the policy's scores, soft labels) along `_slates`."""
  policy, params = toys.policy("global")
  scores = toys.scores(policy, params, toys.request(), _slates())
  label = jax.jit(learner.soft_labels)
  return scores, label(_trie(), _slates(), _worth(3, 2))


@pytest.mark.parametrize("hard, soft", [(1.0, 0.0), (0.0, 1.0), (0.7, 0.3)])
def test_distill_weighs_lists_items_and_labels(hard, soft):
  scores, labels = _scored()
  weight = np.random.default_rng(4).random((B, 2)).astype(np.float32)
  out = objectives.distill(scores, labels, weight, hard, soft)
  total = count = 0.0
  for b, g, t in np.ndindex(B, 2, K * L):
    legal = np.asarray(scores.legal[b, g, t])
    if not legal.any():
      continue
    log_p = np.float64(scores.dist[b, g, t][legal])
    log_q = np.float64(labels.dist[b, g, t][legal])
    far = np.sum(np.exp(log_q) * (log_q - log_p))
    own = hard * -float(scores.logp[b, g, t]) + soft * far
    total += weight[b, g] * own
    count += weight[b, g]
  np.testing.assert_allclose(out, (total, count), rtol=1e-4)
  nothing = objectives.distill(labels, labels, weight, 0.0, 1.0)
  np.testing.assert_allclose(nothing.total, 0, atol=1e-5)


def test_preference_is_the_logistic_loss_of_implied_rewards():
  logp = jnp.array([[-1.0, -3.0, -2.0], [-2.0, -2.0, -0.5]])
  old = jnp.array([[-1.5, -2.0, -2.0], [-1.0, -2.5, -1.0]])
  weight = jnp.array([[0.75, 0.25], [1.0, 0.0]])
  out = objectives.preference(logp, old, weight, 2.0)
  sigmoid = lambda x: 1 / (1 + np.exp(-x))
  wanted = -(
    0.75 * np.log(sigmoid(2 * (0.5 - 0.0)))
    + 0.25 * np.log(sigmoid(2 * (-1.0 - 0.0)))
    + np.log(sigmoid(2 * (-1.0 - 0.5)))
  )
  np.testing.assert_allclose(out, (wanted, 2.0), rtol=1e-5)
