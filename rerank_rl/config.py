"""The one place where a user's configuration becomes typed and checked.

Configs are `ml_collections.ConfigDict`s (so that `--config.a.b=c` works);
`freeze` turns one into the frozen dataclasses below or says, in one
sentence, which field is wrong and what it may be.
"""

from collections.abc import Collection, Mapping
import dataclasses
import hashlib
import json
import math
import sys
import typing
from typing import Any

_TINY = 1e-12  # The least value of what must be positive.
_HUGE = sys.float_info.max  # The highest value of what must be finite.
_MOST = 2**31 - 1  # The highest of what is counted, in i32.
_SEED = 2**63 - 1  # The highest seed that JAX takes.


def _within(default: Any, low: float, high: float | None = None) -> Any:
  """A field whose value, or each of whose values, must be in [low, high]."""
  if high is None:
    high = _MOST if isinstance(default, int) else _HUGE
  return dataclasses.field(default=default, metadata={"low": low, "high": high})


@dataclasses.dataclass(frozen=True)
class WorldConfig:
  """The synthetic world (docs/data.md). `seed=None` means `config.seed`."""

  seed: int | None = _within(None, 0, _SEED)
  num_items: int = _within(2000, 1)
  num_candidates: int = _within(50, 1)
  slate_size: int = _within(6, 1)
  # Weight of an item's likeness to those above it.
  fatigue: float = _within(2.5, 0, 1e6)
  # Weight of the step in relevance from the item just above.
  contrast: float = _within(0.16, 0, 1e6)
  # Standard deviations: of ranker's scores from relevance, of item features.
  ranker_noise: float = _within(1.0, 0, 1e6)
  feature_noise: float = _within(0.1, 0, 1e6)
  num_topics: int = _within(20, 2)  # A user mixes two.
  latent_dim: int = _within(8, 1)
  history_size: int = _within(20, 1)
  num_train: int = _within(240_000, 1)
  num_valid: int = _within(2_000, 1)
  num_test: int = _within(2_000, 1)
  # Items that no training request may hold.
  cold_share: float = _within(0.05, 0, 0.99)
  observed: bool = False  # The prompt holds exact latents, q, user vector.


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """Where impressions come from and which feedback training may see."""

  # world | movielens_1m | kuairand_pure | imported | amazon_beauty | trust
  name: str = "world"
  path: str = ""
  feedback: str = "logged"  # logged | shuffled | constant (training only)
  # Utility of each signal; () = data's own.
  weights: tuple[float, ...] = _within((), -1e18, 1e18)
  # Of each split, evenly spaced in its order (time); 0 = all.
  max_rows: int = _within(0, 0)


@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
  """Residual k-means."""

  levels: int = _within(3, 1)
  codes: int = _within(256, 2)
  iterations: int = _within(25, 1)
  balanced: bool = False  # Whether all codes get as many items, in fitting.


@dataclasses.dataclass(frozen=True)
class EvaluatorConfig:
  """Networks that foretell feedback: of how many numbers, and how fitted."""

  dim: int = _within(64, 2)
  max_epochs: int = _within(3, 1)
  batch_size: int = _within(256, 1)
  learning_rate: float = _within(2e-3, _TINY)
  weight_decay: float = _within(1e-2, 0)
  dropout: float = _within(0.1, 0, 0.9)
  patience: int = _within(2, 0)
  members: int = _within(1, 1)  # Ensemble size.


@dataclasses.dataclass(frozen=True)
class PolicyConfig:
  """The prefix-LM that writes slates."""

  # global | pointer | local_index | hpn | hpn_expected
  head: str = "global"
  dim: int = _within(64, 2)
  layers: int = _within(2, 1)
  heads: int = _within(2, 1)
  dtype: str = "float32"


@dataclasses.dataclass(frozen=True)
class RankerConfig:
  """Supervised rerankers that emit no tokens."""

  name: str = ""  # "" | prm | nar4rec
  mmr: bool = False


