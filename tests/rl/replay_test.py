"""The ring of transitions: what it keeps, what it gives."""

import jax
import jax.numpy as jnp
import numpy as np

from rerank_rl.rl import replay


def _block(number, rows=4):
  """Rows that know their block and number; users without features."""
  return {
    "block": jnp.full((rows,), number, jnp.int32),
    "row": jnp.arange(rows)[:, None] + jnp.zeros((1, 2)),
    "user": jnp.zeros((rows, 0)),
  }


def test_places_not_filled_are_not_drawn_and_the_oldest_goes():
  ring = replay.empty(3, _block(0))
  push, draw = jax.jit(replay.push), jax.jit(replay.draw, static_argnums=2)
  for number in range(1, 8):
    ring = push(ring, _block(number))
    found = draw(ring, jax.random.key(number), 400)
    kept = range(max(1, number - 2), number + 1)
    # Zeros stand where nothing was pushed: no block has that number.
    blocks, counts = np.unique(found["block"], return_counts=True)
    np.testing.assert_array_equal(blocks, kept)
    assert counts.min() > 0.5 * 400 / len(kept)
    np.testing.assert_array_equal(np.unique(found["row"]), range(4))
    assert found["user"].shape == (400, 0)


def test_rows_are_drawn_whole():
  ring = replay.empty(2, _block(0))
  block = _block(1)
  block["block"] = jnp.arange(4, dtype=jnp.int32)
  found = replay.draw(replay.push(ring, block), jax.random.key(0), 50)
  np.testing.assert_array_equal(found["block"], found["row"][:, 0])


def test_no_array_is_empty():
  """Checkpoints cannot hold such."""
  leaves = jax.tree.leaves(replay.empty(3, _block(0)))
  assert all(leaf.size for leaf in leaves)
