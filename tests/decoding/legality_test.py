"""Legality: prefixes are intervals, and only legal tokens have mass."""

import jax
import jax.numpy as jnp
import numpy as np

from rerank_rl.decoding import legality
from rerank_rl.types import PAD
from tests import toys


def _trie():
  catalogue, request = toys.catalogue(), toys.request()
  codes = catalogue.sids[jnp.maximum(request.candidates, 0)]
  trie = legality.build(codes, request.candidates >= 0, request.size)
  return trie, np.asarray(codes), np.asarray(request.candidates)


def test_ranks_are_the_lexicographic_order():
  trie, codes, candidates = _trie()
  for b in range(len(codes)):
    real = [n for n in range(codes.shape[1]) if candidates[b, n] >= 0]
    expected = sorted(real, key=lambda n: tuple(codes[b, n]))
    assert list(trie.order[b, : len(real)]) == expected
    assert (trie.order[b][trie.rank[b]] == np.arange(codes.shape[1])).all()


def test_intervals_are_the_items_that_share_the_prefix():
  trie, _, _ = _trie()
  codes, real = np.asarray(trie.codes), np.asarray(trie.real)
  B, N, L = codes.shape
  for b in range(B):
    for n in range(N):
      if not real[b, n]:
        continue
      for level in range(L):
        prefix = codes[b, n, : level + 1]
        same = (codes[b, :, : level + 1] == prefix).all(1) & real[b]
        inside = np.arange(N) >= int(trie.start[b, level, n])
        inside &= np.arange(N) < int(trie.stop[b, level, n])
        np.testing.assert_array_equal(same, inside)


def test_children_stand_one_for_each_legal_token():
  trie, _, _ = _trie()
  codes = np.asarray(trie.codes)
  B, N, L = codes.shape
  alive = jax.random.bernoulli(jax.random.key(0), 0.7, (B, N, N))
  alive &= trie.real[:, None]
  rank = jnp.broadcast_to(jnp.arange(N), (B, N))
  for level in range(L):
    items = legality.under(trie, alive, rank, level)
    first = np.asarray(legality.children(trie, items, level))
    for b in range(B):
      for x in range(N):
        if not trie.real[b, x]:
          continue
        prefix = codes[b, x, :level]
        legal = np.array(alive[b, x])
        legal &= (codes[b, :, :level] == prefix).all(1)
        tokens = sorted(set(codes[b, legal, level]))
        assert sorted(codes[b, first[b, x], level]) == tokens
        assert not (first[b, x] & ~legal).any()


def test_a_token_is_as_likely_as_the_legal_items_under_it():
  trie, _, _ = _trie()
  codes = np.asarray(trie.codes)
  B, N, L = codes.shape
  alive = jax.random.bernoulli(jax.random.key(0), 0.7, (B, N, N))
  alive &= trie.real[:, None]
  rank = jnp.broadcast_to(jnp.arange(N), (B, N))
  scores = 5 * jax.random.normal(jax.random.key(1), (B, N, N))
  for level in range(L):
    items = legality.under(trie, alive, rank, level)
    first = legality.children(trie, items, level)
    logp = np.asarray(legality.log_probs(trie, scores, items, first, level))
    worth = np.exp(np.asarray(scores, np.float64)) * np.asarray(items)
    for b, x in zip(*np.nonzero(np.asarray(first).any(-1))):
      for n in np.flatnonzero(first[b, x]):
        mine = codes[b, :, level] == codes[b, n, level]
        p = worth[b, x, mine].sum() / worth[b, x].sum()
        np.testing.assert_allclose(logp[b, x, n], np.log(p), atol=1e-5)
    assert (logp[~np.asarray(first)] <= 0).all()


def test_log_probs_survive_nothing_legal_and_very_unlikely_tokens():
  trie, _, _ = _trie()
  B, N, _ = trie.codes.shape
  none = jnp.zeros((B, 1, N), bool)
  scores = jnp.zeros((B, 1, N)).at[..., 0].set(1e4)
  assert (legality.log_probs(trie, scores, none, none, 0) == 0).all()

  def total(scores):
    items = jnp.broadcast_to(trie.real[:, None], none.shape)
    first = legality.children(trie, items, 0)
    logp = legality.log_probs(trie, scores, items, first, 0)
    return jnp.where(first, logp, 0).sum()

  value, grad = jax.value_and_grad(total)(scores)
  assert np.isfinite(value) and np.isfinite(grad).all()


def test_renormalising_ignores_what_is_illegal():
  logits = jnp.array([[1.0, 50.0, 2.0], [0.0, 0.0, 0.0]])
  first = jnp.array([[True, False, True], [False, False, False]])
  logp = legality.renormalise(logits, first)
  expected = jax.nn.log_softmax(jnp.array([1.0, 2.0]))
  np.testing.assert_allclose(logp[0, jnp.array([0, 2])], expected, atol=1e-6)
  assert logp[0, 1] == legality.NEGATIVE
  assert (logp[1] == 0).all()


def test_rules_compose():
  trie, _, _ = _trie()
  B, N = trie.order.shape
  pins = jnp.full((B, 3), PAD, jnp.int32).at[0, 1].set(2)
  groups = jnp.broadcast_to(jnp.arange(N) % 2, (B, N)).astype(jnp.int32)
  rules = [legality.pin(pins), legality.cap(groups, jnp.ones(B, jnp.int32))]
  empty = jnp.full((B, 1, 3), PAD, jnp.int32)
  at = lambda k: jnp.full((B, 1), k, jnp.int32)
  by_position = lambda mask: np.asarray(mask[0, 0])[np.asarray(trie.rank[0])]
  assert by_position(legality.alive(trie, empty, at(1), rules)).sum() == 1
  assert by_position(legality.alive(trie, empty, at(1), rules))[2]
  assert not by_position(legality.alive(trie, empty, at(0), rules))[2]
  # An item of group 0 is shown: the rest of group 0 is capped.
  placed = empty.at[:, :, 0].set(trie.rank[:, :1])
  allowed = by_position(legality.alive(trie, placed, at(2), rules))
  assert not allowed[::2].any() and allowed[1::2].all()


def test_slots_beyond_the_request_size_are_closed():
  trie, _, _ = _trie()
  B = trie.order.shape[0]
  short = trie.replace(size=jnp.ones(B, jnp.int32))
  empty = jnp.full((B, 1, 3), PAD, jnp.int32)
  assert legality.alive(short, empty, jnp.zeros((B, 1), jnp.int32)).any()
  assert not legality.alive(short, empty, jnp.ones((B, 1), jnp.int32)).any()
