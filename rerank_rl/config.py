"""The one place where a user's configuration becomes typed and checked.

Configs are `ml_collections.ConfigDict`s (so that `--config.a.b=c` works);
`freeze` turns one into the frozen dataclasses below or says, in one
sentence, which field is wrong and what it may be.
"""

from collections.abc import Mapping
import dataclasses
import hashlib
import json
from typing import Any


@dataclasses.dataclass(frozen=True)
class WorldConfig:
  """The synthetic world (docs/data.md). `seed=None` means `config.seed`."""

  seed: int | None = None
  num_items: int = 2000
  num_candidates: int = 50
  slate_size: int = 6
  fatigue: float = 2.5
  contrast: float = 0.16
  ranker_noise: float = 1.0
  feature_noise: float = 0.1
  num_topics: int = 20
  latent_dim: int = 8
  history_size: int = 20
  num_train: int = 240_000
  num_valid: int = 2_000
  num_test: int = 2_000
  cold_share: float = 0.05  # Items that no training request may hold.
  observed: bool = False  # The prompt holds exact latents, q, user vector.


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """Where impressions come from and which feedback training may see."""

  name: str = "world"  # world | movielens_1m | kuairand_pure | imported
  path: str = ""
  feedback: str = "logged"  # logged | shuffled | constant (training only)
  weights: tuple[float, ...] = ()  # Utility of each signal; () = data's own.


@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
  """Residual k-means."""

  levels: int = 3
  codes: int = 256
  iterations: int = 25
  balanced: bool = False


@dataclasses.dataclass(frozen=True)
class EvaluatorConfig:
  """List evaluators A, S and B (one fit each, on disjoint thirds)."""

  dim: int = 64
  max_epochs: int = 5
  batch_size: int = 256
  learning_rate: float = 2e-3
  weight_decay: float = 1e-2
  dropout: float = 0.1
  patience: int = 2
  members: int = 1  # Ensemble size.


@dataclasses.dataclass(frozen=True)
class PolicyConfig:
  """The prefix-LM that writes slates."""

  head: str = "global"  # global | pointer | local_index
  dim: int = 64
  layers: int = 2
  heads: int = 2
  dtype: str = "float32"


@dataclasses.dataclass(frozen=True)
class RankerConfig:
  """Supervised rerankers that emit no tokens."""

  name: str = ""  # "" | prm | nar4rec
  mmr: bool = False


@dataclasses.dataclass(frozen=True)
class TrainConfig:
  """One optimisation stage; every stage that learns has one."""

  steps: int = 1000
  batch_size: int = 64
  learning_rate: float = 1e-3
  warmup_steps: int = 50
  weight_decay: float = 1e-4
  clip_norm: float = 1.0
  accumulate: int = 1
  ema: float = 0.99
  eval_every: int = 100
  checkpoint_every: int = 100
  patience: int = 0  # Evaluations without gain before stopping; 0 = never.


@dataclasses.dataclass(frozen=True)
class DemoConfig:
  """Demonstrations that SFT clones."""

  rule: str = "greedy"  # draws | greedy | logged | relevant_first
  samples: int = 16  # Lists that `draws` lets evaluator A choose from.


@dataclasses.dataclass(frozen=True)
class RLConfig:
  """A method: explore x credit x objective x reward, and their numbers."""

  explore: str = "chains"
  credit: str = "group"
  objective: str = "clipped"
  reward: str = "evaluator"  # world | evaluator | labels
  group: int = 16
  temperature: float = 1.0
  clip: float = 0.2
  epochs: int = 1  # Gradient steps on each batch of rollouts.
  kl: float = 0.01
  entropy: float = 0.0
  biased_credit: bool = False


@dataclasses.dataclass(frozen=True)
class Config:
  """A run."""

  name: str = "glorank_rl"  # What reports call the run's own system.
  sft_name: str = "glorank_sft"
  seed: int = 0
  protocol: str = "value"  # value | recovery | oracle
  stages: tuple[str, ...] = ("tokenizer", "evaluators", "sft", "rl")
  quick_compile: bool = False  # Slower programs, sooner: for runs of seconds.
  world: WorldConfig = WorldConfig()
  data: DataConfig = DataConfig()
  tokenizer: TokenizerConfig = TokenizerConfig()
  evaluators: EvaluatorConfig = EvaluatorConfig()
  policy: PolicyConfig = PolicyConfig()
  ranker: RankerConfig = RankerConfig()
  demo: DemoConfig = DemoConfig()
  sft: TrainConfig = TrainConfig(steps=400)
  rl: RLConfig = RLConfig()
  rl_train: TrainConfig = TrainConfig(steps=200, batch_size=32, eval_every=50)


class ConfigError(ValueError):
  """A user's mistake; its text is the whole message shown."""


def freeze(tree: Mapping[str, Any], kind: type = Config, at: str = "config"):
  """Builds dataclass `kind` from a mapping, checking names and types.

  Args:
    tree: a (nested) mapping, such as a ConfigDict.
    kind: the dataclass to build.
    at: path used in messages.

  Returns:
    An instance of `kind`.

  Raises:
    ConfigError: an unknown field or a value of the wrong type.
  """
  fields = {f.name: f for f in dataclasses.fields(kind)}
  default = kind()
  values = {}
  for name, value in tree.items():
    if name not in fields:
      raise ConfigError(
        f"{at}.{name} is not a field; choose from {', '.join(fields)}."
      )
    old = getattr(default, name)
    if dataclasses.is_dataclass(old):
      value = freeze(value, type(old), f"{at}.{name}")
    else:
      value = _checked(value, old, f"{at}.{name}")
    values[name] = value
  return kind(**values)


def _checked(value: Any, old: Any, at: str) -> Any:
  """`value` in the type of the default `old`; None only where it was."""
  if old is None or value is None:
    if value is None and old is not None:
      raise ConfigError(f"{at} is None; give a {type(old).__name__}.")
    if value is not None and not isinstance(value, int):
      raise ConfigError(f"{at}={value!r} is not an integer or None.")
    return value
  if isinstance(old, tuple):
    if isinstance(value, (list, tuple)):
      return tuple(value)
    raise ConfigError(f"{at}={value!r} is not a list.")
  if isinstance(old, bool) or isinstance(value, bool):
    if not (isinstance(old, bool) and isinstance(value, bool)):
      raise ConfigError(f"{at}={value!r} should be {type(old).__name__}.")
    return value
  if isinstance(old, float) and isinstance(value, int):
    return float(value)
  if not isinstance(value, type(old)):
    raise ConfigError(f"{at}={value!r} should be {type(old).__name__}.")
  return value


def fingerprint(*parts: Any) -> str:
  """A short hash of dataclasses, strings and numbers: a stage's identity."""
  plain = [
    dataclasses.asdict(p) if dataclasses.is_dataclass(p) else p for p in parts
  ]
  text = json.dumps(plain, sort_keys=True, default=str)
  return hashlib.sha256(text.encode()).hexdigest()[:12]
