"""The multi-level critic: what is still to come after one more token.

Letters as in prefix_lm.py.
"""

from collections.abc import Callable
import functools
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from rerank_rl.models.policy import Policy
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
    slots: K, of whole slates.
    offset: where values start: a typical slate's worth, shared by its slots.
  """

  levels: int
  slots: int
  offset: float = 0.0

  @nn.compact
  def __call__(
    self, prompt: Prompt, state: Array, level: Array, left: Array
  ) -> Array:
    """Values f32[B, X, N] by rank of this item and all later ones.

      v(s, i) = left offset + base(s) + query(s) . key(i)

    Args:
      prompt: of the policy.
      state: f32[B, X, d], the states that choose.
      level: i32[], of the token to choose; may be traced.
      left: i32[B, X], slots still to fill, its own included.
    """
    state, keys = jax.lax.stop_gradient((state, prompt.keys[:, level]))
    dtype, width = state.dtype, state.shape[-1]
    dense = functools.partial(nn.Dense, dtype=dtype, param_dtype=dtype)
    hidden = nn.gelu(dense(2 * width)(state))
    kind = jnp.where(left > 1, 1, 2)
    kind = jax.nn.one_hot(
      jnp.where(level < self.levels - 1, 0, kind), KINDS, dtype=dtype
    )
    none = nn.initializers.zeros  # Prefixes, and children, start alike.
    base = dense(KINDS, kernel_init=none, name="base")(hidden) * kind
    query = dense(KINDS * width, kernel_init=none, name="query")(hidden)
    query = query.reshape(*state.shape[:2], KINDS, width)
    query = jnp.einsum("bxke,bxk->bxe", query, kind)
    dot = jnp.einsum("bxe,bne->bxn", query, keys) / width**0.5
    per_slot = self.param(
      "offset", nn.initializers.constant(self.offset / self.slots), (), dtype
    )
    start = per_slot * left[..., None]
    return start + base.sum(-1, keepdims=True) + dot


def value_of(policy: Policy, params: Any) -> Callable[..., Array]:
  """Critic parameters as the pure function that search and credit call."""
  critic = Critic(policy.levels, policy.slots)
  return functools.partial(critic.apply, {"params": params})
