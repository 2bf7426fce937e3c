"""freeze: typed, or one sentence."""

import dataclasses
import operator
import pathlib

from absl import flags
from ml_collections import ConfigDict, config_flags
import pytest

from configs import common
from rerank_rl import config as config_lib
from rerank_rl.training import pipeline, tasks

ROOT = pathlib.Path(__file__).parents[1]
CONFIGS = sorted(
  path.relative_to(ROOT)
  for path in (ROOT / "configs").rglob("*.py")
  if path.name not in ("__init__.py", "common.py")
)
# Of each task.
VARIANTS = {
  "value": ("", "smoke", "kuairand_pure", "movielens_1m,recovery"),
  "next_item": ("", "smoke", "amazon_beauty"),
  "session": ("", "smoke", "trust", "trust,smoke", "learnt,kuairand_pure"),
}


DEGRE = ("tokenizer", "evaluators", "lookahead", "mine", "distill")


def _get_config(path):
  scope = {}
  exec((ROOT / path).read_text(), scope)  # As config_flags would load it.
  return scope["get_config"]


@pytest.mark.parametrize("path", CONFIGS, ids=str)
def test_every_config_is_legal_in_every_variant(path):
  get_config = _get_config(path)
  for variant in VARIANTS[get_config().protocol]:
    config = config_lib.freeze(get_config(variant).to_dict())
    tasks.of(config).check(config)
    assert config.name == path.stem


@pytest.mark.parametrize("name", ("glorank_rl", "vstar", "baselines/prm"))
def test_an_oracle_keeps_what_the_method_is(name):
  get_config = _get_config(pathlib.Path(f"configs/{name}.py"))
  config = config_lib.freeze(get_config("oracle").to_dict())
  assert config.protocol == "oracle" and config.rl.reward == "world"
  kept = [x for x in get_config().stages if x != "evaluators"]
  assert list(config.stages) == kept


def test_the_preference_variant_is_degres_alone():
  get_config = _get_config(pathlib.Path("configs/degre.py"))
  config = config_lib.freeze(get_config("preference,smoke").to_dict())
  pipeline.check(config)
  assert config.distill.objective == "preference" and "sft" in config.stages
  other = _get_config(pathlib.Path("configs/baselines/prm.py"))("preference")
  with pytest.raises(config_lib.ConfigError, match=r"distill.*no effect"):
    pipeline.check(config_lib.freeze(other.to_dict()))


@pytest.mark.parametrize(
  ("name", "variant"),
  (("baselines/prm", ""), ("imentor", ""), ("degre", "preference")),
)
def test_a_run_of_other_stages_keeps_nothing_that_they_do_not_read(
  name, variant
):
  """Benchmarks take a run's first stages, whatever it learns in the end."""
  get_config = _get_config(pathlib.Path(f"configs/{name}.py"))
  whole = config_lib.freeze(get_config(variant).to_dict())
  assert pipeline.with_stages(whole, whole.stages) == whole
  stages = ("tokenizer", "evaluators", "sft", "critic")
  fewer = pipeline.with_stages(whole, stages)
  pipeline.check(fewer)
  assert fewer.stages == stages and fewer.sft == whole.sft


def test_round_trip():
  config = config_lib.Config()
  assert config_lib.freeze(dataclasses.asdict(config)) == config


@pytest.mark.parametrize(
  ("tree", "words"),
  (
    ({"sede": 1}, ("config.sede", "seed")),
    ({"sft": {"steps": "many"}}, ("config.sft.steps", "many", "int")),
    ({"sft": {"steps": 1.5}}, ("config.sft.steps", "1.5")),
    ({"seed": None}, ("config.seed", "None")),
    ({"seed": True}, ("config.seed", "True")),
    ({"world": {"observed": 1}}, ("config.world.observed", "1")),
    ({"world": {"seed": "x"}}, ("config.world.seed", "x")),
    ({"stages": 3}, ("config.stages", "3")),
  ),
)
def test_mistakes_are_named(tree, words):
  with pytest.raises(config_lib.ConfigError) as error:
    config_lib.freeze(tree)
  for word in words:
    assert word in str(error.value)


