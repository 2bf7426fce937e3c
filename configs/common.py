"""Defaults of all configs, and variants; README.md says of which configs."""

from collections.abc import Mapping
import dataclasses

from ml_collections import ConfigDict, config_dict

from rerank_rl.config import Config


def _networks(**numbers) -> dict:
  """The same numbers for evaluators and for models of users."""
  parts = ("evaluators", "response")
  return {f"{part}.{k}": x for part in parts for k, x in numbers.items()}


SMOKE = {
  "quick_compile": True,
  "data.max_rows": 2048,
  "world.num_items": 200,
  "world.num_candidates": 12,
  "world.slate_size": 4,
  "world.num_train": 2048,
  "world.num_valid": 32,
  "world.num_test": 32,
  "tokenizer.codes": 64,
  "tokenizer.iterations": 5,
  **_networks(max_epochs=1, members=1, batch_size=32, dim=16, dropout=0.0),
  "policy.dim": 16,
  "policy.layers": 1,
  "sft.steps": 30,
  "sft.warmup_steps": 10,
  "sft.eval_every": 30,
  "mine.requests": 128,
  "mine.width": 4,
  "mine.shards": 2,
  "distill_train.steps": 30,
  "distill_train.warmup_steps": 10,
  "distill_train.batch_size": 16,
  "distill_train.eval_every": 30,
  "goals.behaviours": 16,
  "goals.users": 8,
  "critic.group": 4,
  "critic_train.steps": 12,
  "critic_train.warmup_steps": 5,
  "critic_train.eval_every": 12,
  "replay.capacity": 4,
  "replay.batch_size": 32,
  "replay.updates": 2,
  "rl_train.steps": 12,
  "rl_train.warmup_steps": 5,
  "rl_train.batch_size": 16,
  "rl_train.eval_every": 12,
}

ORACLE = {
  "protocol": "oracle",
  # The truth is the judge.
  "stages": lambda stages: tuple(x for x in stages if x != "evaluators"),
  "world.observed": True,
  "world.num_items": 100,
  "world.num_topics": 8,
  "world.latent_dim": 4,
  "world.num_candidates": 6,
  "world.slate_size": 3,
  "world.history_size": 1,  # All is observed: history tells nothing.
  "world.num_train": 60_000,
  "world.num_valid": 1000,
  "world.cold_share": 0.0,
  "tokenizer.levels": 2,
  "tokenizer.codes": 16,
  "demo.rule": "logged",
  "sft.steps": 150,
  "rl.reward": "world",
  "rl.group": 16,
  "rl.entropy": 0.01,
  "rl.kl": 0.0,  # The truth needs no leash.
  "rl_train.steps": 1500,
  "rl_train.batch_size": 64,
  "rl_train.learning_rate": 2e-3,
  "rl_train.eval_every": 200,
}

RECOVERY = {
  "protocol": "recovery",
  "demo.rule": "relevant_first",
  "rl.reward": "labels",
  # Labels come slot by slot, and NDCG falls before it rises.
  "rl.credit": "to_go",
  "rl_train.patience": 0,
}

# Sessions in a world that is solved exactly: eight items, five states.
TRUST = {
  "data.name": "trust",
  "world.num_train": 1000,
  "world.num_valid": 500,
  "world.num_test": 1000,
  "tokenizer.levels": 2,
  "tokenizer.codes": 4,
}

# Sessions with users whose behaviour is learnt from the log.
LEARNT = {
  "stages": lambda stages: (stages[0], "response", *stages[1:]),
  "rl_train.learning_rate": 6e-3,
  "rl_train.steps": 200,  # Of few users: after more, policies get worse.
}

# DeGRe's lists against what was shown, from a policy that has cloned that.
PREFERENCE = {
  "stages": lambda stages: tuple(
    name
    for stage in stages
    for name in (("sft", stage) if stage == "distill" else (stage,))
  ),
  "sft_name": "logged_sft",
  "demo.rule": "logged",
  "distill.objective": "preference",
}

