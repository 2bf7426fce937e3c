"""Stage `rl`: explore, reward, credit, objective; every method's loop."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rerank_rl.config import (
  Config,
  ConfigError,
  RLConfig,
  check_choice,
  refuse_unread,
)
from rerank_rl.decoding import beam, fixed_tree, sample, value_guided
from rerank_rl.decoding import tree as trees
from rerank_rl.models.critic import value_of
from rerank_rl.models.policy import Policy
from rerank_rl.rl import credit, learner, objectives, values
from rerank_rl.training import curiosity, fitting
from rerank_rl.training import state as states
from rerank_rl.training.setting import Setting, greedy_ranker, selection

STAGE = "rl"


# Explorers are functions (policy, params, critic, game, key, config) ->
# TokenTree; `critic` is None where the composition has none.
def _chains(policy, params, critic, game, key, config):
  del critic
  # Chains that begin alike share edges: credit may compare siblings.
  return trees.merge(
    sample.chains(policy, params, game, key, config.group, config.temperature)
  )


def _stratified(policy, params, critic, game, key, config):
  del critic
  return trees.merge(sample.stratified(policy, params, game, key, config.group))


def _beam(policy, params, critic, game, key, config):
  del critic, key
  return beam.beam(policy, params, game, config.group)


def _fixed_tree(policy, params, critic, game, key, config):
  del critic
  return fixed_tree.fixed_tree(policy, params, game, config.branching, key)


def _value_guided(policy, params, critic, game, key, config):
  value = value_of(policy, critic)
  walks = key if config.walks == "drawn" else None
  return value_guided.value_guided(
    policy, params, value, game, config.budget, leaves=config.group, key=walks
  )


EXPLORE = {
  "chains": _chains,
  "stratified": _stratified,
  "beam": _beam,
  "fixed_tree": _fixed_tree,
  "value_guided": _value_guided,
}
WALKS = ("greedy", "drawn")
CREDIT = {
  "centred": credit.centred,
  "confined": credit.confined,
  "critic": credit.critic,
  "group": credit.group,
  "sibling": credit.sibling,
  "to_go": credit.to_go,
}
OBJECTIVE = {
  "clipped": objectives.clipped,
  "reinforce": objectives.reinforce,
  "reference": objectives.reference,
  "uniform_q": objectives.uniform_q,
}
REWARDS = ("world", "evaluator", "labels", "good")

# Compositions whose gradient means what its name says; anything else needs
# `biased_credit=True`. A beam's leaves are not samples of the policy.
LEGAL = {
  ("chains", "centred", "clipped"),
  ("chains", "centred", "reinforce"),
  ("chains", "group", "clipped"),
  ("chains", "group", "reinforce"),
  ("chains", "group", "reference"),
  ("beam", "group", "reference"),
  ("chains", "centred", "uniform_q"),
  ("chains", "sibling", "clipped"),
  ("chains", "sibling", "reinforce"),
  ("chains", "to_go", "clipped"),
  ("chains", "to_go", "reinforce"),
  # Each leaf is a sample of the policy; their mean hardly depends on one.
  ("stratified", "centred", "clipped"),
  ("stratified", "centred", "reinforce"),
  ("stratified", "group", "clipped"),
  ("stratified", "group", "reinforce"),
  ("stratified", "to_go", "clipped"),
  ("stratified", "to_go", "reinforce"),
  ("chains", "critic", "clipped"),
  ("chains", "critic", "reinforce"),
  # Siblings, however found, are compared with each other alone.
  ("fixed_tree", "sibling", "clipped"),
  ("fixed_tree", "sibling", "reinforce"),
  ("value_guided", "sibling", "clipped"),
  ("value_guided", "sibling", "reinforce"),
  ("beam", "confined", "clipped"),
  ("beam", "confined", "reinforce"),
  ("fixed_tree", "confined", "clipped"),
  ("fixed_tree", "confined", "reinforce"),
  ("value_guided", "confined", "clipped"),
  ("value_guided", "confined", "reinforce"),
}


def credits_of(config: RLConfig) -> tuple[str, ...]:
  """The parts of a credit: "group+sibling" is the sum of both."""
  return tuple(config.credit.split("+"))


def reads_values(config: RLConfig) -> bool:
  """Whether a critic learns beside the policy."""
  return config.explore == "value_guided" or "critic" in credits_of(config)


def check(config: Config) -> None:
  """Refuses illegal compositions, with the reason.

  Raises:
    ConfigError: an unknown part, or parts that do not go together.
  """
  rl = config.rl
  parts = {
    "explore": EXPLORE,
    "credit": CREDIT,
    "objective": OBJECTIVE,
    "walks": WALKS,
  }
  for field, table in parts.items():
    value = getattr(rl, field)
    named = credits_of(rl) if field == "credit" else (value,)
    if not set(named) <= set(table) or len(set(named)) < len(named):
      sums = ", or a sum such as group+sibling" if field == "credit" else ""
      raise ConfigError(
        f"config.rl.{field}={value!r}; choose from {', '.join(table)}{sums}."
      )
  combinations = {(rl.explore, name, rl.objective) for name in credits_of(rl)}
  if not combinations <= LEGAL and not rl.biased_credit:
    known = sorted(f"{c} with {o}" for e, c, o in LEGAL if e == rl.explore)
    raise ConfigError(
      f"config.rl.credit={rl.credit!r} with objective={rl.objective!r} would "
      f"be biased with explore={rl.explore!r}, which goes with "
      f"{', '.join(known)}; or declare config.rl.biased_credit=True."
    )
  if rl.explore == "chains" and rl.temperature != 1 and not rl.biased_credit:
    raise ConfigError(
      f"config.rl.temperature={rl.temperature} does not sample from the "
      "policy, so the credit would be biased; use 1 or declare "
      "config.rl.biased_credit=True."
    )
  check_explorer(config)
  check_reward(config)
  curiosity.check(rl)
  states.check(config.rl_train, "config.rl_train")
  check_group(rl)
  if rl.epochs > 1 and config.rl_train.accumulate > 1:
    raise ConfigError(
      f"config.rl_train.accumulate={config.rl_train.accumulate} would sum one "
      f"batch's config.rl.epochs={rl.epochs} equal gradients; leave one at 1."
    )
  if reads_values(rl) and "critic" not in config.stages:
    raise ConfigError(
      f"config.rl.explore={rl.explore!r} with credit={rl.credit!r} reads a "
      "critic; add the stage 'critic' to config.stages, before 'rl'."
    )
  if rl.explore == "fixed_tree" and fixed_tree.leaves(rl.branching) != rl.group:
    raise ConfigError(
      f"config.rl.branching={rl.branching} should multiply to config.rl.group="
      f"{rl.group}, the number of slates a request."
    )


def check_depth(config: RLConfig, policy: Policy) -> None:
  """Raises ConfigError: a tree that branches deeper than a slate's tokens."""
  tokens = policy.slots * policy.levels
  within = fixed_tree.leaves(config.branching[:tokens])
  if config.explore == "fixed_tree" and within != config.group:
    raise ConfigError(
      f"config.rl.branching={config.branching} branches after the {tokens} "
      "tokens of a slate; give at most so many numbers."
    )


