import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rerank_rl.world import click_law

LAW = click_law.Law()


expected_clicks = jax.jit(click_law.expected_clicks)


def slates(shape=(3, 5), dim=4, dtype=np.float32):
  random = np.random.default_rng(0)
  rel = random.normal(size=shape)
  z = random.normal(size=(*shape, dim))
  z = z / np.linalg.norm(z, axis=-1, keepdims=True)
  return rel.astype(dtype), z.astype(dtype), np.ones(shape, bool)


def by_hand(rel, z, fatigue, contrast):
  """One slate, straight from the module's equations, in Python floats."""

  def sigmoid(x):
    return 1 / (1 + np.exp(-x))

  clicks, examined = [], 1.0
  for t in range(len(rel)):
    weights = [0.7 ** (t - 1 - s) for s in range(t)]
    cosines = [max(float(np.dot(z[t], z[s])), 0.0) for s in range(t)]
    tired = 0.0
    if t:
      tired = np.dot(weights, cosines) / sum(weights)
      tired *= fatigue * (1 - 0.5**t)
    step = contrast * (rel[t] - rel[t - 1]) if t else 0.0
    p = sigmoid(rel[t] - tired + step)
    clicks.append(examined * p)
    examined *= sigmoid(1.2 + 2 * (p - 0.3))
  return np.array(clicks)


@pytest.mark.parametrize("fatigue,contrast", [(2.5, 0.16), (0.0, 1.0), (4, 0)])
def test_agrees_with_the_equations(fatigue, contrast):
  rel, z, mask = slates()
  law = click_law.Law(fatigue=fatigue, contrast=contrast)
  clicks = expected_clicks(law, rel, z, mask)
  for b in range(len(rel)):
    np.testing.assert_allclose(
      clicks[b],
      by_hand(rel[b], z[b], fatigue, contrast),
      rtol=1e-5,
    )


def test_monte_carlo_agrees_with_the_closed_form():
  rel, z, mask = slates(shape=(2, 5))
  mask[1, 3:] = False
  count = 40_000
  draw = jax.vmap(lambda key: click_law.sample_clicks(key, LAW, rel, z, mask))
  clicks = jax.jit(draw)(jax.random.split(jax.random.key(1), count))
  expected = np.asarray(expected_clicks(LAW, rel, z, mask))
  error = np.abs(np.asarray(clicks).mean(0) - expected)
  assert (error <= 4.5 * np.sqrt(expected * (1 - expected) / count)).all()
  assert not np.asarray(clicks)[:, 1, 3:].any()


def test_a_slot_reads_nothing_below_it():
  rel, z, mask = slates(shape=(5,))

  def clicks(rel, z):
    return expected_clicks(LAW, rel, z, mask)

  by_rel, by_z = jax.jit(jax.jacobian(clicks, (0, 1)))(rel, z)
  for t in range(5):
    assert not np.asarray(by_rel)[t, t + 1 :].any()
    assert not np.asarray(by_z)[t, t + 1 :].any()
    assert np.asarray(by_rel)[t, : t + 1].all()


def test_padding_changes_nothing_and_earns_nothing():
  rel, z, mask = slates()
  mask[:, 3:] = False
  whole = expected_clicks(LAW, rel, z, mask)
  short = expected_clicks(LAW, rel[:, :3], z[:, :3], np.ones((3, 3), bool))
  np.testing.assert_allclose(whole[:, :3], short, rtol=1e-6)
  assert not np.asarray(whole[:, 3:]).any()


def test_slot_by_slot_equals_the_closed_form():
  rel, z, mask = slates(shape=(2, 6))

  @jax.jit
  def utilities(rel, z):
    alike = click_law.similarity(z, z)
    prefix, found = click_law.empty_prefix(rel), []
    for slot in range(6):
      p = click_law.next_clicks(LAW, prefix, rel, slot)
      prefix = click_law.place(
        LAW, prefix, rel[:, slot], p[:, slot], alike[:, slot]
      )
      found.append(prefix.utility)
    return jnp.stack(found, axis=-1)

  clicks = np.asarray(expected_clicks(LAW, rel, z, mask))
  np.testing.assert_allclose(utilities(rel, z), clicks.cumsum(-1), rtol=1e-5)


def test_a_twin_above_costs_clicks_and_an_opposite_does_not():
  z = np.eye(3, dtype=np.float32)[:2]
  rel, mask = np.zeros(2, np.float32), np.ones(2, bool)
  alone = expected_clicks(LAW, rel, z, mask)
  twin = expected_clicks(LAW, rel, z[[0, 0]], mask)
  opposite = expected_clicks(LAW, rel, np.stack([z[0], -z[0]]), mask)
  assert twin[1] < 0.75 * alone[1]
  np.testing.assert_allclose(opposite, alone, rtol=1e-6)


def test_dtype_follows_the_inputs():
  with jax.enable_x64(True):
    rel, z, mask = slates(dtype=np.float64)
    clicks = expected_clicks(LAW, rel, z, mask)
    assert clicks.dtype == jnp.float64
    np.testing.assert_allclose(
      clicks[0],
      by_hand(rel[0], z[0], 2.5, 0.16),
      rtol=1e-12,
    )
