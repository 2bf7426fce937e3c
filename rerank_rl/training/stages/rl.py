"""Stage `rl`: explore, reward, credit, objective; every method's loop."""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rerank_rl.config import Config, ConfigError, RLConfig
from rerank_rl.decoding import beam, fixed_tree, sample
from rerank_rl.decoding import tree as trees
from rerank_rl.models.policy import Policy
from rerank_rl.rl import credit, learner, objectives
from rerank_rl.training import curiosity, loop
from rerank_rl.training import state as states
from rerank_rl.training.checkpoint import load_artifact
from rerank_rl.training.setting import (
  Setting,
  greedy_ranker,
  keep,
  ready,
  selection,
)
from rerank_rl.training.stages.sft import learned, local_batches

STAGE = "rl"


def _chains(policy, params, game, key, config):
  # Chains that begin alike share edges: credit may compare siblings.
  return trees.merge(
    sample.chains(policy, params, game, key, config.group, config.temperature)
  )


def _beam(policy, params, game, key, config):
  del key
  return beam.beam(policy, params, game, config.group)


def _fixed_tree(policy, params, game, key, config):
  return fixed_tree.fixed_tree(policy, params, game, config.branching, key)


EXPLORE = {"chains": _chains, "beam": _beam, "fixed_tree": _fixed_tree}
CREDIT = {
  "centred": credit.centred,
  "group": credit.group,
  "sibling": credit.sibling,
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
  # Siblings drawn without replacement are compared with each other alone.
  ("fixed_tree", "sibling", "clipped"),
  ("fixed_tree", "sibling", "reinforce"),
}


def credits_of(config: RLConfig) -> tuple[str, ...]:
  """The parts of a credit: "group+sibling" is the sum of both."""
  return tuple(config.credit.split("+"))


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
  }
  for field, table in parts.items():
    value = getattr(rl, field)
    named = credits_of(rl) if field == "credit" else (value,)
    if not set(named) <= set(table):
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
  check_reward(config)
  curiosity.check(rl)
  states.check(config.rl_train, "config.rl_train")
  if rl.group < 2:
    raise ConfigError(
      f"config.rl.group={rl.group} gives no baseline; use at least 2."
    )
  if rl.explore == "fixed_tree" and (
    not all(isinstance(b, int) and b > 0 for b in rl.branching)
    or fixed_tree.leaves(rl.branching) != rl.group
  ):
    raise ConfigError(
      f"config.rl.branching={rl.branching} should multiply to config.rl.group="
      f"{rl.group}, the number of slates a request."
    )


def check_reward(config: Config) -> None:
  """Raises ConfigError: a reward that is unknown or that the run lacks."""
  rl = config.rl
  if rl.reward not in REWARDS:
    raise ConfigError(
      f"config.rl.reward={rl.reward!r}; choose from {', '.join(REWARDS)}."
    )
  if rl.reward == "world" and config.data.name != "world":
    raise ConfigError(
      f"config.rl.reward='world' needs config.data.name='world', not "
      f"{config.data.name!r}; use reward='evaluator' or 'labels'."
    )
  judged = rl.reward == "evaluator" or (
    rl.reward == "good" and config.data.name != "world"
  )
  if judged and "evaluators" not in config.stages:
    raise ConfigError(
      f"config.rl.reward={rl.reward!r} needs the stage 'evaluators' in "
      "config.stages."
    )


class Method(NamedTuple):
  """The static parts of an RL step."""

  policy: Policy
  config: RLConfig
  tx: object
  decay: float


