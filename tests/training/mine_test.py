"""Mining: resumed after a kill, divided over processes, unexposed, true."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import common
from rerank_rl import config as config_lib
from rerank_rl.data import schema, shards
from rerank_rl.decoding import list_search
from rerank_rl.models import ensemble, lookahead
from rerank_rl.training import setting as settings
from rerank_rl.training import state as states
from rerank_rl.training.stages import distill, mine, sft
from rerank_rl.training.stages import lookahead as lookahead_stage
from tests.end_to_end import micro

CHANGES = micro.TINY | {
  "world.num_train": 90,
  "mine.requests": 70,
  "mine.shards": 3,
  "mine.width": 4,
  "distill.lists": 2,
  "distill_train.batch_size": 8,
  "policy.head": "pointer",  # Needs no tokenizer.
}


@pytest.fixture(scope="module")
def start(tmp_path_factory):
  """A Setting whose lookahead evaluator is random, before `mine`."""
  config = config_lib.freeze(common.build(CHANGES).to_dict())
  made = settings.start(config, tmp_path_factory.mktemp("mine"))
  made = made.identified("lookahead", "random")
  model = lookahead_stage.model_of(made)
  train = made.dataset.splits["train"]
  example = jax.tree.map(lambda x: jnp.asarray(x[:2]), train.request)
  init = jax.jit(ensemble.init, static_argnums=0)
  fitted = init(model, jax.random.key(0), made.catalogue.features, example)
  judge = settings.Judge(model, fitted)
  return dataclasses.replace(made, judges={"lookahead": judge})


def _table(setting):
  """The mined rows, in the order of the training split."""
  layout = setting.mined
  table = next(shards.Stream(layout, layout.rows, 0))
  order = np.argsort(table["row"])
  return {name: x[order] for name, x in table.items()}


@pytest.fixture(scope="module")
def calm(start):
  return mine.run(start)


def test_what_is_kept_is_what_the_evaluator_says(start, calm):
  table, train = _table(calm), start.dataset.splits["train"]
  assert table["row"].size == np.unique(table["row"]).size == 70
  part = schema.take(train, table["row"])
  one, slate = start.judges["lookahead"], table["slate"]
  features, request = start.catalogue.features, part.request
  real = table["value"] > list_search.NEVER / 2
  worth = start.judged_by("lookahead")(part, slate).reward
  np.testing.assert_allclose(table["value"][real], worth[real], rtol=1e-4)
  assert (np.diff(table["value"], axis=1) <= 0).all()
  assert not (slate == part.slate[:, None]).all(-1)[real].any()
  score = ensemble.next_values(one.model, one.fitted, features, request, (1.0,))
  for k in range(slate.shape[-1]):
    gain = np.where(
      (slate[:, :, :k, None] == np.arange(8)[None, None, None]).any(2),
      table["gain"][:, :, k],  # Those above: without meaning.
      score(jnp.asarray(slate), k),
    )
    found = table["gain"][:, :, k][real]
    np.testing.assert_allclose(found, gain[real], atol=1e-3)
  p = lookahead.counts(one.model, one.fitted, features, request, slate)
  np.testing.assert_allclose(
    table["value"][real], np.asarray(p)[:, :, -1, 0].sum(-1)[real], rtol=1e-4
  )


def test_the_exposed_list_is_left_out(start):
  train = start.dataset.splits["train"]
  part = schema.take(train, np.arange(20))
  best = mine.lists(start, part)["slate"][:, 0]
  again = mine.lists(start, part.replace(slate=best))
  assert not (again["slate"] == best[:, None]).all(-1).any()


def _elsewhere(setting, root):
  return dataclasses.replace(setting, root=root)


def test_a_killed_run_goes_on_with_what_is_missing(
  start, calm, tmp_path, monkeypatch
):
  real, wrote = shards.write, []

  def once(layout, shard, *rest):
    if wrote:
      raise KeyboardInterrupt
    wrote.append(shard)
    real(layout, shard, *rest)

  monkeypatch.setattr(shards, "write", once)
  with pytest.raises(KeyboardInterrupt):
    mine.run(_elsewhere(start, tmp_path))
  monkeypatch.setattr(
    shards, "write", lambda at, i, *rest: (wrote.append(i), real(at, i, *rest))
  )
  made = mine.run(_elsewhere(start, tmp_path))
  assert sorted(wrote) == [0, 1, 2]  # None is lost, none made twice.
  for name, column in _table(calm).items():
    np.testing.assert_array_equal(_table(made)[name], column)
  mine.run(_elsewhere(start, tmp_path))
  assert len(wrote) == 3


def test_a_batch_joins_lists_to_the_requests_they_are_for(start, calm):
  batch = next(distill.batches(calm))
  train, table = start.dataset.splits["train"], _table(calm)
  assert batch.slate.shape[:2] == (8, 2)
  for b in range(8):
    same = train.request.candidates == batch.impression.request.candidates[b]
    (row,) = np.flatnonzero(same.all(1))
    at = np.flatnonzero(table["row"] == row)
    np.testing.assert_array_equal(batch.slate[b][None], table["slate"][at, :2])
    np.testing.assert_array_equal(batch.gain[b][None], table["gain"][at, :2])


def test_lists_that_do_not_exist_weigh_nothing():
  value = jnp.array([[1.0, 1.1, list_search.NEVER], [list_search.NEVER] * 3])
  weight = np.asarray(distill.list_weights(value, 0.1))
  np.testing.assert_allclose(
    weight[0], [1 / (1 + np.e), np.e / (1 + np.e), 0], rtol=1e-4
  )
  assert (weight[1] == 0).all()


@pytest.mark.parametrize("objective", distill.OBJECTIVES)
def test_each_objective_can_be_driven_down(calm, objective):
  numbers = dataclasses.replace(calm.config.distill, objective=objective)
  train = config_lib.TrainConfig(steps=40, learning_rate=0.01, warmup_steps=2)
  tx, first = states.optimizer(train), sft.fresh(calm)
  step = jax.jit(
    states.bound(distill.step, calm.policy, numbers, tx, train.ema)
  )
  batch, state = next(distill.batches(calm)), states.create(first, tx)
  losses, key = [], jax.random.key(0)
  for _ in range(train.steps):
    state, out = step(calm.catalogue, first, state, batch, key)
    losses.append(float(out["loss"][0] / out["loss"][1]))
  assert losses[-1] < 0.6 * losses[0]