@pytest.mark.parametrize(
  ("changes", "words"),
  (
    ({"stages": ("tokenizer", "dance")}, ("dance", "evaluators")),
    ({"stages": ("tokenizer", "rl")}, ("rl", "sft")),
    ({"stages": ("sft", "tokenizer")}, ("order",)),
    ({"stages": ("tokenizer", "sft")}, ("evaluators",)),
    ({"protocol": "vibes"}, ("vibes", "recovery")),
    ({"protocol": "oracle", "data.name": "imported"}, ("oracle", "world")),
    ({"rl.explore": "walk"}, ("walk", "chains")),
    ({"rl.credit": "blame"}, ("blame", "group")),
    ({"rl.objective": "win"}, ("win", "clipped")),
    ({"rl.reward": "money"}, ("money", "evaluator")),
    ({"rl.explore": "beam"}, ("beam", "biased_credit")),
    ({"rl.temperature": 2.0}, ("temperature", "biased_credit")),
    (
      {"rl.reward": "world", "data.name": "kuairand_pure"},
      ("world", "kuairand_pure"),
    ),
    ({"rl.group": 1}, ("group=1",)),
    (
      {"stages": ("tokenizer", "evaluators", "mine")},
      ("'mine' without 'lookahead'",),
    ),
    ({"stages": DEGRE, "distill.lists": 9}, ("lists=9", "width=8")),
    ({"stages": DEGRE, "distill.objective": "gossip"}, ("gossip", "distill")),
    ({"stages": DEGRE, "distill.objective": "preference"}, ("'sft'",)),
    ({"rl.bonus": "luck"}, ("luck", "novelty")),
    (
      {
        "rl.bonus": "noise",
        "rl.objective": "uniform_q",
        "rl.credit": "centred",
      },
      ("noise", "uniform_q", "reinforce"),
    ),
    (
      {
        "rl.reward": "good",
        "data.name": "kuairand_pure",
        "stages": ("tokenizer", "sft", "rl"),
        "protocol": "recovery",
        "demo.rule": "logged",
      },
      ("good", "evaluators"),
    ),
    ({"rl.walks": "random"}, ("rl.walks='random'", "greedy, drawn")),
    ({"rl.credit": "group+blame"}, ("group+blame", "a sum")),
    ({"rl.objective": "uniform_q", "rl.credit": "group"}, ("centred with",)),
    ({"rl.explore": "fixed_tree"}, ("sibling with clipped", "biased_credit")),
    ({"rl.credit": "confined"}, ("centred with clipped", "biased_credit")),
    (
      {
        "rl.explore": "fixed_tree",
        "rl.credit": "sibling",
        "rl.branching": (4, 3),
      },
      ("branching=(4, 3)", "group=8"),
    ),
    (
      {"rl.explore": "beam", "rl.credit": "confined", "rl.temperature": 0.5},
      ("config.rl.temperature=0.5 has no effect", "leave it at 1.0"),
    ),
    (
      {"stages": ("tokenizer", "evaluators", "sft", "rl", "ranker")},
      ("rl and ranker", "keep one"),
    ),
    ({"sft_name": "glorank_rl"}, ("config.name='glorank_rl'", "sft_name")),
    ({"session.turns": 3}, ("config.session.turns=3 has no effect", "20")),
    ({"ranker.name": "prm"}, ("config.ranker.name='prm' has no effect",)),
    ({"rl.budget": 7}, ("config.rl.budget=7 has no effect",)),
    (
      {"stages": ("tokenizer", "evaluators", "sft"), "rl.bonus": "novelty"},
      ("config.rl.bonus='novelty' has no effect",),
    ),
  ),
)
def test_illegal_compositions_are_refused(changes, words):
  config = config_lib.freeze(common.build(changes).to_dict())
  with pytest.raises(config_lib.ConfigError) as error:
    pipeline.check(config)
  for word in words:
    assert word in str(error.value)


@pytest.mark.parametrize(
  "changes",
  (
    {"rl.explore": "beam", "rl.biased_credit": True},
    {"rl.explore": "fixed_tree", "rl.credit": "sibling"},
    {"rl.explore": "beam", "rl.credit": "confined"},
    {"rl.credit": "centred+sibling"},
  ),
)
def test_legal_and_declared_compositions_are_allowed(changes):
  pipeline.check(config_lib.freeze(common.build(changes).to_dict()))


def test_unknown_variants_are_refused():
  with pytest.raises(ValueError, match=r"huge.*smoke"):
    common.build({}, "huge")


def test_fingerprints_tell_configs_apart():
  one, two = config_lib.TrainConfig(), config_lib.TrainConfig(steps=7)
  assert config_lib.fingerprint(one) == config_lib.fingerprint(one)
  assert config_lib.fingerprint(one) != config_lib.fingerprint(two)


def _leaves(config, at="config"):
  for name, value in config.items():
    if isinstance(value, ConfigDict):
      yield from _leaves(value, f"{at}.{name}")
    else:
      yield f"{at}.{name}", value


@pytest.mark.parametrize(
  "field, value", list(_leaves(common.build({}))), ids=str
)
def test_every_field_can_be_set_by_a_flag(field, value):
  given = 3 if value is None else value
  path = ROOT / "configs/glorank_rl.py"
  argv = ["x", f"--config={path}", f"--{field}={given}"]
  values = flags.FlagValues()
  config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
  values(argv)
  made = config_lib.freeze(values.config.to_dict())
  assert operator.attrgetter(field.removeprefix("config."))(made) == given
