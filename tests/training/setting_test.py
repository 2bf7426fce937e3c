"""Who rewards, who selects on what, and that what is ranked is greedy."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rerank_rl.config import Config, PolicyConfig, TokenizerConfig
from rerank_rl.data import schema
from rerank_rl.models import ensemble
from rerank_rl.simulation import reward as rewards
from rerank_rl.training import setting as settings
from rerank_rl.types import PAD, Impression
from tests import toys

ITEMS, K = 20, toys.SIZES.slots


@dataclasses.dataclass(frozen=True)
class Taste:
  """An evaluator to whom an item is worth what a table says, wherever shown."""

  def apply(self, variables, features, request, slate):
    del features
    place = jnp.maximum(slate, 0).reshape(len(slate), -1)
    rows = jnp.take_along_axis(request.candidates, place, axis=1)
    return variables["params"][rows].reshape(*slate.shape, 1)


def taste(seed: int) -> settings.Judge:
  """Judges of other seeds disagree."""
  table = np.random.default_rng(seed).normal(size=(1, ITEMS))
  fitted = ensemble.Fitted(
    jnp.asarray(table, jnp.float32), jnp.ones(1), jnp.zeros(1)
  )
  return settings.Judge(Taste(), fitted)


def worth(judge, impressions, slate):
  """By hand: the sum of the probabilities f64[n] of what is shown."""
  request = impressions.request
  rows = np.take_along_axis(request.candidates, np.maximum(slate, 0), axis=1)
  logit = np.float64(judge.fitted.params[0])[rows]
  return np.where(slate == PAD, 0, 1 / (1 + np.exp(-logit))).sum(1)


def log(seed: int, rows: int) -> Impression:
  """Requests that were shown their first candidates, and random clicks."""
  request = jax.device_get(toys.request(seed, rows))
  place = np.arange(K)[None]
  count = (request.candidates != PAD).sum(1, keepdims=True)
  slate = np.where(place < count, place, PAD).astype(np.int32)
  clicks = np.random.default_rng(seed).random(slate.shape) < 0.5
  return Impression(
    request=request,
    slate=slate,
    feedback=(clicks & (slate != PAD))[..., None].astype(np.float32),
    propensity=np.full(slate.shape, np.nan, np.float32),
    hidden=np.zeros((rows, 0), np.float32),
  )


def setting(train=12, world=None, judges=None, **changes) -> settings.Setting:
  """A run on the toy catalogue; its splits differ, also in length."""
  catalogue = toys.catalogue()
  splits = {"train": log(1, train), "valid": log(2, 6), "test": log(3, 7)}
  dataset = schema.Dataset(
    name="toy",
    item_ids=np.arange(ITEMS),
    features=np.asarray(catalogue.features),
    vectors=np.asarray(catalogue.features),
    groups=np.zeros(ITEMS, np.int32),
    splits=splits,
    timestamps={},
    signals=("click",),
    weights=(1.0,),
    slate_size=K,
    warm=np.ones(ITEMS, bool),
  )
  config = Config(
    tokenizer=TokenizerConfig(levels=toys.SIZES.levels, codes=toys.SIZES.codes),
    policy=PolicyConfig(head="global", dim=16, layers=1),
  )
  return settings.Setting(
    config=dataclasses.replace(config, **changes),
    dataset=dataset,
    mesh=None,
    root=pathlib.Path("nowhere"),
    identity={},
    version="",
    catalogue=catalogue,
    world=world,
    logged=splits["train"],
    judges=judges or {},
  )


JUDGES = {name: taste(seed) for seed, name in enumerate("asb")}
TRUTH = taste(9)


def _last_first(impressions):
  """Slates i32[n, K] of candidates from the last: not what was logged."""
  count = (impressions.request.candidates != PAD).sum(1, keepdims=True)
  place = count - 1 - np.arange(K)[None]
  return np.maximum(place, PAD).astype(np.int32)


def _ndcg(impressions, slate):
  """By hand, f64[n]."""
  gains = np.zeros(impressions.request.candidates.shape)
  for n, k in np.argwhere(impressions.feedback[..., 0] == 1):
    gains[n, impressions.slate[n, k]] = 1
  discount = 1 / np.log2(np.arange(K) + 2)
  shown = np.take_along_axis(gains, np.maximum(slate, 0), axis=1)
  found = np.where(slate == PAD, 0, shown) @ discount
  best = -np.sort(-gains, axis=1)[:, :K] @ discount
  return np.where(best > 0, found / np.where(best > 0, best, 1), np.nan)


@pytest.mark.parametrize("logged_better", (False, True))
def test_a_rewards_and_nobody_else_is_asked(logged_better):
  """Also where it only says whether a slate beats the logged one."""
  name = "good" if logged_better else "evaluator"
  made = setting(judges={"a": JUDGES["a"]})  # Who asks another finds nobody.
  train = made.dataset.splits["train"]
  slate = _last_first(train)
  want = worth(JUDGES["a"], train, slate)
  others = [worth(JUDGES[name], train, slate) for name in "sb"]
  assert all(np.abs(want - each).min() > 1e-3 for each in others)
  if logged_better:
    want = want > worth(JUDGES["a"], train, train.slate)
    assert 0 < want.mean() < 1
  for judges in ({"a": JUDGES["a"]}, JUDGES):
    made = dataclasses.replace(made, judges=judges)
    said = settings.valuer(made.reward(name))(train, slate)
    np.testing.assert_allclose(said, want, rtol=1e-5)
  with pytest.raises(KeyError, match="a"):
    setting(judges={"s": JUDGES["s"], "b": JUDGES["b"]}).reward(name)


@pytest.mark.parametrize(
  ("protocol", "name"),
  [("value", "evaluator_s"), ("recovery", "ndcg"), ("oracle", "true_utility")],
)
def test_each_protocol_selects_by_its_own_figure_on_validation(
  protocol, name, monkeypatch
):
  true = lambda world: rewards.evaluator_reward(
    world.model, world.fitted, toys.catalogue().features, (1.0,)
  )
  monkeypatch.setattr(rewards, "world_reward", true)
  world = None if protocol == "recovery" else TRUTH
  made = setting(world=world, judges=JUDGES, protocol=protocol)
  asked = []

  def rank(params, impressions):
    asked.append((params, impressions))
    return _last_first(impressions)

  evaluate, select = settings.selection(made, rank)
  assert select == (name, True)
  said = evaluate("parameters")
  valid = made.dataset.splits["valid"]
  assert [params for params, _ in asked] == ["parameters"]
  assert asked[0][1] is valid
  want = {
    **{
      f"evaluator_{n}": worth(j, valid, _last_first(valid))
      for n, j in JUDGES.items()
    },
    "ndcg": _ndcg(valid, _last_first(valid)),
    "true_utility": worth(TRUTH, valid, _last_first(valid)),
  }
  del want["ndcg" if made.world is not None else "true_utility"]
  assert said == {n: pytest.approx(np.nanmean(x)) for n, x in want.items()}
  # No two figures, nor another split's, would pass for this one.
  assert len({round(x, 3) for x in said.values()}) == len(said)


def test_reports_rank_greedily_whatever_the_seed(monkeypatch):
  """As the policy's greedy slates are, chunk by chunk; no key has a part."""
  monkeypatch.setattr(settings, "CHUNK", 4)
  own = PolicyConfig(head="hpn", dim=16, layers=1)  # The least to compile.
  policy, params = toys.policy("hpn")
  rows = np.array([0, 1, 2, 3, 3, 0])  # The last chunk is filled up.
  some = log(0, 4)
  want = np.asarray(toys.greedy(policy, params, some.request))[rows]
  some = schema.take(some, rows)
  rank = lambda seed: settings.greedy_ranker(setting(seed=seed, policy=own))
  for seed in (0, 1):
    np.testing.assert_array_equal(rank(seed)(params, some), want)
  # Of other parameters it is another.
  assert (rank(0)(toys.scaled(params, -1), some) != want).any()
