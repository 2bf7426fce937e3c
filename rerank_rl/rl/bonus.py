"""Exploration bonus: what an unsuccessful rollout earns for being new.

i-MENTOR (arXiv 2505.17621): random network distillation's error, scaled per
batch, fading with training, added after advantages are normalised, at the
last token alone, and to unsuccessful rollouts alone.
"""

import jax
import jax.numpy as jnp

from rerank_rl.decoding import tree as trees
from rerank_rl.rl import credit
from rerank_rl.types import PAD, Array, Outcome, TokenTree

MOST = 0.5  # The bonus of a batch's newest rollout, at first.
FADING = 40  # Steps after which it has halved.


def scaled(error: Array, found: Array, step: Array) -> Array:
  """b = MOST (e - min e) / (max e - min e) FADING / (FADING + t).

  Args:
    error: f32[B, G] >= 0, how badly each rollout was predicted.
    found: bool[B, G], the rollouts that exist.
    step: i32[], batches before this one.

  Returns:
    f32[B, G] in [0, MOST]; 0 where all errors are one, or no rollout is.
  """
  high = error.max(where=found, initial=0)
  low = error.min(where=found, initial=high)
  error = jnp.where(found, error, low)
  share = (error - low) / jnp.maximum(high - low, jnp.finfo(error.dtype).tiny)
  return MOST * share * FADING / (FADING + step)


def noise(bonus: Array, found: Array, key: Array) -> Array:
  """The control: Gaussian, of the bonus's own mean and spread, f32[B, G]."""
  draw = jax.random.normal(key, bonus.shape, bonus.dtype)
  return bonus.mean(where=found) + bonus.std(where=found) * draw


def unsuccessful(tree: TokenTree, reward: Array) -> Array:
  """bool[B, G]: R <= 0, or below the group's mean where rewards are graded."""
  found = trees.found(tree)
  return found & ((reward <= 0) | (credit.centre(reward, found) < 0))


def at_last_choice(tree: TokenTree, leaf: Array) -> credit.Credit:
  """Credit that gives what each leaf earns to its last choice alone.

  Args:
    tree: the tree.
    leaf: f32[B, G].

  Returns:
    Credit; nothing where a path holds no choice.
  """
  chosen = trees.choices(tree)
  T = chosen.shape[2]
  place = jnp.arange(T, dtype=jnp.int32)[None, None]
  last = jnp.where(chosen, place, PAD).max(-1, keepdims=True)
  return credit.spread(tree, leaf, where=chosen & (place == last))


def given(tree: TokenTree, outcome: Outcome, bonus: Array) -> credit.Credit:
  """The bonus f32[B, G] as a credit that `credit.blend` adds to another."""
  earns = unsuccessful(tree, outcome.reward)
  return at_last_choice(tree, jnp.where(earns, bonus, 0))