# What one explorer alone reads.
_OWN = {
  "chains": ("rl.temperature",),
  "fixed_tree": ("rl.branching",),
  "value_guided": ("rl.budget", "rl.walks"),
}


def check_explorer(config: Config) -> None:
  """Raises ConfigError: a number of another explorer than the run's."""
  for explore, fields in _OWN.items():
    if explore != config.rl.explore:
      refuse_unread(config, *fields)


def check_group(config: RLConfig) -> None:
  """Raises ConfigError: too few rollouts to compare."""
  if config.group < 2:
    raise ConfigError(
      f"config.rl.group={config.group} gives no baseline; use at least 2."
    )


def check_reward(config: Config) -> None:
  """Raises ConfigError: a reward that is unknown or that the run lacks."""
  rl = config.rl
  check_choice(rl.reward, REWARDS, "config.rl.reward")
  if rl.reward == "world" and config.data.name != "world":
    raise ConfigError(
      f"config.rl.reward='world' needs config.data.name='world', not "
      f"{config.data.name!r}; use reward='evaluator' or 'labels'."
    )
  judged = rl.reward == "evaluator" or (
    rl.reward == "good" and config.data.name != "world"
  )
  if judged:
    need_evaluators(config)


def need_evaluators(config: Config) -> None:
  """Raises ConfigError: the reward asks what the run does not fit."""
  if "evaluators" not in config.stages:
    raise ConfigError(
      f"config.rl.reward={config.rl.reward!r} needs the stage 'evaluators' in "
      "config.stages."
    )


class Method(NamedTuple):
  """The static parts of an RL step; `trace` is the critic's lambda."""

  policy: Policy
  config: RLConfig
  tx: object
  decay: float
  trace: float


# Explorers fold depths and numbers of leaves into the same key: none as high.
_BONUS = 2**31


