"""Credit against its definition, edge by edge."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rerank_rl.decoding import beam, fixed_tree, sample, tree, value_guided
from rerank_rl.rl import credit
from rerank_rl.types import PAD
from tests import toys


def _policy():
  """None of its choices is near certain."""
  return toys.policy("global", sharpness=1.0)


@functools.cache
def _grown(kind):
  policy, params = _policy()

  @jax.jit
  def grow(params, game):
    key = jax.random.key(3)
    if kind == "value_guided":
      return value_guided.value_guided(policy, params, toys.value, game, 24)
    if kind == "every slate":
      return beam.beam(policy, params, game, len(toys.every_slate()))
    if kind == "fixed_tree":
      return fixed_tree.fixed_tree(policy, params, game, (2, 1, 1, 4, 2), key)
    return tree.merge(sample.chains(policy, params, game, key, 16))

  return jax.device_get(grow(params, toys.game(policy, params)))


def _families(made, b):
  """Parent edge -> its distinct children, of request b."""
  families = {}
  for e in np.flatnonzero(np.asarray(made.token[b]) != PAD):
    families.setdefault(int(made.parent[b, e]), []).append(e)
  return families


def _brute_force(made, outcome, b):
  """A of every edge of request b by V-STAR's definition; |C|."""
  advantage, competing = np.zeros(made.token.shape[1]), 0
  path, reward = np.asarray(made.path[b]), np.asarray(outcome.reward[b])
  for children in _families(made, b).values():
    if len(children) < 2:
      continue
    mean = [reward[(path == e).any(-1)].mean(dtype=float) for e in children]
    competing += len(children)
    if np.std(mean) > 1e-5:
      scaled = (mean - np.mean(mean)) / (np.std(mean) + 1e-4)
      advantage[children] = scaled
  return advantage, competing


@pytest.mark.parametrize("kind", ("merged", "fixed_tree"))
def test_sibling_equals_its_definition(kind):
  made = _grown(kind)
  outcome = toys.outcome(made)
  given = credit.sibling(made, outcome)
  compared = 0
  for b in range(made.token.shape[0]):
    wanted, competing = _brute_force(made, outcome, b)
    compared += competing
    tokens = float(made.weight[b].sum())
    share = tokens / max(competing, 1)
    got = np.asarray(given.positive[b] + given.negative[b]) / share
    np.testing.assert_allclose(got, wanted, atol=1e-4)
    assert (np.asarray(given.positive[b]) >= 0).all()
    assert (np.asarray(given.negative[b]) <= 0).all()
  assert compared > 20


@pytest.mark.parametrize("kind", ("merged", "fixed_tree"))
def test_sibling_advantages_sum_to_nothing(kind):
  made = _grown(kind)
  given = credit.sibling(made, toys.outcome(made))
  total = np.asarray(given.positive + given.negative)
  assert np.abs(total).max() > 0.1
  for b in range(made.token.shape[0]):
    for children in _families(made, b).values():
      np.testing.assert_allclose(total[b, children].sum(), 0, atol=1e-4)


def _confined_worth(made, logp, b):
  """sum of q R of request b; log q by loops, from log p f32[B, G, T]."""
  path = np.asarray(made.path[b])
  families = _families(made, b)

  def at(e):
    return logp[b, np.argwhere(path == e)[0][0], made.depth[b, e]]

  def among(children):
    return jax.nn.logsumexp(jnp.stack([at(e) for e in children]))

  share = {
    e: at(e) - among(children)
    for children in families.values()
    for e in children
  }
  leaves = np.flatnonzero((path != PAD).any(-1))
  q = [jnp.exp(sum(share[e] for e in path[g] if e != PAD)) for g in leaves]
  q = jnp.stack(q) / sum(q)
  return (q * toys.outcome(made).reward[b, leaves]).sum()


@pytest.mark.parametrize("kind", ("fixed_tree", "value_guided"))
def test_confined_is_the_gradient_within_the_tree(kind):
  made = _grown(kind)
  logp = tree.on_path(made, made.logp_old)
  some = np.array([0, 2])  # Request 2 has two candidates.
  worth = lambda x: sum(_confined_worth(made, x, b) for b in some)
  wanted = tree.sum_to_edges(made, jax.jit(jax.grad(worth))(logp))
  given = credit.confined(made, toys.outcome(made))
  got = np.asarray(given.positive + given.negative)
  assert np.abs(got).max() > 0.01
  np.testing.assert_allclose(got[some], wanted[some], atol=1e-5)


