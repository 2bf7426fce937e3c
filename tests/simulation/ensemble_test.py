"""Users who vote: opinions, rates and bars against their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from rerank_rl.simulation import ensemble, learnt
from rerank_rl.types import PAD
from tests.simulation import learnt_test as responding

ITEMS, K, N = responding.ITEMS, responding.K, responding.N
ROWS = 600
_on_log = jax.jit(lambda users, log: learnt.on_log(users.opinions, users, log))
_meet = jax.jit(lambda users, row: learnt.learnt(users).meet(row))
_opinions = jax.jit(lambda users, met, shown: users.opinions(met, shown))
_chances = jax.jit(lambda users, met, shown: users.chances(met, shown))


def _log():
  """Rows whose items are drawn, clicked the more the lower their number."""
  random = np.random.default_rng(3)
  start = jax.device_get(responding._start())
  log = jax.tree.map(lambda x: np.repeat(x[:1], ROWS, 0), start)
  candidates = np.stack([random.permutation(ITEMS)[:N] for _ in range(ROWS)])
  history = random.integers(0, ITEMS, (ROWS, responding.H))
  slate = np.stack([random.permutation(N)[:K] for _ in range(ROWS)])
  shown = np.take_along_axis(candidates, slate, 1)
  click = random.random(shown.shape) < 0.9 - 0.8 * shown / ITEMS
  slate[::7, -1] = PAD
  click &= slate != PAD
  feedback = np.stack([click, click & (shown % 2 == 0)], -1)
  request = log.request.replace(
    candidates=jnp.asarray(candidates, jnp.int32),
    history=jnp.asarray(history, jnp.int32),
  )
  return log.replace(
    request=request,
    slate=jnp.asarray(slate, jnp.int32),
    feedback=jnp.asarray(feedback, jnp.float32),
  )


@pytest.fixture(scope="module")
def fitted():
  """(users, the log that they were fitted to, features)."""
  law, features = responding._law()
  log = _log()
  return ensemble.fit(law, features, log), log, np.asarray(features)


def _row(log, number):
  return jax.tree.map(lambda x: np.asarray(x)[number], log)


def _flat(log):
  """Items shown and feedback, one row each, PAD left out."""
  slate = np.asarray(log.slate)
  at = np.maximum(slate, 0)
  shown = np.take_along_axis(np.asarray(log.request.candidates), at, 1)
  real = slate != PAD
  return shown[real], np.asarray(log.feedback)[real], real


def test_rates_are_shrunk_means(fitted):
  users, log, _ = fitted
  shown, feedback, _ = _flat(log)
  mean = feedback.mean(0)
  for item in (0, 17, ITEMS - 1):
    own = feedback[shown == item]
    total = own.sum(0) + ensemble.PRIOR * mean
    want = total / (len(own) + ensemble.PRIOR)
    got = special.expit(np.asarray(users.rates)[item])
    np.testing.assert_allclose(got, want, rtol=1e-4)


def test_opinions_are_what_they_say(fitted):
  users, log, features = fitted
  row = _row(log, 1)
  met = _meet(users, row)
  shown = np.array([4, 9, 30])
  got = _opinions(users, met, shown)
  own = features - features.mean(0)
  own /= np.linalg.norm(own, axis=1, keepdims=True)
  past = np.asarray(row.request.history)
  cosine = lambda x, y: x @ y / np.linalg.norm(y)
  np.testing.assert_allclose(
    got[0], cosine(own[shown], own[past].sum(0)), atol=1e-5
  )
  vectors = np.asarray(users.vectors)
  share = learnt.FADING ** np.arange(len(past))[::-1]
  np.testing.assert_allclose(
    got[1], cosine(vectors[shown], share @ vectors[past]), atol=1e-5
  )
  law, _ = responding._law()
  np.testing.assert_allclose(got[2], _chances(law, met, shown)[:, 0], atol=1e-6)


def test_each_opinion_is_for_as_many_as_were_clicked(fitted):
  users, log, _ = fitted
  shown, feedback, real = _flat(log)
  opinion = np.asarray(_on_log(users, log))
  above = opinion.swapaxes(1, 2)[real] > np.asarray(users.bars)
  np.testing.assert_allclose(
    above.mean(0), feedback[:, 0].mean(), atol=1 / shown.size + 1e-6
  )


def test_logic_is_the_vote_and_the_rest_is_usual(fitted):
  users, log, _ = fitted
  met = _meet(users, _row(log, 2))
  shown = np.array([4, 9, 30])
  by = lambda logic: np.asarray(
    _chances(users.replace(logic=jnp.float32(logic)), met, shown)
  )
  rates, places = jax.device_get((users.rates, users.places))
  usual = special.expit(rates[shown] + places)
  np.testing.assert_allclose(by(0.0), usual, rtol=1e-5)
  bars = np.asarray(users.bars)[:, None]
  votes = (np.asarray(_opinions(users, met, shown)) > bars).sum(0)
  assert 0 < (votes >= 2).sum() < K
  np.testing.assert_array_equal(by(1.0)[:, 0], votes >= 2)
  np.testing.assert_allclose(by(0.3), 0.3 * by(1.0) + 0.7 * usual, atol=1e-6)
  # A like is as frequent among clicks as ever.
  np.testing.assert_allclose(
    by(0.3)[:, 1] / by(0.3)[:, 0], usual[:, 1] / usual[:, 0], rtol=1e-5
  )


def test_logic_weighs_what_it_explains(fitted):
  """Next to nothing where clicks ignore it, most where they follow it."""
  users, log, features = fitted
  assert users.logic < 0.2
  law, _ = responding._law()
  opinion = np.asarray(_on_log(users, log))
  agreed = (opinion > np.asarray(users.bars)[:, None]).sum(1) >= 2
  random = np.random.default_rng(4)
  obeyed = np.where(random.random(agreed.shape) < 0.8, agreed, 0.5)
  clicked = random.random(agreed.shape) < obeyed
  feedback = jnp.asarray(np.stack([clicked, clicked], -1), jnp.float32)
  again = ensemble.fit(law, features, log.replace(feedback=feedback))
  assert 0.6 < again.logic < 0.95
