"""The catalogue's tree against brute force; pure, so that it shards."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rerank_rl.decoding import catalogue, legality
from rerank_rl.training import mesh as mesh_lib
from rerank_rl.types import PAD
from tests import toys

SIZES = (3, 3)  # Codes, levels.
SIDS = np.asarray(toys.catalogue(items=14).sids)
TREE = catalogue.build(SIDS)
WIDTH = max(TREE.fans)
CHILDREN = jax.jit(catalogue.children, static_argnums=2)
DESCEND = jax.jit(catalogue.descend, static_argnums=3)
PREFIXES = [
  prefix
  for length in range(SIZES[1] + 1)
  for prefix in itertools.product(range(SIZES[0]), repeat=length)
]


def _under(prefix):
  """Items that a prefix leads to."""
  same = (SIDS[:, : len(prefix)] == np.array(prefix, int)).all(1)
  return set(np.flatnonzero(same).tolist())


def _node(prefix):
  node = jnp.int32(catalogue.ROOT)
  for code in prefix:
    node = DESCEND(TREE, node, jnp.int32(code), WIDTH)
  return node


@pytest.mark.parametrize("prefix", PREFIXES, ids=str)
def test_a_prefix_is_an_interval_and_its_children_are_the_legal_tokens(prefix):
  node, items = _node(prefix), _under(prefix)
  if not items:
    assert int(node) == PAD
    assert (CHILDREN(TREE, node, WIDTH) == PAD).all()
    return
  order = np.asarray(TREE.order)
  assert set(order[int(TREE.start[node]) : int(TREE.stop[node])]) == items
  child = np.asarray(CHILDREN(TREE, node, WIDTH))
  legal = sorted({SIDS[i, len(prefix)] for i in items if len(prefix) < 3})
  codes = np.asarray(catalogue.token_of(TREE, child))
  assert codes[codes != PAD].tolist() == legal
  assert (codes[len(legal) :] == PAD).all()
  if len(prefix) == SIZES[1]:
    assert int(catalogue.item_at(TREE, node)) in items and len(items) == 1


def test_paths_lead_to_their_items():
  leaf = TREE.path[:, -1]
  np.testing.assert_array_equal(
    catalogue.item_at(TREE, leaf), np.arange(len(SIDS))
  )
  np.testing.assert_array_equal(catalogue.token_of(TREE, TREE.path), SIDS)


@pytest.mark.parametrize("seed", range(3))
def test_what_is_gone_takes_its_tokens_along(seed):
  random = np.random.default_rng(seed)
  gone = random.permutation(len(SIDS))[:9]
  ranks = jnp.asarray(np.r_[np.argsort(TREE.order)[gone], PAD])
  for prefix in PREFIXES:
    left = _under(prefix) - set(gone.tolist())
    if len(prefix) == SIZES[1] or not _under(prefix):
      continue
    child = CHILDREN(TREE, _node(prefix), WIDTH, ranks)
    codes = np.asarray(catalogue.token_of(TREE, child))
    want = {SIDS[i, len(prefix)] for i in left}
    assert set(codes[np.asarray(child) != PAD].tolist()) == want


def test_fans_are_as_wide_as_needed():
  nodes = np.arange(TREE.code.size)
  counts = np.diff(TREE.child)
  depth = np.zeros(nodes.size, int)
  for level in range(SIZES[1]):
    depth[np.unique(TREE.path[:, level])] = level + 1
  want = [counts[depth == level].max() for level in range(SIZES[1])]
  assert list(TREE.fans) == want
  assert counts[depth == SIZES[1]].max() == 0


def test_no_child_means_no_probability():
  child = jnp.array([[PAD, PAD]])
  logp = catalogue.log_probs(jnp.ones((1, 2)), child)
  assert (logp == 0).all()
  child = catalogue.children(TREE, jnp.int32(catalogue.ROOT), WIDTH + 1)
  logp = catalogue.log_probs(jnp.arange(WIDTH + 1.0), child)
  assert (logp[child == PAD] == legality.NEGATIVE).all()
  np.testing.assert_allclose(np.exp(logp).sum(), 1, rtol=1e-5)


def test_one_program_under_jit_vmap_and_a_sharded_mesh():
  nodes = jnp.asarray(
    np.random.default_rng(0).integers(PAD, TREE.code.size, (16, 5)), jnp.int32
  )
  logits = jax.random.normal(jax.random.key(1), (16, 5, WIDTH))

  def step(tree, node, logits):
    child = catalogue.children(tree, node, WIDTH)
    return child, catalogue.log_probs(logits, child)

  want = jax.jit(step)(TREE, nodes, logits)
  by_row = jax.jit(jax.vmap(step, in_axes=(None, 0, 0)))
  rows = by_row(TREE, nodes, logits)
  mesh = mesh_lib.make()
  assert mesh.size == 8
  put = lambda x: jax.device_put(x, mesh_lib.batch_sharding(mesh))
  spread = jax.jit(step)(
    jax.device_put(TREE, mesh_lib.replicated(mesh)), put(nodes), put(logits)
  )
  assert spread[0].sharding.is_equivalent_to(mesh_lib.batch_sharding(mesh), 3)
  for got in (rows, spread):
    np.testing.assert_array_equal(got[0], want[0])
    np.testing.assert_allclose(got[1], want[1], rtol=1e-6, atol=1e-6)


def test_one_item_is_a_catalogue_too():
  tree = catalogue.build(np.array([[4, 2]]))
  assert tree.fans == (1, 1)
  assert int(catalogue.item_at(tree, tree.path[0, -1])) == 0


@pytest.mark.parametrize(
  "sids, words",
  (
    (np.array([[0, 1], [2, 2], [0, 1]]), r"items 0 and 2|items 2 and 0"),
    (np.array([[0, -1]]), "codes >= 0"),
    (np.zeros((0, 2), int), "not empty"),
    (np.zeros(3, int), "levels"),
  ),
)
def test_what_is_no_catalogue_is_refused(sids, words):
  with pytest.raises(ValueError, match=words):
    catalogue.build(sids)