def test_confined_to_every_slate_is_the_policys_gradient():
  policy, params = _policy()
  made, slates = _grown("every slate"), toys.every_slate()
  score = functools.partial(toys.scores, policy)

  def expected(params):
    """E R of request 0, whose slates are full."""
    every = np.broadcast_to(slates, (4, *slates.shape))
    p = jnp.exp(score(params, toys.request(), every).logp.sum(-1))[0]
    return (p * jnp.sin(slates @ jnp.array([5.0, 3.0, 1.0]))).sum()

  def credited(params, given):
    logp = tree.to_edges(made, score(params, toys.request(), made.slate).logp)
    return ((given.positive + given.negative) * logp)[0].sum()

  given = credit.confined(made, toys.outcome(made))
  wanted = jax.jit(jax.grad(expected))(params)
  got = jax.jit(jax.grad(credited))(params, given)
  largest = max(jnp.abs(x).max() for x in jax.tree.leaves(wanted))
  assert largest > 0.01
  close = lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * largest)
  jax.tree.map(close, got, wanted)


def test_requests_do_not_mix():
  made = _grown("merged")
  outcome = toys.outcome(made)
  given = credit.sibling(made, outcome)
  other = outcome.replace(reward=outcome.reward.at[0].multiply(-3.0))
  changed = credit.sibling(made, other)
  assert (given.positive[0] != changed.positive[0]).any()
  for field in ("positive", "negative", "leaf"):
    np.testing.assert_array_equal(
      np.asarray(getattr(given, field))[1:],
      np.asarray(getattr(changed, field))[1:],
    )


def test_mean_reward_is_over_the_rollouts_through_an_edge():
  made = _grown("merged")
  outcome = toys.outcome(made)
  got = np.asarray(credit.mean_reward(made, outcome.reward))
  for b in range(got.shape[0]):
    path, reward = np.asarray(made.path[b]), np.asarray(outcome.reward[b])
    for e in np.flatnonzero(np.asarray(made.token[b]) != PAD):
      wanted = reward[(path == e).any(-1)].mean()
      np.testing.assert_allclose(got[b, e], wanted, atol=1e-5)


def _assert_on_edges(given, made, each, atol=1e-5):
  """Advantages f[B, G, T] of rollouts' tokens, by the definition of Credit."""
  path, each = np.asarray(made.path), np.asarray(each)
  G = path.shape[1]
  want = np.zeros((2, *made.token.shape))
  for b, e in np.ndindex(made.token.shape):
    own = each[b][path[b] == e]
    want[:, b, e] = own[own > 0].sum() / G, own[own < 0].sum() / G
  np.testing.assert_allclose(given.positive, want[0], atol=atol)
  np.testing.assert_allclose(given.negative, want[1], atol=atol)


def _held_against_the_group(made, each):
  """each - its mean over the rollouts that have a token there, by loops."""
  out, real = np.zeros(each.shape), np.asarray(made.path) != PAD
  for b in range(each.shape[0]):
    for t in range(each.shape[2]):
      own = real[b, :, t]
      if own.any():
        out[b, own, t] = each[b, own, t] - each[b, own, t].mean()
  return out


@pytest.mark.parametrize("kind", ("merged", "fixed_tree"))
def test_critic_equals_its_definition(kind):
  made = _grown(kind)
  said = np.random.default_rng(0).normal(size=made.path.shape)
  outcome = toys.outcome(made).replace(advantage=said.astype(np.float32))
  given = credit.critic(made, outcome)
  _assert_on_edges(given, made, _held_against_the_group(made, said))


@pytest.mark.parametrize("kind", ("merged", "fixed_tree"))
def test_advantages_are_held_against_the_batchs(kind):
  """By loops; a mistake about a depth and rewards' unit change nothing."""
  made = _grown(kind)
  said = np.random.default_rng(0).normal(size=made.path.shape) ** 3
  # What had a sibling to be chosen in its place.
  scores = toys.scores(*_policy(), toys.request(), made.slate)
  real = np.asarray(scores.legal.sum(-1)) > 1
  assert 0 < real.mean() < 1
  want = np.zeros(said.shape)
  for t in range(said.shape[2]):
    own = said[:, :, t][real[:, :, t]]
    if own.size:
      want[:, :, t][real[:, :, t]] = (own - own.mean()) / (own.std() + 1e-4)
  wrong = np.linspace(-3, 3, said.shape[2])
  for told, atol in ((said, 1e-5), (20 * said + wrong, 1e-3)):
    outcome = toys.outcome(made).replace(advantage=told.astype(np.float32))
    _assert_on_edges(credit.advantage(made, outcome), made, want, atol)


@pytest.mark.parametrize("kind", ("every slate", "value_guided"))
def test_expected_is_the_gradient_of_the_expected_reward(kind):
  """By automatic differentiation of sum_g p_g R_g over the leaves found."""
  made = _grown(kind)
  outcome, where = toys.outcome(made), tree.found(made)
  score = tree.on_path(made, made.logp_old).sum(-1)
  reward = credit.normalise(outcome.reward, where)

  def worth(score):
    return (jax.nn.softmax(score, axis=1, where=where) * reward).sum()

  leaf = score.shape[1] * jax.grad(worth)(score)
  want = np.broadcast_to(leaf[..., None], made.path.shape)
  got = credit.expected(made, outcome, score)
  _assert_on_edges(got, made, np.where(made.path == PAD, 0, want))


