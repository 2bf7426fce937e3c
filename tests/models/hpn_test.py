"""HPN: Plackett-Luce over items; its critic: every level, nothing later."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rerank_rl.config import PolicyConfig
from rerank_rl.decoding import sample
from rerank_rl.models import hpn
from tests import toys

L, K = toys.SIZES.levels, toys.SIZES.slots
CONFIG = PolicyConfig(head="hpn", dim=16)


@functools.cache
def _game(head):
  policy, params = toys.policy(head)
  return policy, params, toys.game(policy, params)


@pytest.mark.parametrize("head", ["hpn", "hpn_expected"])
def test_slates_are_plackett_luce_draws(head):
  """By its definition: items' scores alone, one taken after the other."""
  policy, params, game = _game(head)
  score = np.asarray(game.prompt.keys[0, 0, :, 0])  # A row of five items.
  assert score.std() > 0.3
  slates = toys.every_slate()
  wide = np.broadcast_to(slates, (4, *slates.shape))
  scores = toys.scores(policy, params, toys.request(), wide)
  ranks = np.asarray(game.trie.rank)[0][slates]
  weight = np.exp(score)[ranks]
  left = np.exp(score).sum() - np.cumsum(weight, 1) + weight
  want = np.log(weight / left).sum(1)
  np.testing.assert_allclose(scores.logp[0].sum(-1), want, atol=2e-5)


def test_an_items_probability_is_its_tokens_product():
  """exp(score) = prod_l p_l, hence sums to one over all codes there are."""
  every = toys.SIZES.codes**L
  sizes = toys.SIZES._replace(candidates=every)
  catalogue = toys.catalogue(items=every)
  request = toys.request(items=every, sizes=sizes)
  request = jax.tree.map(lambda x: x[:1], request)  # The full row.
  request = request.replace(scores=jnp.zeros_like(request.scores))
  for head in ("hpn", "hpn_expected"):
    policy, params = toys.policy(head)
    game = toys.prepare(policy, params, catalogue, request)
    score = game.prompt.keys[0, 0, :, 0]
    np.testing.assert_allclose(jnp.exp(score).sum(), 1, atol=1e-5)


@pytest.mark.parametrize("head", ["hpn", "hpn_expected"])
def test_the_rankers_scores_count_as_much_as_was_learnt(head):
  policy, params, game = _game(head)
  request = toys.request()
  more = request.replace(scores=request.scores + jnp.arange(5.0)[None])
  heavy = {**params, "prior": jnp.float32(0.7)}
  one, two = (toys.game(policy, heavy, r) for r in (request, more))
  gap = two.prompt.keys - one.prompt.keys
  want = 0.7 * jnp.arange(5.0)[game.trie.order]
  for level in range(L):
    np.testing.assert_allclose(gap[:, level, :, 0], want, atol=1e-5)


def test_no_logit_is_dead():
  """A code that no item has neither takes probability nor gradient."""
  policy, params, _ = _game("hpn")
  catalogue, request = toys.catalogue(), toys.request()
  sids = catalogue.sids.at[:, 1].set(jnp.minimum(catalogue.sids[:, 1], 1))
  fewer = catalogue.replace(sids=sids)  # Nothing has code 2 at level 1.

  def score(params):
    game = sample.prepare(policy, params, fewer, request)
    real = game.trie.real[:, None, :, None]
    return jnp.where(real, game.prompt.keys, 0).sum()

  grad = jax.jit(jax.grad(score))(params)["heads"]
  assert np.abs(grad[1, :, 2]).max() == 0 < np.abs(grad[1, :, 1]).max()


def _at(far):
  """Requests of sessions that are so far."""
  request = toys.request()
  return request.replace(so_far=jnp.full((len(request.size), 2), far))


@functools.cache
def _critic():
  made = hpn.LevelCritic(CONFIG, toys.SIZES)
  catalogue, request = toys.catalogue(), _at(0.0)
  share = jnp.full(request.candidates.shape, 0.2)
  slate = jnp.zeros((4, K), jnp.int32)
  args = (catalogue, request, share, slate)
  init = jax.jit(functools.partial(made.init, method="initialise"))
  params = init(jax.random.key(3), *args)["params"]
  # Values start at nothing: move them.
  return made, toys.scaled(params, 1.5, 0.05)


def test_the_critic_sees_no_later_token_and_every_answer_above():
  made, params = _critic()
  catalogue, request = toys.catalogue(), toys.request()
  slate = jnp.asarray(toys.every_slate())[:4]
  clicked = slate % 2 == 0

  @jax.jit
  def read(slate, clicked):
    args = {"params": params}, catalogue, request, slate, clicked
    return made.apply(*args, method="prefixes")

  one = read(slate, clicked)
  for slot in range(K):
    # Another item here: its own level 0 is chosen before any of its tokens.
    two = read(slate.at[:, slot].set((slate[:, slot] + 1) % 5), clicked)
    np.testing.assert_array_equal(one[:, :slot], two[:, :slot])
    np.testing.assert_array_equal(one[:, slot, 0], two[:, slot, 0])
    assert np.abs(one - two)[:, slot, 1:].max() > 1e-4
    # Another answer: what the slot itself chooses knows nothing of it.
    two = read(slate, clicked.at[:, slot].set(~clicked[:, slot]))
    np.testing.assert_array_equal(one[:, : slot + 1], two[:, : slot + 1])
    later = np.abs(one - two)[:, slot + 1 :]
    assert (later > 1e-5).all()


def test_critics_know_how_far_a_session_is_and_policies_do_not():
  made, params = _critic()
  catalogue = toys.catalogue()
  share = jnp.full(_at(0.0).candidates.shape, 0.2)

  @jax.jit
  def value(request):
    args = {"params": params}, catalogue, request, share
    return made.apply(*args, method="state")

  assert np.abs(value(_at(1.0)) - value(_at(5.0))).min() > 1e-5
  for head in ("hpn", "global"):
    policy, own, _ = _game(head)
    one, two = (toys.game(policy, own, _at(far)) for far in (1.0, 5.0))
    np.testing.assert_array_equal(one.prompt.keys, two.prompt.keys)


def test_the_levels_weights_learn():
  made, params = _critic()
  catalogue, request = toys.catalogue(), toys.request()
  share = jnp.full(request.candidates.shape, 0.2)

  def value(params):
    return made.apply(
      {"params": params}, catalogue, request, share, method="state"
    ).sum()

  assert np.abs(jax.jit(jax.grad(value))(params)["mix"]).min() > 1e-5