@dataclasses.dataclass(frozen=True)
class TrainConfig:
  """One optimisation stage; every stage that learns has one."""

  steps: int = _within(1000, 1)
  batch_size: int = _within(64, 1)
  learning_rate: float = _within(1e-3, _TINY)
  warmup_steps: int = _within(50, 0)
  weight_decay: float = _within(1e-4, 0)
  clip_norm: float = _within(1.0, _TINY)  # Highest norm of a gradient.
  accumulate: int = _within(1, 1)  # Batches whose mean gradient is one update.
  # Decay of the parameters' running average, which is evaluated and kept.
  ema: float = _within(0.99, 0, 1 - 1e-9)
  eval_every: int = _within(100, 1)
  checkpoint_every: int = _within(100, 1)
  # Evaluations without gain before stopping; 0 = never.
  patience: int = _within(0, 0)


@dataclasses.dataclass(frozen=True)
class DemoConfig:
  """Demonstrations that SFT clones."""

  rule: str = "greedy"  # draws | greedy | logged | relevant_first
  # Lists that `draws` lets evaluator A choose from.
  samples: int = _within(16, 1)


@dataclasses.dataclass(frozen=True)
class RLConfig:
  """A method: explore x credit x objective x reward, and their numbers."""

  # chains | stratified | beam | fixed_tree | value_guided; sessions: chains;
  # the next item: beam | chains. LEGAL in the stage says what goes together.
  explore: str = "chains"
  # centred | group | sibling | to_go | critic | confined, or a sum such as
  # group+sibling; sessions: gae | a2c; the next item: expected | ranking |
  # centred | group.
  credit: str = "centred"
  # clipped | reinforce | reference | uniform_q; sessions: clipped | reinforce;
  # the next item: reinforce | likelihood.
  objective: str = "clipped"
  reward: str = "evaluator"  # world | evaluator | labels | good
  bonus: str = ""  # For exploring: "" | novelty | noise, its control.
  group: int = _within(8, 1)
  # Children of a node by depth, 1 beyond the end (explore=fixed_tree).
  branching: tuple[int, ...] = _within((4, 1, 1, 2), 1, _MOST)
  # Forward tokens a request without the prompt (explore=value_guided).
  budget: int = _within(136, 1)
  walks: str = "greedy"  # greedy | drawn (explore=value_guided).
  # Of samples (explore=chains); other than 1 needs biased_credit.
  # Colder, legal tokens would fall below the -1e9 of illegal ones.
  temperature: float = _within(1.0, 1e-3)
  clip: float = _within(0.2, _TINY)  # Of pi / pi_old - 1 (objective=clipped).
  epochs: int = _within(1, 1)  # Gradient steps on each batch of rollouts.
  # Weight of the KL to SFT's policy; in sessions to the policy's own average.
  kl: float = _within(0.003, 0)
  entropy: float = _within(0.003, 0)  # Weight of the bonus.
  biased_credit: bool = False  # Allows what LEGAL does not hold.


@dataclasses.dataclass(frozen=True)
class MineConfig:
  """Lists that the lookahead evaluator finds for training requests."""

  requests: int = _within(16_384, 1)  # All, where there are fewer.
  width: int = _within(8, 1)  # Of the beam, whose lists are all kept.
  shards: int = _within(8, 1)


@dataclasses.dataclass(frozen=True)
class DistillConfig:
  """What the policy learns from mined lists."""

  objective: str = "distill"  # distill | preference
  lists: int = _within(4, 1)  # The best of the mined.
  hard: float = _within(1.0, 0)  # Weight of the items' cross-entropy.
  soft: float = _within(0.3, 0)  # Weight of the KL to the soft labels, alpha.
  # Temperatures, in units of utility: of soft labels and of lists' weights.
  tau_q: float = _within(0.05, _TINY)
  tau: float = _within(0.05, _TINY)
  beta: float = _within(0.1, _TINY)  # Of preference.


@dataclasses.dataclass(frozen=True)
class CriticConfig:
  """The multi-level critic: TD(decay) on rollouts of the policy it values."""

  decay: float = _within(0.9, 0, 1)
  group: int = _within(8, 1)  # Rollouts a request.


@dataclasses.dataclass(frozen=True)
class NextItemConfig:
  """The trunk that reads sequences of items (protocol next_item)."""

  history: int = _within(20, 1)
  dropout: float = _within(0.1, 0, 0.9)  # Within the blocks.
  item_dropout: float = _within(0.3, 0, 0.9)  # Of the items that are read.
  own_dim: int = _within(16, 1)  # Of what a prefix adds to its codes.
  members: int = _within(1, 1)  # Models that learn apart and decide together.