@pytest.mark.parametrize("kind", ("merged", "fixed_tree"))
def test_reward_to_go_equals_its_definition(kind):
  made = _grown(kind)
  outcome = toys.outcome(made)
  B, G, K = made.slate.shape
  per_item = np.random.default_rng(0).normal(size=(B, G, K)).astype(np.float32)
  per_item[np.asarray(made.slate) == PAD] = 0
  outcome = outcome.replace(
    reward=per_item.sum(-1), per_item=per_item, bootstrap=np.full((B, G), 0.5)
  )
  L = made.path.shape[2] // K
  ahead = [per_item[..., t // L :].sum(-1) + 0.5 for t in range(K * L)]
  wanted = _held_against_the_group(made, np.stack(ahead, -1))
  _assert_on_edges(credit.to_go(made, outcome), made, wanted)


def test_reward_to_go_is_the_reward_where_the_last_item_settles_it():
  made = _grown("merged")
  outcome = toys.outcome(made)
  filled = np.asarray(made.slate) != PAD
  last = filled & (np.cumsum(filled[..., ::-1], -1)[..., ::-1] == 1)
  per_item = np.where(last, np.asarray(outcome.reward)[..., None], 0)
  one = credit.to_go(made, outcome.replace(per_item=per_item))
  two = credit.centred(made, outcome)
  np.testing.assert_allclose(one.positive, two.positive, atol=1e-5)
  np.testing.assert_allclose(one.negative, two.negative, atol=1e-5)


@pytest.mark.parametrize("kind", (credit.group, credit.centred))
def test_leaves_that_were_not_found_count_for_nothing(kind):
  """A search's empty places change no credit but by the share 1 / G."""
  made = _grown("merged")
  empty = lambda x, fill: np.concatenate([x, np.full_like(x, fill)], axis=1)
  wide = made.replace(path=empty(made.path, PAD), slate=empty(made.slate, PAD))
  outcome = toys.outcome(made)
  more = toys.outcome(wide)
  more = more.replace(reward=empty(outcome.reward, 100.0))
  one, two = kind(made, outcome), kind(wide, more)
  np.testing.assert_allclose(one.positive, 2 * two.positive, atol=1e-6)
  np.testing.assert_allclose(one.negative, 2 * two.negative, atol=1e-6)
  assert np.abs(one.positive).max() > 0.01
  assert (np.asarray(two.leaf)[:, made.path.shape[1] :] == 0).all()


def test_stratified_samples_credit_slates_as_the_gradient_does():
  """E sum_g A_g 1[slate g] / G against p(slate) (R - mean R), enumerated."""
  policy, params = _policy()
  slates, group = toys.every_slate(), 16
  request = toys.request(batch=1)

  @jax.jit
  def run(params, game, keys):
    def once(key):
      made = sample.stratified(policy, params, game, key, group)
      leaf = credit.centred(made, toys.outcome(made)).leaf[0]
      same = (made.slate[0][:, None] == slates[None]).all(-1)
      return (leaf[:, None] * same).mean(0)

    return jax.lax.map(once, keys, batch_size=50).mean(0)

  every = toys.scores(policy, params, request, slates[None])
  p = np.exp(every.logp.sum(-1)[0])
  keys = jax.random.split(jax.random.key(0), 4000)
  found = run(params, toys.game(policy, params, request), keys)
  reward = np.sin(slates @ np.array([5.0, 3.0, 1.0]))
  wanted = p * (reward - (p * reward).sum())
  slope = float(found @ wanted / (wanted @ wanted))
  # Independent samples would have 1 - 1 / G.
  assert 1 - 1.5 / group < slope < 1 + 0.5 / group
  assert float(jnp.corrcoef(found, wanted)[0, 1]) > 0.99


def test_blend_is_a_sum():
  made = _grown("merged")
  outcome = toys.outcome(made)
  one, two = (f(made, outcome) for f in (credit.group, credit.sibling))
  both = credit.blend(one, two)
  for field in ("positive", "negative", "leaf"):
    wanted = np.asarray(getattr(one, field)) + np.asarray(getattr(two, field))
    np.testing.assert_allclose(getattr(both, field), wanted, rtol=1e-6)


def test_equal_rewards_are_no_signal():
  made = _grown("merged")
  outcome = toys.outcome(made)
  flat = outcome.replace(reward=outcome.reward.at[1].set(0.7))
  for name in (credit.group, credit.centred, credit.sibling):
    dead = np.asarray(credit.zero_variance(name(made, flat)))
    assert dead[1] and not dead[0]
