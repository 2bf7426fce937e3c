"""Sessions: whose state is whose, what counts, and how users tire."""

import jax
import jax.numpy as jnp
import numpy as np

from rerank_rl.config import SessionConfig, WorldConfig
from rerank_rl.simulation import session, users
from rerank_rl.types import PAD
from rerank_rl.world import utility
from rerank_rl.world import world as world_lib
from tests import toys


def _act(request, key):
  del key
  return jnp.zeros((request.user.shape[0], 1), jnp.int32), ()


def test_leavers_begin_anew_and_keep_their_own_last_state():
  limits = jnp.array([2.0, 3.0, 99.0])
  play = jax.jit(lambda k: session.play(toys.counting(), _act, limits, k, 5))
  out = play(jax.random.key(0))
  now, after = out.request.user[..., 0], out.after.user[..., 0]
  np.testing.assert_array_equal(now[:, 0], [0, 1, 0, 1, 0])
  np.testing.assert_array_equal(after[:, 0], [1, 2, 1, 2, 1])
  np.testing.assert_array_equal(now[:, 1], [0, 1, 2, 0, 1])
  np.testing.assert_array_equal(after[:, 1], [1, 2, 3, 1, 2])
  np.testing.assert_array_equal(out.left[:, 0], [0, 1, 0, 1, 0])
  assert not out.left[:, 2].any()
  found = session.totals(out, 0.5)
  # First sessions alone: 1 + 2, 1 + 2 + 3, 1 + ... + 5.
  np.testing.assert_allclose(found["total_reward"], [3, 6, 15])
  np.testing.assert_allclose(found["discounted_reward"][0], 1 + 0.5 * 2)
  np.testing.assert_allclose(found["slate_reward"], [1.5, 2, 3])
  np.testing.assert_array_equal(found["return_days"], [1, 1, 0])


WORLD = WorldConfig(
  num_items=60, num_candidates=12, slate_size=4, num_topics=4, history_size=5
)


def _start(config=WORLD, count=3):
  world = world_lib.build(config, 0)
  return world, world_lib.impressions(world, jax.random.key(1), count)


def _users(world, **changes):
  law = users.Tiring(world, world.shuffle, SessionConfig(**changes))
  return users.impatient(law)


def test_a_rested_user_clicks_as_the_worlds_law_says():
  world, start = _start()
  one = jax.tree.map(lambda x: jnp.asarray(x[0]), start)
  them = _users(world, cost=0.0)
  state = jax.jit(them.begin)(one, jax.random.key(2))
  slate = jnp.array([3, 0, 7, 5])
  react = jax.jit(jax.vmap(them.react, (None, None, 0)))
  keys = jax.random.split(jax.random.key(3), 20_000)
  _, answer = react(state, slate, keys)
  want = utility.per_item(
    world, one.hidden[None], state.candidates[slate][None, None]
  )[0, 0]
  np.testing.assert_allclose(
    answer.per_item.mean(0) * 4, want, atol=6 * 0.5 / 141
  )
  np.testing.assert_array_equal(answer.clicked, answer.per_item > 0)


def test_topics_weary_and_rest():
  world, start = _start()
  one = jax.tree.map(lambda x: jnp.asarray(x[0]), start)
  them = _users(world, rest=0.5)
  state = them.begin(one, jax.random.key(2))
  slate = jnp.arange(4)
  shown = np.asarray(world.topic)[np.asarray(state.candidates)[:4]]
  want = np.bincount(shown, minlength=4) / 4
  after, _ = them.react(state, slate, jax.random.key(5))
  np.testing.assert_allclose(after.weary, want)
  np.testing.assert_allclose(them.request(after).user, want)
  again, _ = them.react(after, slate, jax.random.key(6))
  shown = np.asarray(world.topic)[np.asarray(after.candidates)[:4]]
  np.testing.assert_allclose(
    again.weary, 0.5 * want + np.bincount(shown, minlength=4) / 4
  )