@dataclasses.dataclass(frozen=True)
class ItemToItemConfig:
  """The evaluator of next items (protocol next_item, stage evaluators)."""

  decay: float = _within(0.6, _TINY, 1)  # Of what is longer past.
  penalty: float = _within(100.0, _TINY)  # On the squares of its entries.


@dataclasses.dataclass(frozen=True)
class SessionConfig:
  """Users who meet one slate after another (protocol session)."""

  gamma: float = _within(0.9, 0, 1)  # Discount a slate.
  decay: float = _within(0.5, 0, 1)  # Lambda, from slate to slate.
  turns: int = _within(20, 1)  # Slates a user, in a rollout and in reports.
  difference: str = "td"  # How values are learnt: td | disentangled.
  replay: bool = False  # Whether policies over tokens, too, learn from replay.
  # Users (docs/data.md); those of trust read none of these.
  patience: float = _within(12.0, 1)
  impatience: float = _within(2.0, 0)
  weariness: float = _within(2.0, 0)
  rest: float = _within(0.7, 0, 1)
  cost: float = _within(0.1, 0)
  habit: float = _within(0.2, _TINY, 1)  # Least chance a day of returning.
  fondness: float = _within(0.5, 0, 1)  # Of the rest, added by pleasure.
  users: str = "response"  # Where they are learnt: response | ensemble.

  @property
  def unit(self) -> float:
    """What a session is worth whose slates are worth 1 each: values' unit."""
    return sum(self.gamma**turn for turn in range(self.turns))


@dataclasses.dataclass(frozen=True)
class GoalsConfig:
  """What the policy can be asked for, and who shows it how (MocDT)."""

  window: int = _within(10, 1)  # Slates over which a goal is reached.
  behaviours: int = _within(128, 8)  # Fixed policies that are imitated.
  users: int = _within(256, 1)  # Who tell what a behaviour achieves.


@dataclasses.dataclass(frozen=True)
class ReplayConfig:
  """Learning sessions from replay (stage replay, `session.replay`)."""

  agent: str = "dqn"  # dqn | ddpg | hac | a2c
  # Of what is kept, in steps: each plays rl_train.batch_size users' turns.
  capacity: int = _within(64, 1)
  batch_size: int = _within(256, 1)  # Slates, of agents.
  updates: int = _within(4, 1)  # Gradient steps on batches, each step.
  tau: float = _within(0.02, _TINY, 1)  # Of the target network.
  # Exploring: a slot's chance of any item (dqn), noise on points (others).
  epsilon: float = _within(0.1, _TINY, 1)
  noise: float = _within(0.3, _TINY)
  clip: float = _within(5.0, _TINY)  # The highest importance weight.
  clicks: float = _within(1.0, 0)  # Weight of the clicks' cross-entropy.


