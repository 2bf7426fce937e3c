"""PRM, NAR4Rec and MMR fill slates as they say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rerank_rl.config import PolicyConfig
from rerank_rl.models import rerankers
from rerank_rl.types import PAD
from tests import toys


def _made(queries):
  """A reranker whose functions are compiled."""
  made = rerankers.make_reranker(PolicyConfig(dim=16), toys.SIZES, queries)
  return rerankers.Reranker(*map(jax.jit, made))


@pytest.mark.parametrize("queries", (1, 3))
def test_order_of_candidates_does_not_matter(queries):
  model = _made(queries)
  request = toys.request(batch=1)
  params = model.init(jax.random.key(0), toys.catalogue(), request)
  logits = model.logits(params, toys.catalogue(), request)
  assert logits.shape == (1, queries, 5)
  order = jnp.array([3, 1, 4, 0, 2])
  other = request.replace(
    candidates=request.candidates[:, order], scores=request.scores[:, order]
  )
  again = model.logits(params, toys.catalogue(), other)
  np.testing.assert_allclose(again, logits[:, :, order], atol=1e-4)


def test_assign_fills_from_the_top_without_repeats():
  request = toys.request(batch=3)
  one = jnp.broadcast_to(jnp.array([0.1, 0.5, 0.3, 0.9, 0.2]), (3, 1, 5))
  slate = rerankers.assign(one, request, 3)
  np.testing.assert_array_equal(slate[0], [3, 1, 2])
  np.testing.assert_array_equal(slate[2], [1, 0, PAD])
  match = jnp.zeros((3, 3, 5)).at[:, 0, 4].set(1).at[:, 1, 4].set(2)
  match = match.at[:, 1, 0].set(1).at[:, 2, 2].set(1)
  np.testing.assert_array_equal(
    rerankers.assign(match, request, 3)[0], [4, 0, 2]
  )


def test_mmr_trades_relevance_for_difference():
  request = toys.request(batch=1)
  relevance = jnp.array([[1.0, 0.9, 0.5, 0.1, 0.0]])
  features = jnp.zeros((20, 2)).at[:, 0].set(1.0)
  # Candidates 0 and 1 are twins, candidate 2 is unlike them.
  features = features.at[request.candidates[0, 2]].set(jnp.array([0.0, 1.0]))
  plain = rerankers.mmr(relevance, features, request, 3, 1.0)
  np.testing.assert_array_equal(plain[0], [0, 1, 2])
  varied = rerankers.mmr(relevance, features, request, 3, 0.5)
  np.testing.assert_array_equal(varied[0, :2], [0, 2])


def test_slot_biases_are_for_training_alone():
  model = _made(1)
  request = toys.request(batch=2)
  params = model.init(jax.random.key(0), toys.catalogue(), request)
  moved = params | {"place": jnp.array([1.0, 2.0, 3.0])}
  one, two = (
    model.logits(p, toys.catalogue(), request) for p in (params, moved)
  )
  np.testing.assert_allclose(one, two)
  trained = model.train_logits(moved, toys.catalogue(), request)
  np.testing.assert_allclose(
    trained - one,
    jnp.broadcast_to(moved["place"][:, None], (2, 3, 5)),
    atol=1e-5,
  )