def step(method, catalogue, reward, reference, state, batch, key):
  """One batch: roll out, reward, credit, `epochs` gradient steps.

  Args:
    method: static parts.
    catalogue: the Catalogue.
    reward: (impression, slate) -> Outcome.
    reference: parameters of the reference policy.
    state: TrainState of the policy.
    batch: Impression.
    key: PRNG key.

  Returns:
    (state, metrics as (sum, count)).
  """
  policy, config = method.policy, method.config
  prepare = functools.partial(
    sample.prepare, policy, catalogue=catalogue, request=batch.request
  )
  game = prepare(state.params)
  tree = EXPLORE[config.explore](policy, state.params, game, key, config)
  tree = jax.lax.stop_gradient(tree)
  outcome = reward(batch, tree.slate)
  given = credit.blend(
    *(CREDIT[name](tree, outcome) for name in credits_of(config))
  )
  old = learner.score_slates(policy, reference, prepare(reference), tree.slate)
  wanted, extra = given, {}
  if config.bonus:
    key = jax.random.fold_in(key, 1)
    state, bonus, extra = curiosity.explore(
      config, catalogue, state, batch, tree, outcome, key
    )
    wanted = credit.blend(given, bonus)

  def loss(params):
    scores = learner.score_slates(policy, params, prepare(params), tree.slate)
    main = OBJECTIVE[config.objective](tree, scores, wanted, config.clip)
    far = objectives.weighted(tree, objectives.kl(scores, old))
    wide = objectives.weighted(tree, objectives.entropy(scores))
    total = main.total + config.kl * far.total - config.entropy * wide.total
    return total / jnp.maximum(main.denominator, 1e-6), (scores, main)

  grad = jax.grad(loss, has_aux=True)
  grads, (scores, main) = grad(state.params)
  state = states.apply_gradients(state, grads, method.tx, method.decay)
  for _ in range(config.epochs - 1):
    grads, (scores, main) = grad(state.params)
    state = states.apply_gradients(state, grads, method.tx, method.decay)
  figures = diagnostics(method, tree, outcome, given, scores, old, main)
  return state, figures | extra


def diagnostics(method, tree, outcome, given, scores, old, main) -> dict:
  """What to watch: (sum, count) each; per level where levels differ."""
  reward = outcome.reward
  dead = credit.zero_variance(given)
  ratio = objectives.ratio(tree, scores)
  clipped = jnp.abs(ratio - 1) > method.config.clip
  out = {
    "loss": (main.total, main.denominator),
    "reward": (reward.sum(), reward.size),
    "zero_variance_groups": (dead.sum(), dead.size),
    "clip_share": ((tree.weight * clipped).sum(), tree.weight.sum()),
  }
  L = method.policy.levels
  real = scores.legal.any(-1)
  for name, values in (
    ("entropy", objectives.entropy(scores)),
    ("kl", objectives.kl(scores, old)),
  ):
    for level in range(L):
      at = jnp.arange(values.shape[-1]) % L == level
      at = real & at[None, None]
      out[f"{name}_level_{level}"] = (jnp.sum(values * at), at.sum())
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
  setting = setting.identified(
    STAGE, setting.identity["sft"], config.rl, config.rl_train
  )
  if ready(setting, STAGE):
    params, meta = load_artifact(setting.folder(STAGE))
    return learned(setting, STAGE, config.name, params, meta["history"])
  train = config.rl_train
  tx = states.optimizer(
    dataclasses.replace(
      train,
      steps=train.steps * config.rl.epochs,
      warmup_steps=train.warmup_steps * config.rl.epochs,
    )
  )
  start = jax.tree.map(jnp.asarray, setting.params[config.sft_name])
  method = Method(setting.policy, config.rl, tx, train.ema)
  state = states.create(start, tx)
  if config.rl.bonus:
    state = curiosity.attach(setting, state)
  evaluate, select = selection(setting, greedy_ranker(setting))
  fit = loop.fit(
    state,
    jax.tree_util.Partial(
      functools.partial(step, method),
      setting.catalogue,
      setting.reward(config.rl.reward),
      start,
    ),
    local_batches(setting, train.batch_size, STAGE),
    train,
    setting.key(STAGE),
    folder=setting.folder(STAGE),
    title=STAGE,
    evaluate=evaluate,
    select=select,
    mesh=setting.mesh,
  )
  keep(setting, STAGE, fit.best_params, history=fit.history)
  return learned(setting, STAGE, config.name, fit.best_params, fit.history)
