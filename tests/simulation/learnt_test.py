"""Users who behave as a response model says: its law, and their states."""

import dataclasses
import operator

import jax
import jax.numpy as jnp
import numpy as np

from rerank_rl.config import SessionConfig, WorldConfig
from rerank_rl.models.response import ResponseModel
from rerank_rl.simulation import learnt, session
from rerank_rl.types import PAD, Impression, Request

ITEMS, TURNS, N, K, H = 40, 4, 8, 3, 6
MODEL = ResponseModel(K, signals=2, window=H, dim=8, dropout=0.5)
INIT, APPLY = jax.jit(MODEL.init), jax.jit(MODEL.apply)


def _start(count=2):
  random = np.random.default_rng(0)
  history = random.integers(0, ITEMS, (count, H))
  history[0, :3] = PAD
  request = Request(
    user=random.normal(size=(count, 3)).astype(np.float32),
    history=history.astype(np.int32),
    candidates=np.tile(np.arange(N, dtype=np.int32), (count, 1)),
    scores=np.zeros((count, N), np.float32),
    size=np.full(count, K, np.int32),
  )
  slate = np.tile(np.arange(K, dtype=np.int32), (count, 1))
  nothing = np.zeros((count, K, 2), np.float32)
  return jax.tree.map(
    jnp.asarray,
    Impression(request, slate, nothing, nothing[..., 0], nothing[:, 0, :0]),
  )


def _law(topics=None, **changes):
  start = _start()
  features = jax.random.normal(jax.random.key(0), (ITEMS, 5))
  slate = start.slate[:, None]
  params = INIT(jax.random.key(1), features, start.request, slate)
  vectors = jax.random.normal(jax.random.key(2), (ITEMS, 4))
  offers = np.stack(
    [np.random.default_rng(i).permutation(ITEMS)[: TURNS * N] for i in (0, 1)]
  )
  return learnt.law_of(
    MODEL,
    params["params"],
    features,
    vectors,
    scale=jnp.array([1.5, 0.5]),
    shift=jnp.array([0.3, -0.4]),
    offers=jnp.asarray(offers.reshape(2, TURNS, N), jnp.int32),
    ranker=None,
    topics=topics,
    config=SessionConfig(**{"cost": 0.0, **changes}),
    weights=(1.0, 2.0),
  ), features


def _played(law, start, turns=3, slate=(5, 0, 2)):
  def act(request, key):
    del key
    shape = (request.user.shape[0], K)
    return jnp.broadcast_to(jnp.array(slate), shape), ()

  play = lambda key: session.play(learnt.learnt(law), act, start, key, turns)
  return jax.jit(play)


def test_signals_come_as_the_model_says():
  """Also after clicks: the model reads the history that the request shows."""
  law, features = _law(patience=100.0)
  start = jax.tree.map(lambda x: jnp.repeat(x[:1], 4000, 0), _start())
  out = _played(law, start)(jax.random.key(3))
  for turn in (0, 2):
    request = jax.tree.map(operator.itemgetter(turn), out.request)
    slate = jnp.broadcast_to(jnp.array([5, 0, 2]), (4000, 1, K))
    logits = APPLY({"params": law.params}, features, request, slate)
    logits = np.asarray(logits[:, 0] * law.scale[None, None])
    chance = jax.nn.sigmoid(logits + np.asarray(law.shift)[None, None])
    want = (chance @ jnp.array([1.0, 2.0])).mean(0) / K
    # A slot's reward is at most 3 / K; six standard errors.
    np.testing.assert_allclose(
      out.per_item[turn].mean(0), want, atol=6 * 1.5 / K / 63
    )


def test_clicks_enter_the_history_and_turn_the_ranker():
  law, _ = _law(cost=0.5, patience=100.0)
  law = law.replace(shift=jnp.array([50.0, -50.0]))  # All clicked, no more.
  out = _played(law, _start())(jax.random.key(4))
  np.testing.assert_allclose(out.per_item, 1 / K)
  first = jax.tree.map(lambda x: np.asarray(x[0]), out.request)
  after = np.asarray(out.after.history[0])
  shown = first.candidates[:, [5, 0, 2]]
  np.testing.assert_array_equal(after[:, -K:], shown)
  np.testing.assert_array_equal(after[:, :-K], first.history[:, K:])
  vectors = np.asarray(law.vectors)
  for user in range(2):
    now = jax.tree.map(operator.itemgetter((1, user)), out.request)
    met = [*first.history[user], *shown[user]]
    met = [item for item in met if item != PAD]
    share = learnt.FADING ** np.arange(len(met))[::-1]
    taste = share @ vectors[met]
    want = vectors[now.candidates] @ taste / np.linalg.norm(taste)
    np.testing.assert_allclose(now.scores, want, atol=1e-5)


