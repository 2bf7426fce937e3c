"""Rollouts: the probabilities are right, and samples follow them."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from rerank_rl.config import PolicyConfig
from rerank_rl.decoding import legality, sample, tree
from rerank_rl.models.policy import make_policy
from rerank_rl.rl import learner
from rerank_rl.types import PAD
from tests import toys

# Of one size, that tests share what is compiled.
BATCH, GROUP = 8, len(toys.every_slate())


def _policy(head):
  """A later layer's cache can be wrong where the first one's is right."""
  return toys.policy(head, layers=2)


def _request():
  return toys.request(batch=BATCH)


def _one():
  """The first request, which has all five candidates, and no other."""
  return jax.tree.map(lambda x: jnp.repeat(x[:1], BATCH, 0), _request())


def _scores(policy, params, slate):
  return toys.scores(policy, params, _request(), slate)


@functools.partial(jax.jit, static_argnums=(0, 4, 5))
def _draw(policy, params, game, key, temperature, rules):
  return sample.chains(policy, params, game, key, GROUP, temperature, rules)


def _chains(policy, params, key, temperature=1.0, request=None, rules=()):
  game = toys.game(policy, params, request or _request())
  return _draw(policy, params, game, key, temperature, rules)


def _log_probs(policy, params):
  """Of every slate f64[BATCH, GROUP]."""
  slates = np.broadcast_to(toys.every_slate(), (BATCH, GROUP, 3))
  logp = _scores(policy, params, slates).logp
  return np.asarray(logp, np.float64).sum(-1)


@pytest.mark.parametrize("head", toys.HEADS)
def test_all_slates_sum_to_one(head):
  total = np.exp(_log_probs(*_policy(head))).sum(1)
  # Every third request has all five candidates.
  np.testing.assert_allclose(total[::3], 1.0, atol=1e-5)


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
  policy, params = _policy(head)
  keys = map(jax.random.key, range(12))
  drawn = [_chains(policy, params, k, request=_one()).slate for k in keys]
  expected = np.exp(_log_probs(policy, params)[0])
  assert _chi_square(np.concatenate(drawn).reshape(-1, 3), expected) > 1e-3


def test_stratified_samples_follow_and_share_out_the_probabilities():
  policy, params = _policy("global")
  group = 16

  @jax.jit
  def draw(params, game, keys):
    many = lambda k: sample.stratified(policy, params, game, k, group).slate[0]
    return jax.lax.map(many, keys, batch_size=50)

  game = jax.tree.map(lambda x: x[:1], toys.game(policy, params, _request()))
  keys = jax.random.split(jax.random.key(0), 3000)
  slates = np.asarray(draw(params, game, keys))
  expected = np.exp(_log_probs(policy, params)[0])
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
  policy, params = _policy(head)
  out = _chains(policy, params, jax.random.key(1))
  scores = _scores(policy, params, out.slate)
  np.testing.assert_allclose(
    tree.on_path(out, out.logp_old), scores.logp, atol=1e-5
  )


def test_a_slate_may_be_a_single_token():
  """Nothing is ever fed, and no key is cached."""
  sizes = toys.SIZES._replace(slots=1)
  policy = make_policy(PolicyConfig(head="pointer", dim=16, layers=1), sizes)
  catalogue, request = toys.catalogue(), toys.request(sizes=sizes)

  @jax.jit
  def explore(key):
    params = policy.init(key, catalogue, request)
    game = sample.prepare(policy, params, catalogue, request)
    out = sample.chains(policy, params, game, key, 64)
    every = jnp.broadcast_to(jnp.arange(5)[:, None], (4, 5, 1))
    scores = learner.score_slates(policy, params, game, every)
    best = sample.greedy(policy, params, catalogue, request)
    return out, scores.logp[..., 0], best

  out, logp, best = explore(jax.random.key(0))
  # The third request has two candidates.
  for row, count in ((0, 5), (2, 2)):
    own = logp[row, :count]
    np.testing.assert_allclose(np.exp(own).sum(), 1, atol=1e-5)
    assert best[row, 0] == own.argmax()
    drawn = out.slate[row, :, 0]
    assert set(np.unique(drawn)) <= set(range(count))
    found = tree.on_path(out, out.logp_old)[row, :, 0]
    np.testing.assert_allclose(found, own[drawn], atol=1e-5)


@pytest.mark.parametrize("head", toys.HEADS)
@pytest.mark.parametrize("ruled", (False, True))
def test_slates_are_legal(head, ruled):
  policy, params = _policy(head)
  rules, cap = (), 3
  pins = jnp.full((BATCH, 3), PAD, jnp.int32).at[:, 1].set(0)
  if ruled:
    cap = 1
    groups = jnp.broadcast_to((jnp.arange(5) + 1) // 2, (BATCH, 5))
    limit = jnp.full((BATCH,), cap, jnp.int32)
    rules = (legality.pin(pins), legality.cap(groups, limit))
  sharp = toys.scaled(params, 3.0)
  out = _chains(policy, sharp, jax.random.key(2), rules=rules)
  slate = np.asarray(out.slate)
  count = np.asarray((_request().candidates >= 0).sum(1))
  for b in range(BATCH):
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
  policy, params = _policy("global")
  slate = toys.greedy(policy, params, _request())
  scores = _scores(policy, params, slate[:, None])
  best = jnp.where(scores.legal, scores.dist, -jnp.inf).max(-1)
  real = scores.legal.any(-1)
  np.testing.assert_allclose(
    jnp.where(real, scores.logp, 0), jnp.where(real, best, 0), atol=1e-5
  )


def test_temperature_changes_the_explorer_alone():
  policy, params = _policy("global")
  hot = _chains(policy, params, jax.random.key(0), temperature=2.0)
  scores = _scores(policy, params, hot.slate)
  np.testing.assert_allclose(
    tree.on_path(hot, hot.logp_old), scores.logp, atol=1e-5
  )
  assert not hot.iid
  assert not np.allclose(hot.log_q, hot.logp_old)


def test_permuting_candidates_cannot_change_the_global_head():
  policy, params = _policy("global")
  request = _request()
  items = lambda request: np.take_along_axis(
    np.asarray(request.candidates),
    np.asarray(toys.greedy(policy, params, request)),
    axis=1,
  )
  first = items(request)
  full = np.asarray(request.candidates >= 0).all(1)
  assert len(np.unique(first[full], axis=0)) == full.sum() > 1
  for seed in range(5):
    order = np.random.default_rng(seed).permutation(5)
    other = request.replace(
      candidates=request.candidates[:, order], scores=request.scores[:, order]
    )
    np.testing.assert_array_equal(items(other)[full], first[full])


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
