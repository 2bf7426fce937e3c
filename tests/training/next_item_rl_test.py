"""RL on the next item: its gradient, its optimum, a run of seconds."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import tiger_rl
from rerank_rl.config import (
  ConfigError,
  NextItemConfig,
  PolicyConfig,
  RLConfig,
  TrainConfig,
)
from rerank_rl.data.sequences import Windows
from rerank_rl.decoding import catalogue
from rerank_rl.decoding import next_item as decoding
from rerank_rl.evaluation import report
from rerank_rl.models import next_item
from rerank_rl.simulation import reward
from rerank_rl.training import next_item_pipeline, tasks
from rerank_rl.training import state as states
from rerank_rl.training.stages import next_item_rl as rl
from rerank_rl.types import PAD
from tests import toys

ITEMS = 14
TREE = catalogue.build(toys.catalogue(items=ITEMS).sids)
MEMBER = next_item.make_member(
  PolicyConfig(dim=8, layers=1),
  NextItemConfig(history=2, dropout=0.0, item_dropout=0.0),
  next_item.Sizes(TREE.code.size, 3, 3),
)
POLICY = next_item.ensemble(MEMBER, 2)
HIT = rl.REWARDS["labels"].worth(None)
LIKED = jax.nn.softmax(2 * jax.random.normal(jax.random.key(7), (ITEMS,)))


@functools.cache
def _params():
  return toys.scaled(jax.jit(POLICY.init)(jax.random.key(0)), 1.5)


def _batch(target):
  """A row a target; the second place, which asks for nothing, is padding."""
  column = lambda x: jnp.stack([x, jnp.full_like(x, PAD)], axis=1)
  zero = jnp.zeros_like(target)
  return Windows(column(zero + 3), column(zero), column(target))


def _method(tx=None, **changes):
  usual = {"reward": "labels", "objective": "reinforce"}
  config = RLConfig(**(usual | changes))
  return rl.Method(POLICY, MEMBER, config, tx, 0.0)


@jax.jit
def _log_probs(params):
  """f32[M], of every item after item 3."""
  batch = _batch(jnp.array([0]))
  state = POLICY.encode(params, TREE, batch.item, batch.place)[:, 0]
  state = jnp.broadcast_to(state, (ITEMS, state.shape[-1]))
  choices = decoding.along(POLICY, params, TREE, state, jnp.arange(ITEMS))
  return sum(map(decoding.chosen, choices))


def _flat(tree):
  return jnp.concatenate([x.ravel() for x in jax.tree.leaves(tree)])


def test_the_gradient_is_that_of_the_expected_hit():
  """Samples of the policy, against the sum over all items."""
  method = _method(explore="chains", credit="centred", group=20_000, kl=0.0)
  params, target = _params(), 5

  @jax.jit
  def estimate(params):
    batch, key = _batch(jnp.array([target])), jax.random.key(1)
    loss = lambda p: rl.valued(method, TREE, params, HIT, p, batch, key)
    return jax.grad(lambda p: loss(p)[0])(params)

  def expected(params):  # Losses have a factor L that their denominator has.
    return -jnp.exp(_log_probs(params))[target]

  got = _flat(estimate(params))
  want = _flat(jax.jit(jax.grad(expected))(params))
  error = jnp.linalg.norm(got - want) / jnp.linalg.norm(want)
  assert error < 0.05, error


def test_rankings_reach_the_enumerated_optimum():
  """What comes next is random: the best list is in order of probability."""
  train = TrainConfig(
    steps=250, learning_rate=0.03, warmup_steps=0, weight_decay=0.0
  )
  tx = states.optimizer(train)
  method = _method(
    tx, explore="beam", credit="ranking", group=ITEMS, kl=0.0, temperature=1.0
  )
  state = states.create(_params(), tx)
  step = jax.jit(functools.partial(rl.step, method))
  reference, worth = _params(), reward.discounts(rl.PLACES)

  def value(params):
    best = jnp.argsort(-_log_probs(params))[: rl.PLACES]
    return float((LIKED[best] * worth).sum())

  optimum = float((jnp.sort(LIKED)[::-1][: rl.PLACES] * worth).sum())
  assert value(state.params) < 0.8 * optimum
  p = np.asarray(LIKED, np.float64)
  draws = np.random.default_rng(0).choice(
    ITEMS, (train.steps, 64), p=p / p.sum()
  )
  for number, target in enumerate(draws.astype(np.int32)):
    key = jax.random.key(number)
    state, _ = step(TREE, reference, HIT, state, _batch(target), key)
  assert value(state.params) > 0.99 * optimum


def _liked(batch, at, item):
  del batch, at
  return LIKED[jnp.maximum(item, 0)]


def test_the_evaluators_favourite_is_found_and_the_kl_leaves_others_a_share():
  train = TrainConfig(
    steps=200, learning_rate=0.03, warmup_steps=0, weight_decay=0.0
  )
  tx, reference = states.optimizer(train), _params()
  worth = jax.tree_util.Partial(_liked)
  batch = Windows(*(jnp.full((4, 1), x) for x in (3, 0, PAD)))  # No answer.

  def share(kl):
    """The favourite's probability, after learning."""
    method = _method(
      tx,
      reward="evaluator",
      explore="beam",
      credit="expected",
      group=ITEMS,
      kl=kl,
    )
    step = jax.jit(functools.partial(rl.step, method))
    state = states.create(_params(), tx)
    for number in range(train.steps):
      key = jax.random.key(number)
      state, _ = step(TREE, reference, worth, state, batch, key)
    return float(jnp.exp(_log_probs(state.params)[LIKED.argmax()]))

  before = float(jnp.exp(_log_probs(reference)[LIKED.argmax()]))
  assert share(0.0) > 0.99
  assert 2 * before < share(4.0) < 0.9