@dataclasses.dataclass(frozen=True)
class Config:
  """A run."""

  name: str = "glorank_rl"  # What reports call the run's own system.
  sft_name: str = "glorank_sft"
  seed: int = _within(0, 0, _SEED)
  protocol: str = "value"  # value | recovery | oracle | next_item | session
  stages: tuple[str, ...] = ("tokenizer", "evaluators", "sft", "rl")
  quick_compile: bool = False  # Slower programs, sooner: for runs of seconds.
  world: WorldConfig = WorldConfig()
  data: DataConfig = DataConfig()
  tokenizer: TokenizerConfig = TokenizerConfig()
  evaluators: EvaluatorConfig = EvaluatorConfig()  # A, S and B.
  response: EvaluatorConfig = EvaluatorConfig(max_epochs=20)  # Users.
  policy: PolicyConfig = PolicyConfig()
  next_item: NextItemConfig = NextItemConfig()
  item_to_item: ItemToItemConfig = ItemToItemConfig()
  session: SessionConfig = SessionConfig()
  goals: GoalsConfig = GoalsConfig()
  replay: ReplayConfig = ReplayConfig()
  ranker: RankerConfig = RankerConfig()
  demo: DemoConfig = DemoConfig()
  sft: TrainConfig = TrainConfig(steps=400)
  mine: MineConfig = MineConfig()
  distill: DistillConfig = DistillConfig()
  distill_train: TrainConfig = TrainConfig(steps=800, eval_every=200)
  critic: CriticConfig = CriticConfig()
  critic_train: TrainConfig = TrainConfig(
    steps=1000, batch_size=32, learning_rate=4e-3, eval_every=250
  )
  rl: RLConfig = RLConfig()
  # A short average: one of 100 steps would lag behind a run of 400.
  rl_train: TrainConfig = TrainConfig(
    steps=400, batch_size=32, ema=0.95, eval_every=100
  )


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
  hints, default = typing.get_type_hints(kind), kind()
  values = {}
  for name, value in tree.items():
    if name not in fields:
      raise ConfigError(
        f"{at}.{name} is not a field; choose from {', '.join(fields)}."
      )
    old = getattr(default, name)
    if dataclasses.is_dataclass(old):
      if not isinstance(value, Mapping):
        raise ConfigError(
          f"{at}.{name}={value!r} is no group of fields; set those of "
          f"{type(old).__name__} one by one."
        )
      value = freeze(value, type(old), f"{at}.{name}")
    else:
      value = _checked(value, old, hints[name], f"{at}.{name}")
    values[name] = value
  made = kind(**values)
  check_bounds(made, at)
  return made


def check_choice(value: str, choices: Collection[str], at: str) -> None:
  """Raises ConfigError where field `at` is none of the choices."""
  if value not in choices:
    raise ConfigError(f"{at}={value!r}; choose from {', '.join(choices)}.")


def refuse_unread(config: Config, *fields: str) -> None:
  """Raises ConfigError where a field that a run does not read is set.

  Args:
    config: the run's.
    *fields: which, such as "rl.bonus", or "session": all of that part.
  """
  for field in fields:
    part, _, only = field.partition(".")
    given, unset = (
      dataclasses.asdict(getattr(x, part)) for x in (config, Config())
    )
    for name in [only] if only else unset:
      if given[name] != unset[name]:
        raise ConfigError(
          f"config.{part}.{name}={given[name]!r} has no effect on "
          f"config.protocol={config.protocol!r} with config.stages="
          f"{config.stages}; leave it at {unset[name]!r}."
        )


def unset(config: Config, *fields: str) -> Config:
  """`config` with the defaults of some fields; see `refuse_unread`."""
  for field in fields:
    part, _, only = field.partition(".")
    own, fresh = (getattr(x, part) for x in (config, Config()))
    if only:
      fresh = dataclasses.replace(own, **{only: getattr(fresh, only)})
    config = dataclasses.replace(config, **{part: fresh})
  return config


def check_bounds(config: Any, at: str) -> None:
  """Raises ConfigError where a number is out of its field's bounds.

  Args:
    config: one of the dataclasses above.
    at: its path, for the message.
  """
  for field in dataclasses.fields(config):
    value, bounds = getattr(config, field.name), field.metadata
    if not bounds or value is None:
      continue
    low, high = bounds["low"], bounds["high"]
    for one in value if isinstance(value, tuple) else (value,):
      if not low <= one <= high:
        wanted = [
          "above 0" if low == _TINY else f">= {low}" if low > -_HUGE else "",
          f"<= {high}" if high < _MOST or high < one < math.inf else "",
          "" if math.isfinite(one) else "finite",
        ]
        raise ConfigError(
          f"{at}.{field.name}={value} must be "
          f"{' and '.join(filter(None, wanted))}."
        )


def _checked(value: Any, old: Any, hint: Any, at: str) -> Any:
  """`value` in the type of the default `old`; None only where it was."""
  if old is None or value is None:
    if value is None and old is not None:
      raise ConfigError(f"{at} is None; give a {type(old).__name__}.")
    if value is not None and not isinstance(value, int):
      raise ConfigError(f"{at}={value!r} is not an integer or None.")
    return value
  if isinstance(old, tuple):
    if not isinstance(value, (list, tuple)):
      raise ConfigError(f"{at}={value!r} is not a list.")
    each = typing.get_args(hint)[0]
    return tuple(
      _checked(x, each(), each, f"{at}[{i}]") for i, x in enumerate(value)
    )
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