def step(method, catalogue, reward, reference, state, batch, key):
  """One batch: roll out, reward, credit, `epochs` gradient steps.

  Args:
    method: static parts.
    catalogue: the Catalogue.
    reward: (impression, slate) -> Outcome.
    reference: parameters of the reference policy.
    state: TrainState of {"policy": ..., "critic": ... where one is read}.
    batch: Impression.
    key: PRNG key.

  Returns:
    (state, metrics as (sum, count)).
  """
  policy, config = method.policy, method.config
  prepare = functools.partial(
    sample.prepare, policy, catalogue=catalogue, request=batch.request
  )
  params, critic = state.params["policy"], state.params.get("critic")
  game = prepare(params)
  tree = EXPLORE[config.explore](policy, params, critic, game, key, config)
  tree = jax.lax.stop_gradient(tree)
  outcome = reward(batch, tree.slate)
  if critic is not None:
    read = _read(policy, params, critic, game, tree)
    found = values.advantages(read, outcome, method.trace)
    outcome = outcome.replace(advantage=found)
  given = credit.blend(
    *(CREDIT[name](tree, outcome) for name in credits_of(config))
  )
  old = learner.score_slates(policy, reference, prepare(reference), tree.slate)
  wanted, extra = given, {}
  if config.bonus:
    key = jax.random.fold_in(key, _BONUS)
    state, bonus, extra = curiosity.explore(
      config, catalogue, state, batch, tree, outcome, key
    )
    wanted = credit.blend(given, bonus)

  def loss(learnt):
    now = learnt["policy"]
    scores = learner.score_slates(policy, now, prepare(now), tree.slate)
    main = OBJECTIVE[config.objective](tree, scores, wanted, config.clip)
    far = objectives.weighted(tree, objectives.kl(scores, old))
    wide = objectives.weighted(tree, objectives.entropy(scores))
    total = main.total + config.kl * far.total - config.entropy * wide.total
    if critic is not None:  # Of the policy that rolled out, which it values.
      read = _read(policy, params, learnt["critic"], game, tree)
      total += values.temporal_difference(read, outcome, method.trace).total
    return total / jnp.maximum(main.denominator, 1e-6), (scores, main)

  grad = jax.grad(loss, has_aux=True)

  def fit(state):
    grads, (scores, main) = grad(state.params)
    state = states.apply_gradients(state, grads, method.tx, method.decay)
    return state, scores, main

  if config.epochs == 1:
    state, scores, main = fit(state)
  else:  # A loop, so that a step is compiled once; what it overwrites is empty.
    empty = jax.tree.map(jnp.zeros_like, jax.eval_shape(fit, state)[1:])
    again = lambda _, reached: fit(reached[0])
    state, scores, main = jax.lax.fori_loop(
      0, config.epochs, again, (state, *empty)
    )
  figures = diagnostics(method, tree, outcome, given, scores, old, main)
  return state, figures | extra


def _read(policy, params, critic, game, tree) -> values.PathValues:
  value = value_of(policy, critic)
  return values.along(policy, params, value, game, tree.slate)


def diagnostics(method, tree, outcome, given, scores, old, main) -> dict:
  """What to watch: (sum, count) each; per level where levels differ."""
  found = trees.found(tree)
  reward = jnp.where(found, outcome.reward, 0)
  dead = credit.zero_variance(given)
  ratio = objectives.ratio(tree, scores)
  clipped = jnp.abs(ratio - 1) > method.config.clip
  out = {
    "loss": (main.total, main.denominator),
    "reward": (reward.sum(), found.sum()),
    "zero_variance_groups": (dead.sum(), dead.size),
    "clip_share": ((tree.weight * clipped).sum(), tree.weight.sum()),
  }
  L = method.policy.levels
  real = scores.legal.any(-1)
  for name, each in (
    ("entropy", objectives.entropy(scores)),
    ("kl", objectives.kl(scores, old)),
  ):
    for level in range(L):
      at = jnp.arange(each.shape[-1]) % L == level
      at = real & at[None, None]
      out[f"{name}_level_{level}"] = (jnp.sum(each * at), at.sum())
  return out


def run(setting: Setting) -> Setting:
  """Learns, resumes or reloads the RL policy, starting from SFT's.

  Args:
    setting: after `sft`.

  Returns:
    With `params[config.name]`.
  """
  config = setting.config
  check(config)
  return fitting.run(
    setting,
    STAGE,
    config.name,
    _fit,
    setting.identity["sft"],
    config.rl,
    config.rl_train,
    *([setting.identity["critic"]] if reads_values(config.rl) else []),
  )


def _fit(setting: Setting) -> None:
  config = setting.config
  train = config.rl_train
  start = {"policy": setting.params[config.sft_name]}
  if reads_values(config.rl):
    start["critic"] = setting.critic
  start = jax.tree.map(jnp.asarray, start)
  schedule = states.longer(train, config.rl.epochs)
  tx = states.optimizer(schedule, tuple(start))
  method = Method(setting.policy, config.rl, tx, train.ema, config.critic.decay)
  rank = greedy_ranker(setting)
  state = states.create(start, tx)
  if config.rl.bonus:
    state = curiosity.attach(setting, state)
  own = jax.tree_util.Partial(
    states.bound(step, method),
    setting.catalogue,
    setting.reward(config.rl.reward),
    start["policy"],
  )
  batches = fitting.local_batches(setting, train.batch_size, STAGE)
  watch = selection(setting, lambda learnt, x: rank(learnt["policy"], x))
  kept = lambda learnt: learnt["policy"]
  fitting.fit(setting, STAGE, state, own, batches, train, watch, kept)
