"""Rollouts: the probabilities are right, and samples follow them."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from rerank_rl.decoding import legality, sample, tree
from rerank_rl.types import PAD
from tests import toys


def _scores(policy, params, slate):
  return toys.scores(policy, params, toys.request(batch=len(slate)), slate)


def _chains(policy, params, key, group, temperature=1.0, batch=4, rules=()):
  @jax.jit
  def draw(params, request, key):
    game = sample.prepare(policy, params, toys.catalogue(), request)
    return sample.chains(policy, params, game, key, group, temperature, rules)

  return draw(params, toys.request(batch=batch), key)


def _greedy(policy, params):
  return jax.jit(lambda r: sample.greedy(policy, params, toys.catalogue(), r))


@pytest.mark.parametrize("head", toys.HEADS)
def test_all_slates_sum_to_one(head):
  policy, params = toys.policy(head)
  slates = np.broadcast_to(toys.every_slate(), (4, 60, 3))
  logp = _scores(policy, params, slates).logp.sum(-1)
  # The first and last requests have all five candidates.
  total = np.exp(np.asarray(logp, np.float64)).sum(1)[np.array([0, 3])]
  np.testing.assert_allclose(total, 1.0, atol=1e-5)


def _probabilities(policy, params, batch=4):
  """Of each slate of the first of `batch` requests, f64[60]."""
  slates = np.broadcast_to(toys.every_slate(), (batch, 60, 3))
  logp = _scores(policy, params, slates).logp
  return np.exp(np.asarray(logp, np.float64).sum(-1))[0]


def _chi_square(drawn, expected):
  """p of slates i32[n, 3] under probabilities f64[60]."""
  code = lambda s: s @ np.array([25, 5, 1])
  counts = np.array(
    [(code(drawn) == c).sum() for c in code(toys.every_slate())]
  )
  assert counts.sum() == len(drawn)
  keep = expected * len(drawn) >= 5
  observed = np.append(counts[keep], counts[~keep].sum())
  wanted = np.append(expected[keep], expected[~keep].sum()) * len(drawn)
  return stats.chisquare(observed, wanted * observed.sum() / wanted.sum())[1]


@pytest.mark.parametrize("head", toys.HEADS)
def test_samples_follow_the_probabilities(head):
  policy, params = toys.policy(head, sharpness=1.3)

  @jax.jit
  def draw(key):
    game = sample.prepare(policy, params, toys.catalogue(), toys.request())
    return sample.chains(policy, params, game, key, 2000).slate[0]

  drawn = np.concatenate([draw(jax.random.key(i)) for i in range(3)])
  assert _chi_square(drawn, _probabilities(policy, params)) > 1e-3


def test_stratified_samples_follow_and_share_out_the_probabilities():
  policy, params = toys.policy("global", sharpness=1.3)
  group = 16

  @jax.jit
  def draw(keys):
    request = toys.request(batch=1)
    game = sample.prepare(policy, params, toys.catalogue(), request)
    many = lambda k: sample.stratified(policy, params, game, k, group).slate[0]
    return jax.lax.map(many, keys, batch_size=50)

  slates = np.asarray(draw(jax.random.split(jax.random.key(0), 3000)))
  expected = _probabilities(policy, params, batch=1)
  # Any one leaf is a sample of the policy.
  for leaf in (0, 7):
    assert _chi_square(slates[:, leaf], expected) > 1e-3
  # A first item, and two, have their share of the leaves to less than one.
  every = toys.every_slate()
  for depth in (1, 2):
    for start in np.unique(every[:, :depth], axis=0):
      share = expected[(every[:, :depth] == start).all(-1)].sum() * group
      count = (slates[..., :depth] == start).all(-1).sum(1)
      assert (np.abs(count - share) < 1.01).mean() > 0.98
  # By chance some would often be further off.
  shares = np.array([expected[every[:, 0] == i].sum() for i in range(5)])
  doubtful = shares[np.abs(shares - 0.5).argmin()]
  chance = np.random.default_rng(0).binomial(group, doubtful, 3000)
  assert (np.abs(chance - group * doubtful) > 1.01).mean() > 0.2


@pytest.mark.parametrize("head", toys.HEADS)
def test_rollout_and_learner_agree(head):
  policy, params = toys.policy(head)
  with jax.default_matmul_precision("highest"):
    out = _chains(policy, params, jax.random.key(1), 16)
    scores = _scores(policy, params, out.slate)
  np.testing.assert_allclose(
    tree.on_path(out, out.logp_old), scores.logp, atol=1e-5
  )


@pytest.mark.parametrize("head", toys.HEADS)
@pytest.mark.parametrize("ruled", (False, True))
def test_slates_are_legal(head, ruled):
  policy, params = toys.policy(head, sharpness=4.0)
  request = toys.request(batch=64)
  rules, cap = (), 3
  pins = jnp.full((64, 3), PAD, jnp.int32).at[:, 1].set(0)
  if ruled:
    cap = 1
    groups = jnp.broadcast_to((jnp.arange(5) + 1) // 2, (64, 5))
    limit = jnp.full((64,), cap, jnp.int32)
    rules = (legality.pin(pins), legality.cap(groups, limit))
  out = _chains(policy, params, jax.random.key(2), 50, batch=64, rules=rules)
  slate = np.asarray(out.slate)
  count = np.asarray((request.candidates >= 0).sum(1))
  for b in range(64):
    for row in slate[b]:
      shown = row[row >= 0]
      assert len(set(shown)) == len(shown)
      assert (shown < count[b]).all()
      if ruled:
        assert row[1] == 0
        # The pinned item is shown at its own slot, whatever came above.
        assert np.bincount((shown + 1) // 2, minlength=1).max() <= cap
      else:
        assert len(shown) == min(3, count[b])


def test_greedy_is_the_most_likely_token_each_time():
  policy, params = toys.policy("global")
  slate = _greedy(policy, params)(toys.request())
  scores = _scores(policy, params, slate[:, None])
  best = jnp.where(scores.legal, scores.dist, -jnp.inf).max(-1)
  real = scores.legal.any(-1)
  np.testing.assert_allclose(
    jnp.where(real, scores.logp, 0), jnp.where(real, best, 0), atol=1e-5
  )


def test_temperature_changes_the_explorer_alone():
  policy, params = toys.policy("global", sharpness=1.3)
  hot = _chains(policy, params, jax.random.key(0), 8, 2.0)
  scores = _scores(policy, params, hot.slate)
  np.testing.assert_allclose(
    tree.on_path(hot, hot.logp_old), scores.logp, atol=1e-5
  )
  assert not hot.iid
  assert not np.allclose(hot.log_q, hot.logp_old)


def test_permuting_candidates_cannot_change_the_global_head():
  policy, params = toys.policy("global")
  request = toys.request()
  request = request.replace(
    candidates=request.candidates[jnp.array([0, 3])],
    scores=request.scores[jnp.array([0, 3])],
    history=request.history[jnp.array([0, 3])],
    user=request.user[:2],
    size=request.size[:2],
  )
  greedy = _greedy(policy, params)
  slate = greedy(request)
  items = jnp.take_along_axis(request.candidates, slate, axis=1)
  for seed in range(5):
    order = np.random.default_rng(seed).permutation(5)
    other = request.replace(
      candidates=request.candidates[:, order], scores=request.scores[:, order]
    )
    again = greedy(other)
    np.testing.assert_array_equal(
      items, jnp.take_along_axis(other.candidates, again, axis=1)
    )


def test_one_compile_a_shape():
  policy, params = toys.policy("global")

  @jax.jit
  @chex.assert_max_traces(n=1)
  def draw(params, request, key):
    game = sample.prepare(policy, params, toys.catalogue(), request)
    return sample.chains(policy, params, game, key, 2).slate

  chex.clear_trace_counter()
  for seed in range(3):
    draw(params, toys.request(seed), jax.random.key(seed))
