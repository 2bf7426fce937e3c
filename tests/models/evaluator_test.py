"""Properties of the list evaluator."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rerank_rl import types
from rerank_rl.models import ensemble, evaluator

BATCH, COUNT, SLOTS, SIGNALS, ITEMS = 4, 9, 4, 3, 30
WEIGHTS = (1.0, 1.0, 2.0)


# Compiled once a shape: the tests' time is compilation.
_predict = ensemble.predict
_encode = jax.jit(ensemble.encode, static_argnums=0)
_loss = jax.jit(ensemble.loss, static_argnums=0)


def _request(seed=0, history=5):
  rng = np.random.default_rng(seed)
  rows = [rng.permutation(ITEMS)[:COUNT] for _ in range(BATCH)]
  candidates = np.stack(rows).astype(np.int32)
  candidates[0, 6:] = types.PAD
  past = rng.integers(0, ITEMS, (BATCH, history)).astype(np.int32)
  past[1], past[2, :2] = types.PAD, types.PAD
  scores = rng.normal(size=candidates.shape).astype(np.float32)
  return types.Request(
    user=rng.normal(size=(BATCH, 2)).astype(np.float32),
    history=past,
    candidates=candidates,
    scores=np.where(candidates >= 0, scores, 0),
    size=np.full(BATCH, SLOTS, np.int32),
  )


def _features(seed=0):
  rng = np.random.default_rng(seed + 100)
  return jnp.asarray(rng.normal(size=(ITEMS, 7)).astype(np.float32))


def _slates(seed=0, slates=3):
  rng = np.random.default_rng(seed + 200)
  slate = [
    [rng.permutation(6)[:SLOTS] for _ in range(slates)] for _ in range(BATCH)
  ]
  slate = np.array(slate, np.int32)
  slate[3, 1, 2:] = types.PAD
  return slate


def _model(**changes):
  numbers = dict(slots=SLOTS, signals=SIGNALS, dim=16, rank=4, heads=4)
  return evaluator.ListEvaluator(**(numbers | changes))


def _fitted(model, members=2, seed=0):
  """Random parameters, none of them zero (and nothing to compile)."""
  shapes = jax.eval_shape(
    lambda k: ensemble.init(model, k, _features(), _request(), members),
    jax.random.key(0),
  )
  rng = np.random.default_rng(seed)

  def draw(x):
    size = 1 / np.sqrt(x.shape[-2]) if len(x.shape) > 2 else 0.3
    return jnp.asarray(size * rng.normal(size=x.shape), x.dtype)

  return ensemble.Fitted(
    params=jax.tree.map(draw, shapes.params),
    scale=jnp.linspace(0.8, 1.2, SIGNALS),
    shift=jnp.linspace(-0.2, 0.2, SIGNALS),
  )


def _impression(seed=0):
  rng = np.random.default_rng(seed + 300)
  slate = _slates(seed)[:, 1]
  clicks = rng.integers(0, 2, (BATCH, SLOTS, SIGNALS)).astype(np.float32)
  return types.Impression(
    request=_request(seed),
    slate=slate,
    feedback=np.where(slate[..., None] >= 0, clicks, 0),
    propensity=np.full(slate.shape, np.nan, np.float32),
    hidden=np.zeros((BATCH, 0), np.float32),
  )


@pytest.mark.parametrize("cascade", [True, False])
def test_next_form_equals_slate_form(cascade):
  model = _model(cascade=cascade)
  fitted, request, slate = _fitted(model), _request(), _slates()
  whole = _predict(model, fitted, _features(), request, slate)
  assert whole.shape == (*slate.shape, SIGNALS)
  items = _encode(model, fitted, _features(), request)
  step = jax.jit(lambda s, k: ensemble.predict_next(model, fitted, items, s, k))
  for k in range(SLOTS):
    # What stands at and behind position k must not matter.
    chosen = np.maximum(slate[:, :, k], 0)[..., None, None]
    logits = np.take_along_axis(np.asarray(step(slate, k)), chosen, 2)[:, :, 0]
    shown = slate[:, :, k] >= 0
    np.testing.assert_allclose(
      logits[shown], np.asarray(whole[:, :, k])[shown], atol=1e-5
    )


def test_next_values_are_parts_of_a_slates_value():
  model = _model(cascade=False)
  fitted, request, slate = _fitted(model), _request(), _slates()
  logits = _predict(model, fitted, _features(), request, slate)
  expected = ensemble.values(logits, slate, WEIGHTS)[:, 0, 1]
  score = jax.jit(
    lambda s: ensemble.next_values(
      model, fitted, _features(), request, WEIGHTS
    )(s, 1)
  )
  found = np.asarray(score(slate))[:, 0]
  np.testing.assert_allclose(
    found[np.arange(BATCH), slate[:, 0, 1]], expected, rtol=1e-5
  )


def test_few_and_many_slates_take_the_same_numbers():
  model = _model()
  fitted, request, slate = _fitted(model), _request(), _slates()
  assert slate.shape[1] * SLOTS >= COUNT > SLOTS  # Both ways of gathering.
  predict = lambda s: _predict(model, fitted, _features(), request, s)
  np.testing.assert_allclose(
    predict(slate)[:, 1:2], predict(slate[:, 1:2]), atol=1e-5
  )


def test_a_catalogue_larger_than_the_batch_takes_the_same_numbers():
  model = _model()
  fitted, request, slate = _fitted(model), _request(), _slates()
  small = _predict(model, fitted, _features(), request, slate)
  large = jnp.concatenate([_features(), jnp.zeros((200, 7))])
  assert large.shape[0] > BATCH * (COUNT + 5) > ITEMS
  wide = _predict(model, fitted, large, request, slate)
  np.testing.assert_allclose(small, wide, atol=1e-5)


def test_causal_in_the_items():
  """Position t has no gradient with respect to the items below it."""
  model = _model()
  fitted, request = _fitted(model, members=1), _request()
  items = _encode(model, fitted, _features(), request)
  params, items = jax.tree.map(lambda x: x[0], (fitted.params, items))
  rows = np.tile(np.arange(SLOTS, dtype=np.int32), (BATCH, 1))
  placed = items.take(rows[:, None])

  def logits(code, key):
    own = placed.replace(code=code, key=key)
    click, stay = model.apply(
      {"params": params},
      own,
      own,
      jnp.arange(SLOTS),
      False,
      method="_judge",
    )
    return click.sum((0, 1, 3)) + stay.sum((0, 1, 3))

  slopes = jax.jit(jax.jacrev(logits, (0, 1)))(placed.code, placed.key)
  for slope in slopes:  # [K, B, 1, K, ...]
    felt = jnp.abs(slope).reshape(SLOTS, BATCH, SLOTS, -1).sum((1, 3))
    assert (jnp.triu(felt, 1) == 0).all()
    felt = felt + (jnp.arange(SLOTS) == 0)[:, None]  # The top has no above.
    assert (felt[jnp.tril_indices(SLOTS)] > 0).all()


def test_causal_in_the_slate():
  model = _model()
  fitted, request, slate = _fitted(model), _request(), _slates()
  logits = _predict(model, fitted, _features(), request, slate)
  for t in range(1, SLOTS):
    other = slate.copy()
    other[:, :, t:] = np.random.default_rng(t).integers(
      0, 6, other[:, :, t:].shape
    )
    changed = _predict(model, fitted, _features(), request, other)
    np.testing.assert_allclose(changed[:, :, :t], logits[:, :, :t], atol=1e-6)
    assert np.abs(changed[:, :, t:] - logits[:, :, t:]).max() > 1e-3


def test_padding_is_never_read():
  """More padding of history and candidates, and what padding holds."""
  model = _model()
  fitted, request, slate = _fitted(model), _request(), _slates()
  logits = _predict(model, fitted, _features(), request, slate)
  pad = np.full((BATCH, 3), types.PAD, np.int32)
  wider = request.replace(
    history=np.concatenate([pad, request.history], 1),
    candidates=np.concatenate([request.candidates, pad], 1),
    scores=np.concatenate([request.scores, 0 * pad.astype(np.float32)], 1),
  )
  np.testing.assert_allclose(
    _predict(model, fitted, _features(), wider, slate),
    logits,
    atol=1e-5,
  )
  noisy = request.replace(
    scores=np.where(request.candidates >= 0, request.scores, 7.0)
  )
  np.testing.assert_allclose(
    _predict(model, fitted, _features(), noisy, slate),
    logits,
    atol=1e-5,
  )


def test_order_of_candidates_does_not_matter():
  model = _model()
  fitted, request, slate = _fitted(model), _request(), _slates()
  order = np.random.default_rng(5).permutation(COUNT)
  moved = request.replace(
    candidates=request.candidates[:, order], scores=request.scores[:, order]
  )
  place = np.argsort(order).astype(np.int32)
  slates = np.where(slate >= 0, place[np.maximum(slate, 0)], types.PAD)
  shown = slate >= 0
  np.testing.assert_allclose(
    _predict(model, fitted, _features(), moved, slates)[shown],
    _predict(model, fitted, _features(), request, slate)[shown],
    atol=1e-5,
  )


def test_feedback_with_a_cascade_cannot_grow_by_what_is_above():
  """Marginal P never exceeds P given examination."""
  model = _model()
  fitted = _fitted(model, members=1)
  marginal, given = (
    _predict(m, fitted, _features(), _request(), _slates())
    for m in (model, _model(cascade=False))
  )
  shown = _slates()[:, :, 1:] >= 0
  np.testing.assert_allclose(marginal[:, :, 0], given[:, :, 0], atol=1e-4)
  assert (marginal[:, :, 1:] < given[:, :, 1:])[shown].all()


def test_init_shapes():
  model = _model()
  fitted = jax.eval_shape(
    lambda k: ensemble.init(model, k, _features(), _request(), 2),
    jax.random.key(0),
  )
  chex.assert_tree_shape_prefix(fitted.params, (2,))
  chex.assert_shape([fitted.scale, fitted.shift], (SIGNALS,))


def test_loss_counts_shown_positions_only():
  model = _model()
  fitted, impression = _fitted(model), _impression()
  total, count = _loss(model, fitted.params, _features(), impression)
  shown = (impression.slate >= 0).sum()
  assert count == 2 * SIGNALS * shown < 2 * impression.feedback.size
  flipped = np.where(impression.slate[..., None] >= 0, impression.feedback, 1.0)
  again, _ = _loss(
    model, fitted.params, _features(), impression.replace(feedback=flipped)
  )
  np.testing.assert_allclose(total, again, rtol=1e-6)


def test_the_loss_can_be_driven_down():
  model = _model(dropout=0.0)
  impression = _impression()
  params = _fitted(model, members=1).params
  rule = optax.adam(1e-2)

  def objective(params):
    total, count = ensemble.loss(model, params, _features(), impression)
    return total / count

  @jax.jit
  def step(params, state):
    value, slope = jax.value_and_grad(objective)(params)
    change, state = rule.update(slope, state)
    return optax.apply_updates(params, change), state, value

  state = rule.init(params)
  losses = []
  for _ in range(60):
    params, state, value = step(params, state)
    losses.append(float(value))
  assert np.isfinite(losses).all() and losses[-1] < 0.3 * losses[0]


def test_values_weigh_signals_and_skip_padding():
  slate = np.array([[[2, 0, types.PAD]]], np.int32)
  p = np.array([[[[0.5, 0.2], [0.1, 0.4], [0.9, 0.9]]]], np.float32)
  found = ensemble.values(jnp.log(p) - jnp.log1p(-p), slate, (1.0, 2.0))
  np.testing.assert_allclose(found, [[[0.9, 0.9, 0.0]]], rtol=1e-5)
