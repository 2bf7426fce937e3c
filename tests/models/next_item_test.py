"""The next-item policy: causal, packed as alone, and a distribution."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rerank_rl.config import NextItemConfig, PolicyConfig
from rerank_rl.data.sequences import Windows
from rerank_rl.decoding import catalogue, legality
from rerank_rl.decoding import next_item as decoding
from rerank_rl.models import next_item
from rerank_rl.rl import learner
from rerank_rl.training.stages import next_item as sft
from rerank_rl.types import PAD
from tests import toys

ITEMS, WIDTH = 14, 6
SIDS = toys.catalogue(items=ITEMS).sids
TREE = catalogue.build(SIDS)
POLICY = next_item.make_member(
  PolicyConfig(dim=8, layers=1),
  NextItemConfig(history=WIDTH, dropout=0.5),
  next_item.Sizes(TREE.code.size, 3, 3),
)


@pytest.fixture(scope="module")
def params():
  made = jax.jit(POLICY.init)(jax.random.key(0))
  key = jax.random.key(1)
  # Prefixes' own embeddings begin at zero and would hide mistakes.
  return made | {"own": jax.random.normal(key, made["own"].shape)}


def _row(*sequences):
  """Item, place and target rows of width WIDTH that hold the sequences."""
  item = np.full((1, WIDTH), PAD, np.int32)
  place = item.copy()
  flat = list(itertools.chain(*sequences))
  item[0, : len(flat)] = flat
  place[0, : len(flat)] = [i for s in sequences for i in range(len(s))]
  return jnp.asarray(item), jnp.asarray(place)


def test_a_sequence_does_not_see_its_neighbours_in_the_row(params):
  item, place = _row([3, 1], [4, 0, 9])
  both = POLICY.encode(params, TREE, item, place)[0]
  one = POLICY.encode(params, TREE, *_row([3, 1]))[0]
  two = POLICY.encode(params, TREE, *_row([4, 0, 9]))[0]
  np.testing.assert_allclose(both[:2], one[:2], atol=1e-5)
  np.testing.assert_allclose(both[2:5], two[:3], atol=1e-5)
  # Padded on the left, as validation and test rows are.
  left = POLICY.encode(
    params, TREE, jnp.roll(item, 1, 1), jnp.roll(place, 1, 1)
  )[0]
  np.testing.assert_allclose(left[3:6], two[:3], atol=1e-5)


def test_states_are_causal_and_read_the_past(params):
  rows = [_row([3, 1, 4, 7]), _row([3, 1, 4, 8]), _row([3, 2, 4, 7])]
  a, b, c = (POLICY.encode(params, TREE, *row)[0] for row in rows)
  np.testing.assert_allclose(a[:3], b[:3], atol=1e-5)
  assert np.abs(a[3] - b[3]).max() > 1e-2
  assert np.abs(a[2] - c[2]).max() > 1e-3


@functools.partial(jax.jit, static_argnames="policy")
def _log_probs(params, state, policy=POLICY):
  """f32[M], of every item after states f32[1, d], token by token."""
  items = jnp.arange(ITEMS)
  state = jnp.broadcast_to(state, (ITEMS, state.shape[-1]))
  choices = decoding.along(policy, params, TREE, state, items)
  return sum(map(decoding.chosen, choices))


def test_the_probabilities_of_all_items_sum_to_one(params):
  item, place = _row([3, 1, 4])
  state = POLICY.encode(params, TREE, item, place)[:, 2]
  logp = _log_probs(params, state)
  np.testing.assert_allclose(np.exp(logp).sum(), 1, rtol=1e-4)
  assert np.ptp(logp) > 0.1


def test_prefixes_that_share_a_code_differ_by_what_is_their_own(params):
  item, place = _row([3, 1, 4])
  state = POLICY.encode(params, TREE, item, place)[:, 2]
  bare = params | {"own": jnp.zeros_like(params["own"])}
  gap = lambda p: _log_probs(p, state)
  assert np.abs(gap(params) - gap(bare)).max() > 1e-2


def test_the_learner_scores_what_the_decoder_does(params):
  item, place = _row([3, 1, 4])
  state = POLICY.encode(params, TREE, item, place)[:, 2]
  items = jnp.array([[5, 0, 13, PAD]])
  score = jax.jit(learner.score_items, static_argnums=0)
  scores = score(POLICY, params, TREE, state, items)
  want = _log_probs(params, state)[items[0, :3]]
  np.testing.assert_allclose(scores.logp[0, :3].sum(-1), want, atol=1e-5)
  assert (scores.logp[0, 3] == 0).all() and not scores.legal[0, 3].any()
  mass = jnp.where(scores.legal, jnp.exp(scores.dist), 0).sum(-1)[0]
  np.testing.assert_allclose(mass[:3], 1, rtol=1e-5)


def test_samples_come_as_often_as_the_policy_says(params):
  item, place = _row([3, 1, 4])
  state = POLICY.encode(params, TREE, item, place)[:, 2]
  draw = jax.jit(decoding.samples, static_argnums=(0, 4))
  found = draw(POLICY, params, TREE, state, 20_000, jax.random.key(3))
  share = np.bincount(found[0], minlength=ITEMS) / found.shape[1]
  p = np.exp(_log_probs(params, state))
  assert np.abs(share - p).max() < 5 * np.sqrt(p.max() / found.shape[1])


def test_dropout_acts_where_there_is_a_key(params):
  item, place = _row([3, 1, 4])
  encode = lambda key: POLICY.encode(params, TREE, item, place, key)
  assert np.abs(encode(None) - encode(jax.random.key(0))).max() > 1e-2
  state = encode(None)[:, 0]
  step = lambda key: POLICY.step(params, TREE, state, jnp.array([2]), 1, key)
  assert np.abs(step(None) - step(jax.random.key(0))).max() > 1e-2
  np.testing.assert_array_equal(step(None), step(None))


def test_a_wide_beam_is_a_full_ranking(params):
  item, place = _row([3, 1, 4])
  state = POLICY.encode(params, TREE, item, place)[:, 2]
  want = np.asarray(_log_probs(params, state))
  search = jax.jit(decoding.beam, static_argnums=(0, 4))
  beam = lambda width, gone=None: search(
    POLICY, params, TREE, state, width, jax.random.key(5), gone
  )
  items, logp = beam(20)
  assert items[0, :ITEMS].tolist() == np.argsort(-want).tolist()
  np.testing.assert_allclose(logp[0, :ITEMS], np.sort(want)[::-1], atol=1e-5)
  assert (items[0, ITEMS:] == PAD).all()
  assert (logp[0, ITEMS:] <= legality.NEGATIVE).all()
  first = int(items[0, 0])
  few, _ = beam(4)
  assert few.shape == (1, 4) and len(set(few[0].tolist())) == 4
  rank = int(TREE.start[TREE.path[first, -1]])
  rest, logp = beam(20, jnp.array([[rank, PAD]]))
  assert first not in rest[0].tolist()
  np.testing.assert_allclose(np.exp(logp[0, : ITEMS - 1]).sum(), 1, rtol=1e-4)


def test_ties_are_broken_at_random():
  cube = jnp.array(list(itertools.product(range(3), repeat=3)))
  tree = catalogue.build(cube)
  policy = next_item.make_member(
    PolicyConfig(dim=8, layers=1),
    NextItemConfig(history=1),
    next_item.Sizes(40, 3, 3),
  )
  flat = jax.tree.map(jnp.zeros_like, jax.jit(policy.init)(jax.random.key(0)))
  state = jnp.zeros((1, 8))
  best = jax.jit(
    lambda key: decoding.beam(policy, flat, tree, state, 27, key)[0][0, 0]
  )
  firsts = {int(best(jax.random.key(seed))) for seed in range(12)}
  assert len(firsts) > 6, firsts


def _all(policy, params):
  """f32[M], of every item after items 3, 1."""
  state = policy.encode(params, TREE, *_row([3, 1]))[:, 1]
  return _log_probs(params, state, policy=policy)


@pytest.fixture(scope="module")
def pair(params):
  """Two members: `params`, and others."""
  return jax.tree.map(lambda x: jnp.stack([x, jnp.flip(x)]), params)


def _members(pair):
  return [jax.tree.map(lambda x, e=e: x[e], pair) for e in (0, 1)]


def test_members_vote_token_by_token(params, pair):
  both = next_item.ensemble(POLICY, 2)
  state = both.encode(pair, TREE, *_row([3, 1]))[:, 1]
  child = catalogue.children(TREE, jnp.zeros(1, jnp.int32), TREE.fans[0])
  of = lambda policy, params, state: catalogue.log_probs(
    policy.logits(params, TREE, state, child, 0), child
  )
  apart = zip(_members(pair), jnp.split(state, 2, -1), strict=True)
  each = [of(POLICY, own, part) for own, part in apart]
  mean = jax.nn.log_softmax(sum(each) / 2)
  np.testing.assert_allclose(of(both, pair, state), mean, atol=1e-5)
  logp = _all(both, pair)
  np.testing.assert_allclose(jnp.exp(logp).sum(), 1, rtol=1e-5)
  assert abs(logp - _all(POLICY, params)).max() > 0.01


def test_two_of_a_kind_are_one(params):
  twins = jax.tree.map(lambda x: jnp.stack([x, x]), params)
  np.testing.assert_allclose(
    _all(next_item.ensemble(POLICY, 2), twins),
    _all(POLICY, params),
    atol=1e-5,
  )


def test_members_learn_apart(pair):
  """Each by its own loss, whatever the other says."""
  item, place = _row([3, 1], [4, 0, 9])
  batch = Windows(item, place, jnp.where(item >= 0, 5, PAD))

  @jax.jit
  def grad(params):
    key = jax.random.key(2)
    loss = lambda p: sft.cross_entropy(still, TREE, p, batch, key)[0]
    return jax.grad(loss)(params)

  still = next_item.make_member(
    PolicyConfig(dim=8, layers=1),
    NextItemConfig(history=WIDTH, dropout=0.0, item_dropout=0.0),
    next_item.Sizes(TREE.code.size, 3, 3),
  )
  together = grad(pair)
  for e, own in enumerate(_members(pair)):
    alone = grad(jax.tree.map(lambda x: x[None], own))
    mine = jax.tree.map(lambda x, e=e: x[e : e + 1], together)
    close = functools.partial(np.testing.assert_allclose, atol=1e-4)
    jax.tree.map(close, mine, alone)


def test_members_drop_out_apart(params):
  twins = jax.tree.map(lambda x: jnp.stack([x, x]), params)
  both = next_item.ensemble(POLICY, 2)
  state = both.encode(twins, TREE, *_row([3, 1]), jax.random.key(3))[0, :2]
  one, other = jnp.split(state, 2, -1)
  assert abs(one - other).max() > 0.01
