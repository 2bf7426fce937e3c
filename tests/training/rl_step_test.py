"""The RL step where a critic learns beside the policy, and what it reports."""

import contextlib
import dataclasses
import functools
import types as stdlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rerank_rl.config import RLConfig, TrainConfig
from rerank_rl.decoding import legality, tree
from rerank_rl.models.critic import Critic
from rerank_rl.rl.credit import Credit
from rerank_rl.rl.learner import PathScores
from rerank_rl.rl.objectives import Loss
from rerank_rl.training import state as states
from rerank_rl.training.stages import rl
from rerank_rl.types import PAD, Impression, Outcome
from tests import toys
from tests.training import setting_test

PARTS = ("policy", "critic")


def _batch():
  request = toys.request()
  nothing = np.zeros((request.candidates.shape[0], toys.SIZES.slots), np.int32)
  return Impression(
    request, nothing, nothing[..., None] * 1.0, nothing * 1.0, nothing[:, :0]
  )


def _equal(impression, slate):
  """Every slate is worth 1: nothing to learn but that."""
  reward = jnp.ones(slate.shape[:2])
  share = jnp.full(slate.shape, 1 / slate.shape[2])
  return Outcome(reward, share, 0 * reward)


def _different(impression, slate):
  """Each item has a worth of its own."""
  per_item = jnp.where(slate == PAD, 0, jnp.sin(3.0 * slate))
  reward = per_item.sum(-1)
  return Outcome(reward, per_item, 0 * reward)


@functools.cache
def _critic():
  """A critic's fresh parameters."""
  policy, params = toys.policy("global")
  critic = Critic(policy.levels, policy.slots)

  @jax.jit
  def init(prompt):
    slot = jnp.zeros((prompt.root.shape[0], 1), jnp.int32)
    root = prompt.root[:, None]
    return critic.init(jax.random.key(1), prompt, root, 0, slot)["params"]

  return init(toys.game(policy, params).prompt)


@functools.cache
def _stepped(explore, credit, reward, rate=0.01, **more):
  """(state before, after, metrics) of one step."""
  train = TrainConfig(
    learning_rate=rate, warmup_steps=0, weight_decay=0.0, ema=0.9
  )
  tx = states.optimizer(train, PARTS)
  policy, params = toys.policy("global")
  own = _critic()
  state = states.create({"policy": params, "critic": own}, tx)
  parts = {"explore": explore, "credit": credit, **more}
  config = RLConfig(group=4, budget=16, kl=0.0, entropy=0.0, **parts)
  method = rl.Method(policy, config, tx, train.ema, 0.9)
  step = jax.jit(functools.partial(rl.step, method), static_argnums=1)
  key = jax.random.key(2)
  after, metrics = step(toys.catalogue(), reward, params, state, _batch(), key)
  return state, after, metrics


def _moved(one, two, part):
  pairs = zip(
    jax.tree.leaves(one.params[part]), jax.tree.leaves(two.params[part])
  )
  return max(float(np.abs(a - b).max()) for a, b in pairs)


@pytest.mark.parametrize("credit", ("group+sibling", "confined"))
def test_a_critic_learns_and_leaves_the_policy_alone(credit):
  """Without differences between slates, the critic's loss is all there is."""
  before, after, metrics = _stepped("value_guided", credit, _equal)
  assert _moved(before, after, "critic") > 1e-3
  assert _moved(before, after, "policy") == 0
  dead, requests = metrics["zero_variance_groups"]
  assert dead == requests == 4
  # Places that the search left empty are not counted as rewards.
  total, leaves = metrics["reward"]
  assert total == leaves and 4 < leaves < 16


def test_the_critics_advantages_move_the_policy():
  before, after, metrics = _stepped("chains", "critic", _different)
  assert _moved(before, after, "policy") > 1e-3
  assert metrics["zero_variance_groups"][0] < 4


def test_a_batch_is_fitted_in_as_many_steps_as_asked():
  """The rollouts stay, the loss on them falls."""
  out = [
    _stepped(
      "chains",
      "centred",
      _different,
      rate=1e-4,
      objective="uniform_q",
      epochs=epochs,
    )
    for epochs in (1, 4)
  ]
  assert [int(after.step) for _, after, _ in out] == [1, 4]
  assert len({float(seen["reward"][0]) for *_, seen in out}) == 1
  first, last = (float(seen["loss"][0]) for *_, seen in out)
  assert last < 0.9 * first


class _AskedError(Exception):
  """The explorer has its value; all that follows takes long to compile."""


def test_the_search_asks_the_critic_that_learns(monkeypatch):
  """And no average or copy of it, which would lag behind."""
  policy, params = toys.policy("global")
  critic = Critic(policy.levels, policy.slots)
  config = RLConfig(explore="value_guided", credit="sibling", group=4)
  method = rl.Method(policy, config, None, 0.9, 0.9)

  @jax.jit
  def said(game, learnt, average):
    """Of the first tokens: by the explorer's value, and by the critic."""
    first = game.prompt, game.prompt.root[:, None], 0, np.zeros((4, 1), int)
    out = [critic.apply({"params": learnt}, *first)]

    def search(policy, params, value, *args, **kwargs):
      out.append(value(*first))
      raise _AskedError

    monkeypatch.setattr(rl.sample, "prepare", lambda *args, **kwargs: game)
    monkeypatch.setattr(rl.value_guided, "value_guided", search)
    state = states.TrainState(
      {"policy": params, "critic": learnt},
      None,
      jnp.zeros((), jnp.int32),
      {"policy": params, "critic": average},
    )
    key, catalogue = jax.random.key(2), toys.catalogue()
    with contextlib.suppress(_AskedError):
      rl.step(method, catalogue, _equal, params, state, _batch(), key)
    return out

  rng = np.random.default_rng(0)
  noise = lambda x: np.float32(x + rng.normal(size=x.shape))
  # A fresh critic says the same of all.
  one, two = (jax.tree.map(noise, _critic()) for _ in range(2))
  game = toys.game(policy, params)
  for learnt, average in ((one, two), (two, one)):
    want, found = said(game, learnt, average)
    np.testing.assert_array_equal(found, want)
  assert np.abs(found - said(game, one, two)[0]).max() > 0.1


