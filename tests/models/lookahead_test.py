"""The lookahead evaluator: a law of counts, and the world's own."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rerank_rl.config import WorldConfig
from rerank_rl.models import ensemble, lookahead, pointwise
from rerank_rl.types import PAD
from rerank_rl.world import click_law, utility
from rerank_rl.world import world as worlds
from tests.models import evaluator_test as toy


def _model(**changes):
  numbers = dict(slots=toy.SLOTS, signals=toy.SIGNALS, dim=16, rank=4, heads=4)
  return lookahead.LookaheadEvaluator(**(numbers | changes))


def _fitted(model, seed=0, spread=3.0):
  """Random parameters, sharp enough for chances near 0 and 1."""
  fitted = toy._fitted(model, members=2, seed=seed)
  params = jax.tree.map(lambda x: spread * x, fitted.params)
  ones = jnp.ones(toy.SIGNALS)
  return ensemble.Fitted(params, ones, 0 * ones)


def _counts(model, fitted, slate):
  return np.asarray(
    lookahead.counts(model, fitted, toy._features(), toy._request(), slate)
  )


@pytest.mark.parametrize("seed", range(3))
def test_counts_are_monotone_in_k_and_in_t(seed):
  p = _counts(_model(), _fitted(_model(), seed), toy._slates())
  assert p.shape == (*toy._slates().shape, toy.SIGNALS, toy.SLOTS)
  assert p.min() >= 0 and p.max() <= 1 + 1e-6
  assert (np.diff(p, axis=-1) <= 1e-6).all()  # k + 1 is rarer than k.
  assert (np.diff(p, axis=2) >= -1e-6).all()  # Prefixes only gain.
  # Not for being constant: 1 and K apart, first and last prefix apart.
  assert (p[..., 0] - p[..., -1]).max() > 0.3
  assert (p[:, :, -1] - p[:, :, 0]).max() > 0.3


def test_a_prefix_cannot_have_more_feedback_than_items():
  p = _counts(_model(), _fitted(_model()), toy._slates())
  for t in range(toy.SLOTS):
    assert (p[:, :, t, :, t + 1 :] == 0).all()
  ended = toy._slates()[3, 1] == PAD  # Padding adds nothing.
  np.testing.assert_array_equal(p[3, 1, ended], p[3, 1, [1, 1]])


def _brute_force(p, stay):
  """P(V_t >= k) f64[T, K] by all clicks and all places to stop reading."""
  K = len(p)
  out = np.zeros((K, K))
  for last in range(1, K + 1):  # The reader sees `last` positions.
    chance = np.prod(stay[: last - 1]) * (1 - stay[last - 1] * (last < K))
    for clicks in itertools.product((0, 1), repeat=last):
      own = np.prod([q if c else 1 - q for c, q in zip(clicks, p)])
      count = np.cumsum(np.pad(clicks, (0, K - last)))
      out += chance * own * (count[:, None] >= np.arange(1, K + 1))
  return out


def test_with_the_worlds_truth_the_recursion_is_the_worlds_law():
  config = WorldConfig(num_items=80, num_train=1, num_valid=1, num_test=1)
  world = worlds.build(config, 0)
  log = worlds.impressions(world, jax.random.key(1), 6)
  K = config.slate_size
  items = np.take_along_axis(log.request.candidates, log.slate, 1)
  truth = jax.vmap(lambda u, i: utility.truth_of(world, u, i))(
    jnp.asarray(log.hidden), jnp.asarray(items)
  )
  p = click_law.conditional_clicks(world.law, truth.rel, truth.alike)
  stay = click_law.stay(world.law, p)
  chance = jnp.broadcast_to(p[..., None, None], (*p.shape, 1, K))
  hit = jax.jit(lookahead.descend)(chance, stay).hit
  found = np.asarray(lookahead.tails(hit))[:, :, 0]
  for row in range(len(p)):
    wanted = _brute_force(np.float64(p[row]), np.float64(stay[row]))
    np.testing.assert_allclose(found[row], wanted, atol=1e-5)
  worth = utility.utility(world, log.hidden, log.request.candidates, log.slate)
  np.testing.assert_allclose(found[:, -1].sum(-1), worth, atol=1e-5)


def test_any_law_of_counts_is_within_reach():
  # Pi_t(k) by the plain recursion of c_{t,k}, for chances that hang on k.
  chance = np.random.default_rng(0).random((5, 1, 5))
  hit, count, left = lookahead.descend(jnp.asarray(chance), jnp.ones(5))
  pi = np.eye(6)[0]
  for t in range(5):
    np.testing.assert_allclose(count[t, 0], pi[:5], atol=1e-6)
    c = np.append(chance[t, 0], 0)
    pi = pi * (1 - c) + np.append(0, (pi * c)[:-1])
    tail = np.cumsum(pi[::-1])[::-1][1:]
    np.testing.assert_allclose(lookahead.tails(hit)[t, 0], tail, atol=1e-6)
  np.testing.assert_allclose(left[0], pi[:5], atol=1e-6)


def test_next_form_equals_slate_form_and_sums_to_the_expected_count():
  model = _model()
  fitted, slate = _fitted(model, spread=1.0), toy._slates()
  features, request = toy._features(), toy._request()
  whole = ensemble.predict(model, fitted, features, request, slate)
  values = ensemble.values(whole, slate, toy.WEIGHTS)
  p = _counts(model, fitted, slate)
  np.testing.assert_allclose(
    np.cumsum(values, -1), p.sum(-1) @ np.array(toy.WEIGHTS), atol=1e-4
  )
  score = ensemble.next_values(model, fitted, features, request, toy.WEIGHTS)
  score = jax.jit(score)
  for k in range(toy.SLOTS):
    # What stands at and behind position k must not matter.
    chosen = np.maximum(slate[:, :, k], 0)[..., None]
    found = np.take_along_axis(np.asarray(score(slate, k)), chosen, 2)[..., 0]
    shown = slate[:, :, k] >= 0
    np.testing.assert_allclose(
      found[shown], np.asarray(values)[:, :, k][shown], atol=1e-5
    )


def test_the_penalty_is_the_cross_entropy_of_the_counts_of_all_prefixes():
  model = _model(dropout=0.0)
  fitted, log = _fitted(model, spread=1.0), toy._impression()
  params = jax.tree.map(lambda x: x[:1], fitted.params)
  features, slate = toy._features(), log.slate[:, None]
  read = lambda p: model.apply(
    {"params": jax.tree.map(lambda x: x[0], p)},
    features,
    log.request,
    slate,
    False,
    method="_descent",
  )
  descent = jax.tree.map(lambda x: np.asarray(x)[:, 0], jax.jit(read)(params))
  total, count = 0.0, 0
  for row, t, s in np.ndindex(log.feedback.shape):
    if log.slate[row, t] != PAD:
      k = int(log.feedback[row, :t, s].sum())
      # Joint law of neighbours: count k before, and k or k + 1 after.
      own = descent.hit[row, t, s, k]
      own = (
        own if log.feedback[row, t, s] else descent.count[row, t, s, k] - own
      )
      total -= np.log(own / descent.count[row, t, s, k])
      count += 1
  got = jax.jit(ensemble.loss, static_argnums=0)(model, params, features, log)
  np.testing.assert_allclose(got, (total, count), rtol=1e-4)


def test_the_pointwise_control_sees_items_alone():
  model = pointwise.PointwiseEvaluator(
    slots=toy.SLOTS, signals=toy.SIGNALS, dim=16, rank=4, heads=4
  )
  fitted, request = _fitted(model, spread=1.0), toy._request()
  predict = lambda s: np.asarray(
    ensemble.predict(model, fitted, toy._features(), request, s)
  )
  slate = np.tile(np.arange(toy.SLOTS, dtype=np.int32), (toy.BATCH, 1, 1))
  turned = predict(slate[:, :, ::-1])[:, :, ::-1]
  np.testing.assert_allclose(predict(slate), turned, atol=1e-5)
  assert np.ptp(turned, axis=2).min() > 0.01  # Items differ.
