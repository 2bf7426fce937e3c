"""Values along paths: no look ahead, right means, right returns."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rerank_rl.decoding import sample
from rerank_rl.models.critic import Critic
from rerank_rl.rl import values
from rerank_rl.types import PAD, Outcome
from tests import toys

L, K = toys.SIZES.levels, toys.SIZES.slots


@functools.cache
def _play(group=16):
  policy, params = toys.policy("global")
  tree = toys.chains(policy, params, jax.random.key(0), group)
  return policy, params, toys.game(policy, params), tree


@functools.cache
def _critic():
  policy, _, game, _ = _play()
  made = Critic(policy.levels, policy.slots)
  slot = jnp.zeros((game.prompt.root.shape[0], 1), jnp.int32)
  root = game.prompt.root[:, None]
  init = jax.jit(lambda p: made.init(jax.random.key(1), p, root, 0, slot))
  params = init(game.prompt)["params"]
  return made, toys.scaled(params, 3, 0.1)


@jax.jit
def _along(critic, params, game, slate):
  policy, made = _play()[0], _critic()[0]
  value = functools.partial(made.apply, {"params": critic})
  return values.along(policy, params, value, game, slate)


def _outcome(per_item, bootstrap=0.0):
  per_item = jnp.asarray(per_item)
  reward = per_item.sum(-1)
  return Outcome(reward, per_item, jnp.full_like(reward, bootstrap))


def test_returns_by_hand():
  mean = jnp.array([[[9.0, 1.0, 2.0, 7.0]]])
  real = jnp.array([[[True, True, True, False]]])
  read = values.PathValues(0 * mean, mean, real)
  outcome = _outcome([[[1.0, 0.0, 3.0, 0.0]]])
  got = values.lambda_returns(read, outcome, 0.5)
  # The last real token is worth its own part; padding does not count.
  np.testing.assert_allclose(got[0, 0, :3], [2.75, 2.5, 3.0])
  whole = values.lambda_returns(read, outcome, 1.0)
  np.testing.assert_allclose(whole[0, 0, :3], [4.0, 3.0, 3.0])
  none = values.lambda_returns(read, outcome, 0.0)
  np.testing.assert_allclose(none[0, 0, :3], [2.0, 2.0, 3.0])
  after = _outcome([[[1.0, 0.0, 3.0, 0.0]]], bootstrap=0.5)
  more = values.lambda_returns(read, after, 1.0)
  np.testing.assert_allclose(more, whole + 0.5)


def test_a_critic_may_be_finer_than_the_reward():
  mean = jnp.ones((1, 1, 2))
  read = values.PathValues(mean, mean, mean > 0)
  outcome = _outcome([[[1.0, 0.0]]], bootstrap=0.5)
  coarse = outcome.replace(bootstrap=outcome.bootstrap.astype(jnp.bfloat16))
  got, wanted = (values.lambda_returns(read, x, 1.0) for x in (coarse, outcome))
  np.testing.assert_array_equal(got, wanted)


def test_states_without_a_choice_are_looked_through():
  """Rewards that fall due there count; what a critic says there does not."""
  per_item = [[[1.0, 3.0]]]
  real = jnp.array([[[True, False, True, False]]])
  mean = jnp.array([[[9.0, 50.0, 2.0, 70.0]]])
  read = values.PathValues(mean, mean, real)
  outcome = _outcome(per_item, bootstrap=0.5)
  few = values.PathValues(*(x[..., ::2] for x in read))
  for decay in (0.0, 0.3, 1.0):
    got = values.advantages(read, outcome, decay)
    np.testing.assert_allclose(
      got[..., ::2], values.advantages(few, outcome, decay), rtol=1e-6
    )
    np.testing.assert_array_equal(got[..., 1::2], 0)
    one = values.temporal_difference(read, outcome, decay)
    two = values.temporal_difference(few, outcome, decay)
    np.testing.assert_allclose(one, two, rtol=1e-6)


def test_advantages_are_sums_of_differences():
  """Generalised advantages by their definition, not by their recursion."""
  rng = np.random.default_rng(0)
  mean, per_item = rng.normal(size=(2, 3, 6)), rng.normal(size=(2, 3, 3))
  real = np.ones((2, 3, 6), bool)
  real[1, 2, 4:], per_item[1, 2, 2:] = False, 0
  outcome = _outcome(per_item, bootstrap=0.7)
  for decay in (0.0, 0.6, 1.0):
    read = values.PathValues(0 * mean, jnp.asarray(mean), jnp.asarray(real))
    got = values.advantages(read, outcome, decay)
    for b, g in np.ndindex(2, 3):
      length = int(real[b, g].sum())
      reward = np.zeros(6)
      reward[1::2] = per_item[b, g]
      along = [*mean[b, g, :length], 0.7]
      steps = reward[:length] + np.diff(along)
      for t in range(6):
        wanted = sum(decay**i * s for i, s in enumerate(steps[t:]))
        np.testing.assert_allclose(got[b, g, t], wanted, atol=1e-5)


def test_a_value_sees_no_later_token():
  _, params, game, tree = _play()
  critic = _critic()[1]
  read = _along(critic, params, game, tree.slate)
  for slot in range(1, K):
    # Another last part, of the same request's other rollouts.
    other = jnp.roll(tree.slate, 1, axis=1)
    mixed = jnp.concatenate([tree.slate[..., :slot], other[..., slot:]], -1)
    again = _along(critic, params, game, mixed)
    early = slice(0, slot * L)
    for field in ("chosen", "mean"):
      one, two = getattr(read, field), getattr(again, field)
      np.testing.assert_allclose(
        one[..., early], two[..., early], rtol=1e-4, atol=1e-5
      )
    assert np.abs(read.chosen - again.chosen)[..., slot * L :].max() > 0.01


def test_a_states_value_is_its_childrens_mean():
  policy, params, game, tree = _play()
  made, critic = _critic()
  read = _along(critic, params, game, tree.slate)
  scores = toys.scores(policy, params, toys.request(), tree.slate)
  ranks = sample.ranks_of(game.trie, tree.slate)
  states = jax.jit(policy.states)(params, game.prompt, ranks)
  B, G = tree.slate.shape[:2]
  # Of requests with 5, 4 and 2 candidates for 3 slots.
  left = jnp.array([3, 3, 2, 3])[:, None, None] - jnp.arange(K)[None, None]
  left = jnp.broadcast_to(left, (B, G, K)).reshape(B, G * K)
  for level in range(L):
    state = states[:, :, :, level].reshape(B, G * K, -1)
    worth = made.apply({"params": critic}, game.prompt, state, level, left)
    worth = np.asarray(worth).reshape(B, G, K, -1)
    if level == L - 1:  # A token is an item here: no mean within its run.
      at = np.arange(K) * L + level
      p = np.where(scores.legal, np.exp(scores.dist), 0)[:, :, at]
      np.testing.assert_allclose(
        read.mean[:, :, at], (p * worth).sum(-1), rtol=1e-4, atol=1e-5
      )
      own = np.take_along_axis(
        worth, np.maximum(np.asarray(ranks), 0)[..., None], -1
      )[..., 0]
      own = np.where(np.asarray(ranks) == PAD, 0, own)
      np.testing.assert_allclose(read.chosen[:, :, at], own, rtol=1e-4)
  assert (np.asarray(read.real) == np.asarray(tree.path != PAD)).all()


def test_the_policy_gets_no_gradient():
  _, params, _, tree = _play()
  policy, critic = _play()[0], _critic()[1]

  def loss(params):
    game = toys.game(policy, params)
    value = functools.partial(_critic()[0].apply, {"params": critic})
    states = policy.states(
      params, game.prompt, sample.ranks_of(game.trie, tree.slate)
    )
    state = states[:, 0, :, 0]
    slot = jnp.broadcast_to(jnp.arange(K), state.shape[:2])
    return value(game.prompt, state, 0, slot).sum()

  for gradient in jax.tree.leaves(jax.jit(jax.grad(loss))(params)):
    assert (np.asarray(gradient) == 0).all()


def test_temporal_differences_learn_the_reward():
  """The value of a finished slate is its reward, which the last head learns."""
  policy, params, game, tree = _play(32)
  made, critic = _critic()
  reward = jnp.sin(tree.slate @ jnp.array([0.9, 0.4, 0.2]))
  outcome = _outcome(jnp.zeros(tree.slate.shape).at[..., -1].set(reward))
  tx = optax.adam(1e-2)

  def loss(critic):
    value = functools.partial(made.apply, {"params": critic})
    read = values.along(policy, params, value, game, tree.slate)
    out = values.temporal_difference(read, outcome, 0.9)
    return out.total / out.denominator, read

  @jax.jit
  def step(critic, state):
    grads, read = jax.grad(loss, has_aux=True)(critic)
    updates, state = tx.update(grads, state)
    return optax.apply_updates(critic, updates), state, read

  state = tx.init(critic)
  for _ in range(300):
    critic, state, read = step(critic, state)
  full = np.array([0, 3])  # Requests with all five candidates.
  left = np.asarray((read.chosen[..., -1] - reward) ** 2)[full].mean()
  assert left < 0.3 * np.asarray(reward)[full].var(axis=1).mean()


def test_what_comes_after_a_slate_by_its_definition():
  """Sums of discounted rewards and values, never past who has left."""
  rng = np.random.default_rng(1)
  T, gamma = 6, 0.8
  reward, ahead = rng.normal(size=(T, 3)), rng.normal(size=(T, 3))
  left = np.zeros((T, 3), bool)
  left[2, 0] = left[0, 1] = left[5, 1] = True

  def after(t, b, decay):
    if left[t, b]:
      return 0.0
    if t == T - 1:
      return gamma * ahead[t, b]
    more = reward[t + 1, b] + after(t + 1, b, decay)
    return gamma * ((1 - decay) * ahead[t, b] + decay * more)

  for decay in (0.0, 0.4, 1.0):
    got = values.across_slates(
      *map(jnp.asarray, (reward, left, ahead)), gamma, decay
    )
    for t, b in np.ndindex(T, 3):
      np.testing.assert_allclose(got[t, b], after(t, b, decay), atol=1e-5)


def test_what_follows_each_slate_may_have_its_own_lambda():
  T, gamma = 3, 0.9
  reward, left = jnp.array([[1.0], [2.0], [4.0]]), jnp.zeros((T, 1), bool)
  ahead, decay = (
    jnp.array([[8.0], [16.0], [32.0]]),
    jnp.array([[1.0], [0], [0]]),
  )
  got = values.across_slates(reward, left, ahead, gamma, decay)
  second = gamma * 16.0
  want = [[gamma * (2.0 + second)], [second], [gamma * 32.0]]
  np.testing.assert_allclose(got, want, rtol=1e-6)


def test_another_users_value_never_stands_in_for_a_leavers():
  left = jnp.array([[True], [False]])
  reward = jnp.ones((2, 1))
  for ahead in (0.0, 1e6):
    got = values.across_slates(reward, left, jnp.full((2, 1), ahead), 0.9, 0.5)
    assert got[0, 0] == 0


def test_one_advantage_for_a_whole_slate():
  real = jnp.array([[[True, True, True, False]]])
  read = values.PathValues(0.0 * real, 0.0 * real, real)
  outcome = _outcome([[[1.0, 0.0, 3.0, 0.0]]], bootstrap=0.5)
  got = values.whole(jnp.array([4.0]), outcome, read)
  np.testing.assert_allclose(got, [[[0.5, 0.5, 0.5, 0]]])
