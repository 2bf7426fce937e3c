"""Trees of a fixed shape: nodes by depth, siblings, samples, cost."""

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from rerank_rl.decoding import fixed_tree, legality, sample, tree
from rerank_rl.rl import learner
from rerank_rl.types import PAD
from tests import toys

T = toys.SIZES.slots * toys.SIZES.levels


def _trees(branching, keys=1):
  policy, params = toys.policy("global")

  @jax.jit
  def grow(params, game, keys):
    one = lambda key: fixed_tree.fixed_tree(
      policy, params, game, branching, key
    )
    return jax.vmap(one)(keys)

  keys = jax.random.split(jax.random.key(0), keys)
  return grow(params, toys.game(policy, params), keys)


def test_shape_and_distinct_siblings():
  branching = (2, 1, 1, 3, 2)
  made = jax.tree.map(lambda x: x[0], _trees(branching))
  token, parent, depth = map(np.asarray, (made.token, made.parent, made.depth))
  for b in (0, 3):  # Requests with all five candidates.
    real = np.flatnonzero(token[b] != PAD)
    for t, wanted in enumerate(np.cumprod([*branching, *[1] * (T - 5)])):
      # A prefix of few items may have fewer children than asked for.
      assert 1 <= (depth[b, real] == t).sum() <= wanted
    pairs = [(parent[b, e], token[b, e]) for e in real]
    assert len(set(pairs)) == len(pairs)
    children = np.bincount(parent[b, real] + 1, minlength=token.shape[1] + 1)
    limit = [*branching, *[1] * (T - 5)]
    for e in real:
      t = depth[b, e] + 1
      assert children[e + 1] <= (limit[t] if t < T else 0)
  slates = {tuple(s) for s in np.asarray(made.slate[0]) if s[0] != PAD}
  ends = (np.asarray(made.path[0])[:, -1] != PAD).sum()
  assert len(slates) == ends > 3


def test_one_child_a_node_is_an_ordinary_sample():
  made = _trees((1,), keys=3000)
  chains = toys.chains(*toys.policy("global"), jax.random.key(1), 3000)
  one = np.asarray(made.slate)[:, 0, 0] @ np.array([25, 5, 1])
  two = np.asarray(chains.slate)[0] @ np.array([25, 5, 1])
  kinds = np.unique(np.concatenate([one, two]))
  counts = np.array([[(x == k).sum() for k in kinds] for x in (one, two)])
  common = counts.sum(0) >= 10
  table = np.c_[counts[:, common], counts[:, ~common].sum(1)]
  table = table[:, table.sum(0) > 0]
  assert table.shape[1] > 5
  assert stats.chi2_contingency(table).pvalue > 1e-3


def test_log_probs_are_the_policys():
  made = jax.tree.map(lambda x: x[0], _trees((4, 2)))
  logp = tree.on_path(made, made.logp_old).sum(-1)
  policy, params = toys.policy("global")
  scores = toys.scores(policy, params, toys.request(), made.slate)
  np.testing.assert_allclose(logp, scores.logp.sum(-1), atol=1e-4)


def test_forward_tokens():
  assert fixed_tree.forward_tokens((4, 4, 4), 3) == 4 + 16
  assert fixed_tree.forward_tokens((1,), 18) == 17
  assert fixed_tree.forward_tokens((2, 3), 5) == 2 + 6 + 6 + 6
  assert fixed_tree.leaves((2, 3)) == 6


def test_a_slot_that_rules_leave_empty_is_fed_as_the_learner_feeds_it():
  """One item is pinned to two slots: the second stays empty, the third not."""
  policy, params = toys.policy("global")
  rules = [legality.pin(jnp.full((4, 3), PAD).at[0].set(jnp.array([3, 3, -1])))]

  @jax.jit
  def both(params, game):
    made = fixed_tree.fixed_tree(
      policy, params, game, (1, 1, 1, 1, 1, 1, 3), jax.random.key(0), rules
    )
    chains = sample.chains(policy, params, game, jax.random.key(1), 3, 1, rules)
    scores = learner.score_slates(policy, params, game, made.slate, rules)
    return made, chains, scores

  made, chains, scores = both(params, toys.game(policy, params))
  for found in (made, chains):
    slate = np.asarray(found.slate)[0]
    slate = slate[slate[:, 0] != PAD]  # A node may lack children.
    assert len(slate) and (slate[:, :2] == (3, PAD)).all()
    assert (slate[:, 2] >= 0).all()
  np.testing.assert_allclose(
    tree.on_path(made, made.logp_old), scores.logp, atol=1e-5
  )