def test_weariness_and_no_clicks_cost():
  """Who tires more clicks less; who clicks less leaves sooner."""
  world, start = _start(count=256)
  start = jax.tree.map(jnp.asarray, start)

  def played(**changes):
    def act(request, key):
      del key
      return jax.lax.top_k(request.scores, 4)[1], ()

    them = _users(world, **changes)
    play = lambda key: session.totals(
      session.play(them, act, start, key, 12), 0.9
    )
    return {k: v.mean() for k, v in jax.jit(play)(jax.random.key(0)).items()}

  fresh, tired = played(weariness=0.0), played(weariness=4.0)
  assert tired["slate_reward"] < fresh["slate_reward"] - 0.05
  short = played(patience=6.0)
  assert short["total_reward"] < fresh["total_reward"]


def test_a_log_has_users_at_every_turn():
  """Each with what he was shown lately, and tired of it."""
  world, start = _start(count=3000)
  config = SessionConfig(patience=100.0, weariness=9.0, rest=0.5)
  law = users.Tiring(world, world.shuffle, config)
  start = jax.tree.map(jnp.asarray, start)
  log = users.logged(law, start, jax.random.key(7), 3)
  shown_before = np.asarray(log.request.user.sum(1))
  # Nothing, one slate, one and half of the one before it.
  for mass in (0, 1, 1.5):
    share = np.isclose(shown_before, mass, atol=1e-5).mean()
    np.testing.assert_allclose(share, 1 / 3, atol=6 * 0.5 / np.sqrt(3000))
  assert (np.diff(np.sort(log.slate, 1), axis=1) > 0).all()
  assert ((log.propensity > 0) & (log.propensity <= 1)).all()
  items = np.take_along_axis(
    np.asarray(log.request.candidates), np.asarray(log.slate), 1
  )
  topic = np.asarray(world.topic)[items]
  weary = np.take_along_axis(np.asarray(log.request.user), topic, 1)
  clicked = np.asarray(log.feedback[..., 0])
  assert clicked[weary == 0].mean() > 4 * clicked[weary > 0.5].mean()


def test_the_pleased_return_sooner():
  """Days are drawn day by day; who is still there stays away none."""
  config = SessionConfig(habit=0.1, fondness=0.5)
  keys = lambda seed: jax.random.split(jax.random.key(seed), 4000)
  away = jax.vmap(session.days_away, (None, None, None, 0))
  assert not away(config, 1.0, 0.5, keys(0)).any()
  for seed, pleasure in enumerate((0.0, 0.4, 1.0)):
    days = np.asarray(away(config, 0.9, pleasure, keys(seed)))
    chance = 0.1 + 0.9 * 0.5 * pleasure
    assert days.min() == 1
    # Geometric: six standard errors of the mean, and of the first day's share.
    spread = np.sqrt(1 - chance) / chance / 63
    np.testing.assert_allclose(days.mean(), 1 / chance, atol=6 * spread)
    np.testing.assert_allclose((days == 1).mean(), chance, atol=6 * 0.5 / 63)


def test_pleasure_is_the_share_of_a_sessions_clicks():
  """And requests say how far the session is."""
  world, start = _start()
  one = jax.tree.map(lambda x: jnp.asarray(x[0]), start)
  them = _users(world, patience=100.0, cost=0.0)
  state, slate = them.begin(one, jax.random.key(2)), jnp.arange(4)
  clicks = []
  for turn in range(3):
    state, answer = them.react(state, slate, jax.random.key(turn))
    clicks.append(answer.clicked.mean())
    np.testing.assert_allclose(state.pleasure, np.mean(clicks), rtol=1e-6)
    far = [turn + 1, turn + 1 - sum(clicks)]
    np.testing.assert_allclose(them.request(state).so_far, far, rtol=1e-5)
    assert answer.away == 0


def test_clicks_enter_the_history():
  history = jnp.array([PAD, PAD, 4, 5])
  got = session.appended(history, jnp.array([PAD, 8, PAD, 9]))
  np.testing.assert_array_equal(got, [4, 5, 8, 9])
  got = session.appended(history, jnp.array([PAD, 8, PAD, PAD]))
  np.testing.assert_array_equal(got, [PAD, 4, 5, 8])
