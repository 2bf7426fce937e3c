"""The user reader: exact where the model is linear and Gaussian."""

import chex
import jax
import jax.numpy as jnp
import numpy as np

from rerank_rl.models import reader


def test_inverse_and_its_gradient():
  rng = np.random.default_rng(0)
  x = rng.normal(size=(3, 12, 5)).astype(np.float32)
  a = jnp.einsum("bnr,bnq->brq", x, x) + jnp.eye(5)[None]
  chex.assert_trees_all_close(
    reader._inverse(a) @ a, jnp.tile(jnp.eye(5), (3, 1, 1)), atol=1e-4
  )
  probe = rng.normal(size=a.shape).astype(np.float32)
  own, known = (
    jax.grad(lambda a, f=f: jnp.sum(f(a) * probe))(a)
    for f in (reader._inverse, jnp.linalg.inv)
  )
  chex.assert_trees_all_close(own, known, atol=1e-4)