# Some 15,000 requests to learn from: most runs are at their best before the
# world's steps are through, so the first evaluation without gain ends them.
SMALL_LOG = {
  "sft.patience": 1,
  "distill_train.patience": 1,
  "rl_train.patience": 1,
}

# Of RL alone, where what SFT clones is nearly the best that A knows: small
# gains that last for longer than the world's.
PATIENT = {
  "movielens_1m": {
    "rl_train.steps": 800,
    "rl_train.learning_rate": 2e-3,
    "rl_train.patience": 0,
  }
}

VARIANTS = {
  "smoke": SMOKE,
  "oracle": ORACLE,
  "trust": TRUST,
  "learnt": LEARNT,
  "ensemble": {"session.users": "ensemble"},
  "recovery": RECOVERY,
  # With a higher bound on beta few samples say what V is.
  "disentangled": {
    "session.difference": "disentangled",
    "replay.clip": 1.0,
  },
  "good": {"rl.reward": "good"},
  "preference": PREFERENCE,
  "pointwise": {"world.fatigue": 0.0, "world.contrast": 0.0},
  "shuffled": {"data.feedback": "shuffled"},
  "constant": {"data.feedback": "constant"},
  "movielens_1m": {
    "data.name": "movielens_1m",
    **SMALL_LOG,
    "evaluators.members": 3,  # One network's S does not see what RL gains.
    "response.max_epochs": 3,  # A pass takes a minute.
  },
  "kuairand_pure": {
    "data.name": "kuairand_pure",
    **SMALL_LOG,
    # 4,800 slates an evaluator: many passes, firmly held. Log-loss on
    # validation .4390; by the world's numbers .4522, by constants .474.
    **_networks(max_epochs=20, patience=4, dropout=0.3, weight_decay=0.1),
    # As likely, but harder for a search to fool.
    "evaluators.dropout": 0.4,
    "evaluators.members": 3,
  },
  "m": {"policy.dim": 128, "policy.layers": 4, "policy.heads": 4},
  "amazon_beauty": {"data.name": "amazon_beauty"},  # Next item alone.
  "l": {"policy.dim": 256, "policy.layers": 4, "policy.heads": 8},
}


# What a method is, and how long it waits for gain: where its own config names
# one of these, variants do not.
COMPOSITION = frozenset(
  {
    "rl.explore",
    "rl.credit",
    "rl.objective",
    "rl.group",
    "rl_train.patience",
    "replay.capacity",
  }
)


def build(
  changes: dict, variant: str = "", own: Mapping[str, dict] | None = None
) -> ConfigDict:
  """The default config with a method's changes and named variants.

  Args:
    changes: dotted field -> value.
    variant: names of VARIANTS, separated by commas; later ones win, but for
      what makes the method (`COMPOSITION`).
    own: variant -> changes that it makes to this method after its own.

  Returns:
    A ConfigDict; flags may change it further.

  Raises:
    ValueError: an unknown variant, or two data sets.
  """
  config = ConfigDict(dataclasses.asdict(Config()), convert_dict=True)
  # None may become a number, by a flag too, and () a longer tuple.
  config.world.seed = config_dict.placeholder(int)
  config.data = ConfigDict(config.data, type_safe=False)
  _update(config, changes)
  names = [name for name in variant.split(",") if name]
  data = [name for name in names if "data.name" in VARIANTS.get(name, ())]
  if len(set(data)) > 1:
    raise ValueError(f"variants {' and '.join(data)} are data sets; take one.")
  for name in names:
    if name not in VARIANTS:
      raise ValueError(
        f"variant {name!r} is unknown; choose from {', '.join(VARIANTS)}."
      )
    kept = COMPOSITION & changes.keys()
    given = VARIANTS[name].items()
    _update(config, {k: value for k, value in given if k not in kept})
    _update(config, (own or {}).get(name, {}))
  return config


def _update(config: ConfigDict, changes: dict) -> None:
  """Sets dotted fields; a function is given the value so far."""
  changes = {
    k: value(config[k]) if callable(value) else value
    for k, value in changes.items()
  }
  with config.ignore_type():
    config.update_from_flattened_dict(changes)
