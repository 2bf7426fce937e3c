import dataclasses
import functools

import chex
import jax
import numpy as np

from rerank_rl.config import WorldConfig
from rerank_rl.types import PAD, Request
from rerank_rl.world import bayes, utility
from rerank_rl.world import world as world_lib

SMALL = WorldConfig(
  num_items=300, num_candidates=20, slate_size=4, num_topics=6, latent_dim=4
)


def prior(world, count, seed):
  """Users unit(w c_a + (1 - w) c_b + .6 e), in numpy: f32[count, D]."""
  random = np.random.default_rng(seed)
  centres = np.asarray(world.centres)
  topics, size = centres.shape
  pair = np.argsort(random.uniform(size=(count, topics)), axis=1)[:, :2]
  mix = random.uniform(size=(count, 1))
  user = mix * centres[pair[:, 0]] + (1 - mix) * centres[pair[:, 1]]
  user += 0.6 * random.normal(size=user.shape) / np.sqrt(size)
  user /= np.linalg.norm(user, axis=1, keepdims=True)
  return user.astype(np.float32)


def request_of(world, hidden, noise, seed):
  """Random candidates with noisy scores, and a fair history; numpy."""
  random = np.random.default_rng(seed)
  z, q = np.asarray(world.z), np.asarray(world.quality)
  rel = 3 * hidden @ z.T + q - 1.6
  rows = np.array([random.permutation(300)[:20] for _ in hidden], np.int32)
  scores = np.take_along_axis(rel, rows, 1)
  scores += noise * random.normal(size=scores.shape)
  order = np.argsort(-scores, axis=1)
  weight = 1 / (1 + np.exp(-rel))
  weight /= weight.sum(1, keepdims=True)
  return Request(
    user=np.zeros((len(hidden), 0), np.float32),
    history=np.array([random.choice(300, 20, p=p) for p in weight], np.int32),
    candidates=np.take_along_axis(rows, order, 1),
    scores=np.take_along_axis(scores, order, 1).astype(np.float32),
    size=np.full(len(hidden), 4, np.int32),
  )


@functools.cache
def requests(noise=SMALL.ranker_noise, count=96):
  world = world_lib.build(SMALL, 1)
  world = world.replace(config=dataclasses.replace(SMALL, ranker_noise=noise))
  hidden = prior(world, count, 1)
  return world, hidden, request_of(world, hidden, noise, 0)


@functools.cache
def slates():
  world, _, request = requests()
  return bayes.slates(world, request, jax.random.key(3))


def mean_worth(slate):
  world, hidden, request = requests()
  return float(
    np.asarray(utility.utility(world, hidden, request.candidates, slate)).mean()
  )


def test_the_normaliser_is_close_to_the_exact_one():
  world, hidden, _ = requests()
  fitted = bayes.fit_normaliser(world, jax.random.key(5))
  rel = 3 * hidden @ np.asarray(world.z).T + np.asarray(world.quality) - 1.6
  exact = np.log((1 / (1 + np.exp(-rel))).sum(-1))
  error = np.asarray(bayes._monomials(hidden)) @ np.asarray(fitted) - exact
  assert error.std() < 0.1 * exact.std()
  assert abs(error.mean()) < 0.1 * exact.std()


def test_the_posterior_agrees_with_importance_sampling():
  # Little is known here, so that many users of the prior are a fair sample.
  world, _, requested = requests(4.0, 6)
  fitted = bayes.fit_normaliser(world, jax.random.key(5))
  many = prior(world, 100_000, 2)
  rel = 3 * many @ np.asarray(world.z).T + np.asarray(world.quality) - 1.6
  # The fit of log Z is tested above; here it is the sampler's turn.
  log_z = np.asarray(bayes._monomials(many)) @ np.asarray(fitted)

  @jax.jit
  @functools.partial(jax.vmap, in_axes=(None, 0))
  @functools.partial(jax.vmap, in_axes=(0, None))
  def sample(request, key):
    return bayes.posterior(world, fitted, request, key).mean(0)

  ours = sample(requested, jax.random.split(jax.random.key(0), 16))
  ours = np.asarray(ours).mean(0)
  for b in range(6):
    request = jax.tree.map(lambda x, b=b: x[b], requested)
    gap = request.scores - rel[:, request.candidates]
    log_p = -(gap**2).sum(-1) / (2 * 4.0**2) - 20 * log_z
    log_p -= np.log1p(np.exp(-rel[:, request.history])).sum(-1)
    weight = np.exp(log_p - log_p.max())
    expected = weight @ many / weight.sum()
    assert np.linalg.norm(ours[b] - expected) < 0.04
    # The data said something.
    assert np.linalg.norm(many.mean(0) - expected) > 0.2


def test_slates_are_distinct_real_candidates():
  for slate in slates().values():
    assert slate.shape == (96, 4)
    assert slate.dtype == np.int32
    assert slate.min() >= 0
    assert slate.max() < 20
    assert all(len(set(row)) == 4 for row in slate.tolist())


def test_padding_is_never_placed():
  world, _, request = requests()
  candidates, history = request.candidates.copy(), request.history.copy()
  scores = request.scores.copy()
  candidates[:, 6:], scores[:, 6:], history[:, :15] = PAD, 0, PAD
  short = Request(request.user, history, candidates, scores, request.size)
  for slate in bayes.slates(world, short, jax.random.key(0)).values():
    assert slate.max() < 6


def test_knowing_more_is_worth_more():
  world, hidden, request = requests()
  ranker = mean_worth(np.tile(np.arange(4, dtype=np.int32), (96, 1)))
  pointwise = mean_worth(slates()["bayes_pointwise"])
  listwise = mean_worth(slates()["bayes_list"])
  best = mean_worth(utility.search(world, hidden, request.candidates, 8))
  assert ranker + 0.02 < pointwise
  assert pointwise + 0.02 < listwise
  assert listwise < best


def test_a_good_ranker_gives_the_user_away():
  world, hidden, request = requests(0.2, 32)
  rel = 3 * hidden @ np.asarray(world.z).T + np.asarray(world.quality) - 1.6
  rel = np.take_along_axis(rel, request.candidates, 1)
  slate = bayes.slates(world, request, jax.random.key(3))["bayes_pointwise"]
  found = np.take_along_axis(rel, slate, 1).sum(1)
  best = -np.sort(-rel, axis=1)[:, :4].sum(1)
  ranker = rel[:, :4].sum(1)
  assert (best - found).mean() < 0.8 * (best - ranker).mean()
  assert (best - found).mean() < 0.1


def test_the_true_user_is_never_read():
  world, _, request = requests()
  request = request.replace(user=np.full((96, 4), np.nan))
  chex.assert_trees_all_equal(
    bayes.slates(world, request, jax.random.key(3)), slates()
  )
