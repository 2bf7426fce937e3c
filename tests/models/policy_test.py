"""The prefix-LM sees what it may and nothing else."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rerank_rl.config import ConfigError, PolicyConfig
from rerank_rl.models import policy as policies
from tests import toys


@pytest.mark.parametrize("head", toys.HEADS)
def test_later_items_cannot_change_earlier_probabilities(head):
  policy, params = toys.policy(head)
  request = toys.request(batch=1)
  slates = jnp.array([[[0, 1, 2], [0, 1, 3], [0, 4, 2]]])
  dist = np.asarray(toys.scores(policy, params, request, slates).dist)
  L = policy.levels
  np.testing.assert_allclose(dist[0, 0, : 2 * L], dist[0, 1, : 2 * L], 1e-5)
  np.testing.assert_allclose(dist[0, 0, :L], dist[0, 2, :L], 1e-5)
  assert not np.allclose(dist[0, 0, 2 * L :], dist[0, 2, 2 * L :])


@pytest.mark.parametrize("head", ("global", "pointer", "local_index"))
def test_even_policies_prefer_no_item(head):
  """Slates are all as likely; as transformers begin, they are far from it."""
  policy, params = toys.policy(head)
  request = toys.request(batch=1)
  slates = jnp.asarray(toys.every_slate())[None]
  score = lambda p: toys.scores(policy, p, request, slates).logp.sum(-1)
  even = score(policy.even(params))
  np.testing.assert_allclose(even, -np.log(slates.shape[1]), atol=1e-4)
  assert np.std(score(params)) > 0.1


def test_padding_candidates_and_history_change_nothing():
  policy, params = toys.policy("global")
  request = toys.request(batch=3)
  slate = jnp.array([[[0, 1, 2]], [[0, 1, 3]], [[1, 0, -1]]])
  logp = toys.scores(policy, params, request, slate).logp
  hidden = request.replace(
    scores=jnp.where(request.candidates < 0, 9.0, request.scores)
  )
  again = toys.scores(policy, params, hidden, slate).logp
  np.testing.assert_allclose(logp, again, atol=1e-5)


@pytest.mark.parametrize("field", ("history", "scores", "candidates"))
def test_everything_in_the_request_is_read(field):
  policy, params = toys.policy("global")
  request = toys.request(batch=1)
  slate = jnp.array([[[0, 1, 2]]])
  logp = toys.scores(policy, params, request, slate).logp
  old = getattr(request, field)
  other = old[:, ::-1] if field == "history" else old * 2 % 20
  if field == "candidates":
    # Another last candidate, which the slate does not hold.
    unused = next(i for i in range(20) if i not in np.asarray(old))
    other = old.at[:, 4].set(unused)
  changed = request.replace(**{field: other.astype(old.dtype)})
  again = toys.scores(policy, params, changed, slate).logp
  assert not np.allclose(logp, again, atol=1e-6)


def test_a_goal_is_one_more_prompt_token():
  policy, _ = toys.policy("global")
  request = toys.request(batch=1).replace(goal=jnp.ones((1, 2)))
  init = jax.jit(policy.init)
  params = init(jax.random.key(0), toys.catalogue(), request)
  slate = jnp.array([[[0, 1, 2]]])
  one = toys.scores(policy, params, request, slate).logp
  two = toys.scores(
    policy, params, request.replace(goal=-request.goal), slate
  ).logp
  assert not np.allclose(one, two, atol=1e-6)


def test_mistakes_are_named():
  with pytest.raises(ConfigError, match=r"head='sid'.*global"):
    policies.make_policy(PolicyConfig(head="sid"), toys.SIZES)
  with pytest.raises(ConfigError, match=r"dim=10.*heads=4"):
    policies.make_policy(PolicyConfig(dim=10, heads=4), toys.SIZES)


def test_pointer_heads_have_one_token_an_item():
  assert toys.policy("global")[0].levels == 3
  assert toys.policy("pointer")[0].levels == 1
  assert toys.policy("local_index")[0].levels == 1