def test_rl_starts_where_sft_and_the_critic_ended(monkeypatch):
  """Who is kept, and chosen on validation, is the policy."""
  _, params = toys.policy("global")
  other = toys.scaled(params, 2.0)
  critic = toys.scaled(_critic(), 1, 0.1)
  config = RLConfig(
    explore="value_guided", credit="confined", reward="labels", group=4
  )
  made = dataclasses.replace(
    setting_test.setting(protocol="recovery", rl=config),
    params={"other": other, "glorank_sft": params},
    critic=critic,
  )
  ranked, seen = [], {}

  def ranker(setting):
    def rank(learnt, impressions):
      ranked.append(learnt)
      return impressions.slate

    return rank

  def fit(setting, stage, state, step, batches, config, watch, part):
    seen.update(state=state, step=step, watch=watch, part=part)

  monkeypatch.setattr(rl, "greedy_ranker", ranker)
  monkeypatch.setattr(rl.fitting, "local_batches", lambda *args: None)
  monkeypatch.setattr(rl.fitting, "fit", fit)
  rl._fit(made)
  start = {"policy": params, "critic": critic}
  same = functools.partial(jax.tree.map, np.testing.assert_array_equal)
  same(seen["state"].params, start)
  same(seen["state"].ema, start)
  # KL leads back to where it started.
  same(seen["step"].args[-1], params)
  learnt = {"policy": object(), "critic": object()}
  assert seen["part"](learnt) is learnt["policy"]
  evaluate, select = seen["watch"]
  evaluate(learnt)
  assert ranked == [learnt["policy"]] and select == ("ndcg", True)


# A shared edge of weight 2/3, four of 1/3; then two chains, of four edges of
# 1/3, and a leaf that the explorer has not found.
TOKENS = np.array(
  [[[0, 0], [0, 1], [1, 0]], [[0, 1], [1, 1], [PAD, PAD]]], np.int32
)
# Of new to old probabilities; three edges, of weight 4/3, leave [.8, 1.2].
RATIOS = np.array(
  [[[1.3, 0.85], [1.3, 0.7], [1.1, 1.0]], [[1.0, 0.5], [1.15, 0.9], [9, 9]]]
)


def test_what_is_watched_by_hand():
  """Shares are of weight; levels are apart; only what is there counts."""
  B, G, T = TOKENS.shape
  real, rng = TOKENS != PAD, np.random.default_rng(0)
  # Of three ranks the last is legal now and then; one alone, once.
  legal = np.array([True, True, False]) | (rng.random((B, G, T, 1)) < 0.5)
  legal[0, 2, 1] = [True, False, False]
  legal &= real[..., None]
  legal[0, 1, 0] = legal[0, 0, 0]  # One edge, one distribution.
  log = lambda x: np.log(np.where(legal, x, 1))

  def dist():
    p = rng.random(legal.shape) * legal
    p[0, 1, 0] = p[0, 0, 0]
    p /= np.maximum(p.sum(-1, keepdims=True), 1e-9)
    return p, np.float32(np.where(legal, log(p), legality.NEGATIVE))

  (p, now), (q, before) = dist(), dist()
  logp = np.log([[[0.6, 0.5], [0.6, 0.3], [0.2, 1]], [[0.5, 0.4]] * 3])
  old = np.where(real, logp - np.log(RATIOS), 0)
  # What is not there was worth nothing, whatever the reward says.
  reward = np.float32([[1, 2, 4], [3, 3, 99]])
  method = rl.Method(
    stdlib.SimpleNamespace(levels=2), RLConfig(clip=0.2), None, 0.9, 0.9
  )

  @jax.jit
  def watched(logp, old):
    slate, mean = jnp.asarray(TOKENS[..., :1]), jnp.zeros((B, G, T))
    token = jnp.asarray(TOKENS)
    made = tree.from_chains(token, old, mean, slate, old, True)
    made = tree.merge(made)
    scores = PathScores(logp, now, legal, jnp.maximum(token, 0))
    outcome = Outcome(reward, reward[..., None], 0 * reward)
    # Blame alone is a signal, too.
    none = jnp.zeros(made.token.shape)
    given = Credit(none, none.at[0, 1].set(-1.0), 0 * reward)
    before_scores = scores._replace(dist=before)
    main = Loss(jnp.array(5.0), jnp.array(2.0))
    return rl.diagnostics(
      method, made, outcome, given, scores, before_scores, main
    )

  out = watched(jnp.float32(np.where(real, logp, 0)), jnp.float32(old))
  level = lambda each, at: (each[:, :, at].sum(), 5)  # Five chains are there.
  entropy, far = -(p * log(p)).sum(-1), (p * (log(p) - log(q))).sum(-1)
  want = {
    "loss": (5, 2),
    "reward": (13, 5),
    "zero_variance_groups": (1, 2),
    "clip_share": (4 / 3, 10 / 3),
    "entropy_level_0": level(entropy, 0),
    "entropy_level_1": level(entropy, 1),
    "kl_level_0": level(far, 0),
    "kl_level_1": level(far, 1),
  }
  assert set(out) == set(want)
  for name, pair in want.items():
    np.testing.assert_allclose(out[name], pair, rtol=1e-5, err_msg=name)
