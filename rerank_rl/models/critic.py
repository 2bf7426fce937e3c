"""The multi-level critic: what a slate is worth after one more token.

Letters as in prefix_lm.py.
"""

from flax import linen as nn
import jax
import jax.numpy as jnp

from rerank_rl.models.prefix_lm import Prompt
from rerank_rl.types import Array

KINDS = 3  # A token inside an item, one that ends an item, one that ends all.


class Critic(nn.Module):
  """Values of children, from their parent's state on the policy's trunk.

  Three heads: the token chosen may leave its item unfinished, complete it, or
  complete the slate. A child's value needs no forward pass of its own, and
  siblings differ. It sees what the policy's state sees, which is no later
  token, and passes no gradient to the policy.

  Attributes:
    levels: L.
    slots: K.
  """

  levels: int
  slots: int

  @nn.compact
  def __call__(
    self, prompt: Prompt, state: Array, level: Array, slot: Array
  ) -> Array:
    """Values f32[B, X, N] by rank.

    Args:
      prompt: of the policy.
      state: f32[B, X, d], the states that choose.
      level: i32[], of the token to choose; may be traced.
      slot: i32[B, X], the slot that it belongs to.
    """
    state = jax.lax.stop_gradient(state)
    keys = jax.lax.stop_gradient(prompt.keys[:, level])
    dtype, width = state.dtype, 2 * state.shape[-1]
    dense = lambda n: nn.Dense(n, dtype=dtype, param_dtype=dtype)
    hidden = nn.gelu(dense(width)(state))
    kind = jnp.where(slot < self.slots - 1, 1, 2)
    kind = jax.nn.one_hot(
      jnp.where(level < self.levels - 1, 0, kind), KINDS, dtype=dtype
    )
    shape = (*state.shape[:2], KINDS, state.shape[-1])
    query = dense(KINDS * state.shape[-1])(hidden).reshape(shape)
    query = jnp.einsum("bxke,bxk->bxe", query, kind)
    base = (dense(KINDS)(hidden) * kind).sum(-1, keepdims=True)
    return base + jnp.einsum("bxe,bne->bxn", query, keys) / width**0.5