def test_the_kl_holds_the_policy_where_nothing_is_to_gain():
  method = _method(explore="beam", credit="ranking", group=4, kl=1.0)
  params, other = _params(), toys.scaled(_params(), 1.2)
  batch = _batch(jnp.array([PAD, PAD]))  # Nothing came next.

  @jax.jit
  def of(reference):
    key = jax.random.key(0)
    loss = lambda p: rl.valued(method, TREE, reference, HIT, p, batch, key)[0]
    return jax.grad(loss)(params)

  assert jnp.abs(_flat(of(params))).max() < 1e-5
  assert jnp.abs(_flat(of(other))).max() > 1e-3


TINY = {
  "policy.dim": 16,
  "policy.layers": 1,
  "world.num_items": 60,
  "world.num_candidates": 6,
  "world.slate_size": 2,
  "world.num_train": 200,
  "world.history_size": 6,
  "tokenizer.codes": 8,
  "tokenizer.iterations": 2,
  "next_item.history": 6,
  "sft.steps": 10,
  "sft.warmup_steps": 2,
  "sft.eval_every": 10,
  "rl.group": 8,
  "rl_train.steps": 4,
  "rl_train.warmup_steps": 1,
  "rl_train.batch_size": 8,
  "rl_train.eval_every": 2,
}


LABELS = {"rl.reward": "labels", "rl.credit": "ranking"}


def _config(changes):
  return toys.frozen(tiger_rl.get_config(), TINY | changes)


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory):
  """What runs share: all but RL is the same."""
  return tmp_path_factory.mktemp("artifacts")


@pytest.mark.parametrize(
  "changes",
  ({}, LABELS, {**LABELS, "rl.objective": "likelihood"}),
  ids=("evaluator", "labels", "control"),
)
def test_a_run_learns_and_reports_both_policies(changes, tmp_path, artifacts):
  config = _config(changes)
  tasks.of(config).run(config, tmp_path, artifacts, "command")
  facts = json.loads((tmp_path / report.REPORT).read_text())
  systems = {row["system"] for row in facts["rows"]}
  assert {"item_to_item", "tiger", "tiger_rl"} <= systems
  steps = [record["step"] for record in facts["history"]["rl"]]
  assert steps == [0, 2, 4]


def test_what_is_asked_is_what_nobody_was_told(tmp_path):
  """Histories are all that training shows; validation's items stay unseen."""
  setting = next_item_pipeline.begin(_config({}), tmp_path)
  asked = rl.REWARDS["evaluator"].rows(setting)
  assert (asked.target == PAD).all()
  train, valid = (setting.dataset.splits[x] for x in ("train", "valid"))
  # The last item of each is training's last target, which has no successor.
  targets = np.bincount(train.target[train.target != PAD], minlength=60)
  last = np.bincount(asked.item[:, -1], minlength=60)
  assert (last <= targets).all()
  np.testing.assert_array_equal(asked.item, valid.item)


@pytest.mark.parametrize(
  "changes, words",
  (
    ({"rl.credit": "centred"}, "beam with ranking"),
    ({"rl.explore": "fixed_tree"}, "fixed_tree"),
    ({"rl.reward": "world"}, "labels"),
    ({"rl.objective": "likelihood"}, "reward=labels"),
    ({"stages": ("tokenizer", "sft", "rl")}, "'evaluators'"),
    ({"rl.objective": "clipped"}, "likelihood"),
    ({"rl.group": 1}, "group=1"),
    ({"rl.entropy": 0.1}, "rl.entropy=0.1"),
    ({"rl.epochs": 2}, "rl.epochs=2 has no effect"),
    ({"rl.budget": 7}, "rl.budget=7 has no effect"),
    ({"session.gamma": 0.5}, "session.gamma=0.5 has no effect"),
    ({"data.feedback": "constant"}, "feedback='constant' has no effect"),
    ({"stages": ("tokenizer", "rl")}, "tokenizer and sft"),
  ),
)
def test_what_cannot_run_is_refused(changes, words):
  config = _config(changes)
  with pytest.raises(ConfigError, match=words):
    tasks.of(config).check(config)
