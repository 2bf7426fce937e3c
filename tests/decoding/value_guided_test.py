"""Value-guided search: the budget, the slates, and what guides it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from rerank_rl.decoding import legality, sample, tree, value_guided
from rerank_rl.types import PAD
from tests import toys

T = toys.SIZES.slots * toys.SIZES.levels
FULL = (0, 3)  # Requests with all five candidates.


@functools.cache
def _search(budget, head="global", leaves=None, seed=None):
  policy, params = toys.policy(head)
  key = None if seed is None else jax.random.key(seed)

  @jax.jit
  def search(params, game):
    return value_guided.value_guided(
      policy, params, toys.value, game, budget, leaves=leaves, key=key
    )

  return search(params, toys.game(policy, params))


def _fed(made, tokens=T):
  """Forward tokens a request: all but the last level's edges."""
  fed = (made.token != PAD) & (made.depth < tokens - 1)
  return np.asarray(fed.sum(1))


@pytest.mark.parametrize("budget", (8, 9, 40))
def test_the_budget_is_kept_and_spent(budget):
  made = _search(budget)
  spent = _fed(made)
  assert (spent <= budget).all()
  # One step is a wave of one token; a completion is at most T - 1.
  assert (spent[list(FULL)] > budget - T).all()


def test_a_short_slate_costs_its_own_tokens_alone():
  """Two candidates make two slates of six tokens: twelve pay for both."""
  slates = np.asarray(_search(12).slate[2])
  assert {tuple(x) for x in slates if x[0] != PAD} == {(0, 1, PAD), (1, 0, PAD)}


def test_leaves_can_be_bounded():
  whole, few = _search(40), _search(40, leaves=3)
  # The same search, ended when its places are taken.
  np.testing.assert_array_equal(few.slate, whole.slate[:, :3])
  assert (_fed(few) < _fed(whole)).any()


def test_the_least_budget_is_the_greedy_slate():
  made = _search(T - 1)
  policy, params = toys.policy("global")
  greedy = toys.greedy(policy, params, toys.request())
  assert made.slate.shape[1] == 1
  np.testing.assert_array_equal(made.slate[:, 0], greedy)
  later = _search(40)
  np.testing.assert_array_equal(later.slate[:, 0], greedy)


def test_walks_with_a_key_are_drawn_from_the_policy():
  """The first slate follows the policy's probabilities; chi-square."""
  policy, params = toys.policy("global")
  request = toys.request(batch=1)

  @jax.jit
  def search(params, game, keys):
    def first(key):
      made = value_guided.value_guided(
        policy, params, toys.value, game, 12, key=key
      )
      return made.slate[0, 0]

    return jax.lax.map(first, keys, batch_size=500)

  draws = 3000
  keys = jax.random.split(jax.random.key(0), draws)
  first = search(params, toys.game(policy, params, request), keys)
  scores = toys.scores(policy, params, request, toys.every_slate()[None])
  logp = np.asarray(scores.logp[0].sum(-1), np.float64)
  expected = draws * np.exp(logp)
  index = {tuple(s): i for i, s in enumerate(toys.every_slate())}
  found = np.bincount(
    [index[tuple(s)] for s in np.asarray(first)], minlength=len(index)
  )
  often = expected >= 5
  pool = lambda x: np.append(x[often], x[~often].sum())
  seen, wanted = pool(found), pool(expected)
  chi_square = (np.square(seen - wanted) / wanted).sum()
  assert chi_square < stats.chi2.ppf(0.999, len(seen) - 1)


def test_branches_of_drawn_walks_are_distinct_slates():
  made = _search(40, seed=1)
  for b in FULL:
    slates = np.asarray(made.slate[b])
    slates = slates[(slates != PAD).any(-1)]
    assert len({tuple(s) for s in slates}) == len(slates) > 3
  assert (_fed(made) <= 40).all()


def test_a_budget_without_a_slate_is_refused():
  with pytest.raises(ValueError, match=r"budget=7 .* takes 8"):
    _search(7)


@pytest.mark.parametrize("head", ("global", "pointer"))
def test_leaves_are_distinct_legal_slates(head):
  made = _search(40, head)
  policy, params = toys.policy(head)
  logp = toys.scores(policy, params, toys.request(), made.slate).logp.sum(-1)
  for b, count in enumerate((5, 4, 2, 5)):
    slates = np.asarray(made.slate[b])
    slates = slates[(slates != PAD).any(-1)]
    assert len(slates) > (1 if count > 2 else 0)
    assert len({tuple(s) for s in slates}) == len(slates)
    for slate in slates:
      real = slate[slate != PAD]
      assert len(set(real)) == len(real) == min(count, 3)
      assert (real < count).all()
  found = np.asarray(made.slate != PAD).any(-1)
  total = np.asarray(tree.on_path(made, made.logp_old).sum(-1))
  np.testing.assert_allclose(total[found], np.asarray(logp)[found], atol=1e-4)


def test_worth_says_where_to_branch():
  """Where first items alone have worth, the best untried one is next."""
  policy, params = toys.policy("pointer")

  def value(wanted, prompt, state, level, left):
    good = jnp.arange(prompt.keys.shape[2]) == wanted
    first = (left == toys.SIZES.slots)[..., None]
    return jnp.where(first & good[None, None], 5.0, 0.0)

  game = toys.game(policy, params)

  @jax.jit
  def search(params, game, wanted):
    worth = functools.partial(value, wanted)
    made = value_guided.value_guided(policy, params, worth, game, 4, 0.0)
    return sample.ranks_of(game.trie, made.slate)[0, :2, 0]

  tried = 0
  for wanted in range(toys.SIZES.candidates):
    greedy, second = np.asarray(search(params, game, wanted))
    if greedy != wanted:
      assert second == wanted
      tried += 1
  assert tried == toys.SIZES.candidates - 1


def test_siblings_have_values_of_their_own():
  policy, params = toys.policy("global")
  game = toys.game(policy, params)
  B, N = game.trie.order.shape
  placed = jnp.full((B, toys.SIZES.slots), PAD, jnp.int32)
  none, zero = jnp.full((B,), PAD, jnp.int32), jnp.zeros((B,), jnp.int32)
  look = jax.jit(value_guided._children, static_argnums=(0, 2))
  logp, worth, legal = look(
    policy, params, toys.value, game, (), game.prompt.root, placed, none, zero
  )
  for b in FULL:
    own = np.asarray(worth[b])[np.asarray(legal[b])]
    assert len(own) > 1 and len(set(own.tolist())) == len(own)
  assert (np.asarray(logp)[~np.asarray(legal)] == legality.NEGATIVE).all()
  assert N == toys.SIZES.candidates