def test_what_is_shown_is_counted_and_read():
  """Clicks hang on what the request says that he was shown lately."""
  topics = jax.nn.one_hot(jnp.arange(ITEMS) % 2, 2)  # Of three features.
  law, features = _law(topics, patience=100.0, rest=0.5)
  never = law.replace(shift=jnp.array([-50.0, -50.0]))
  out = _played(never, _start())(jax.random.key(6))
  lately = [np.asarray(x) for x in (*out.request.user, out.after.user[-1])]
  candidates = np.asarray(out.request.candidates)
  for turn in range(3):
    shown = np.asarray(topics)[candidates[turn][:, [5, 0, 2]]].mean(1)
    want = 0.5 * lately[turn][:, :2] + shown
    np.testing.assert_allclose(lately[turn + 1][:, :2], want, rtol=1e-6)
    np.testing.assert_array_equal(lately[turn + 1][:, 2], lately[0][:, 2])
  one = jax.tree.map(operator.itemgetter(0), _start())
  them = learnt.learnt(never)
  state = jax.jit(lambda row, key: them.begin(them.meet(row), key))(
    one, jax.random.key(7)
  )
  slate = jnp.array([5, 0, 2])
  state, *_ = jax.jit(them.react)(state, slate, jax.random.key(8))
  request = jax.tree.map(lambda x: x[None], them.request(state))
  said = jax.jit(law.chances)(state, request.candidates[0, slate])
  logits = APPLY({"params": law.params}, features, request, slate[None, None])
  want = jax.nn.sigmoid(logits[0, 0] * law.scale[None] + law.shift[None])
  np.testing.assert_allclose(said, want, atol=1e-6)


def test_the_ranker_brings_what_it_takes_a_user_to_like():
  law, _ = _law(patience=100.0)
  regressors = jax.random.normal(jax.random.key(9), (ITEMS, 2))
  config = WorldConfig(
    num_items=ITEMS, num_candidates=N, slate_size=K, ranker_noise=0.0
  )
  order = jax.random.permutation(jax.random.key(8), ITEMS)
  law = law.replace(ranker=learnt.Ranker(regressors, order, config))
  start = _start()
  out = _played(law, start)(jax.random.key(6))
  # A pool of all items, no noise: the best are brought, best first.
  score = np.asarray(start.request.user[:, 1:] @ regressors.T)
  best = np.argsort(-score, axis=1)[:, :N]
  for turn in range(3):
    np.testing.assert_array_equal(out.request.candidates[turn], best)
    np.testing.assert_allclose(
      out.request.scores[turn], np.take_along_axis(score, best, 1), rtol=1e-5
    )
  noisy = learnt.Ranker(
    regressors, order, dataclasses.replace(config, ranker_noise=1.0)
  )
  out = _played(law.replace(ranker=noisy), start)(jax.random.key(6))
  brought = np.sort(out.request.candidates, axis=-1)
  assert (np.diff(brought, axis=-1) > 0).all()
  assert (brought[0] != brought[1]).any()
  # What is shown is what the request had: it enters the history.
  new = np.asarray(out.after.history)[..., -1:]
  shown = np.asarray(out.request.candidates)[..., [5, 0, 2]]
  clicked = np.asarray(out.answer.clicked)
  odd = np.round(np.asarray(out.per_item) * K) % 2 == 1  # 1, or 1 + 2.
  np.testing.assert_array_equal(clicked, odd)
  assert clicked.any()
  for at in zip(*np.nonzero(clicked.any(-1))):
    assert new[at][0] in shown[at][clicked[at]]


def test_whoever_clicks_nothing_leaves_sooner_and_begins_anew():
  law, _ = _law(cost=0.5, patience=4.0, impatience=2.0)
  never = law.replace(shift=jnp.array([-50.0, -50.0]))
  out = _played(never, _start(), turns=4)(jax.random.key(5))
  np.testing.assert_allclose(out.per_item, -0.5 / K)
  # 4 -> 1 -> -2: two turns a session.
  np.testing.assert_array_equal(out.left[:, 0], [False, True, False, True])
  so_far = [[0, 0], [1, 1], [0, 0], [1, 1]]
  np.testing.assert_array_equal(out.request.so_far[:, 0], so_far)
  np.testing.assert_array_equal(out.after.so_far[1, 0], [2, 2])
  np.testing.assert_array_equal(
    out.request.history[2], _start().request.history
  )
  always = law.replace(shift=jnp.array([50.0, 0.0]))
  out = _played(always, _start(), turns=4)(jax.random.key(5))
  np.testing.assert_array_equal(out.left[:, 0], [False, False, False, True])


def test_nothing_is_offered_twice_in_a_session():
  law, _ = _law(patience=100.0)
  out = _played(law, _start(), turns=TURNS)(jax.random.key(6))
  offered = np.asarray(out.request.candidates)[:, 0].ravel()
  assert np.unique(offered).size == offered.size == TURNS * N
