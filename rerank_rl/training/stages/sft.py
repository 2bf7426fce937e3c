"""Stage `sft`: the policy clones demonstrations."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from rerank_rl.config import Config, ConfigError, check_choice
from rerank_rl.decoding import list_search, sample
from rerank_rl.models import ensemble
from rerank_rl.models.policy import Policy
from rerank_rl.rl import learner, objectives
from rerank_rl.training import fitting
from rerank_rl.training import state as states
from rerank_rl.training.setting import Setting, greedy_ranker, selection
from rerank_rl.types import PAD, Array, Impression

STAGE = "sft"


Demonstrate = Callable[[Impression, Array], Array]  # (batch, key) -> slate.


def logged(setting: Setting) -> Demonstrate:
  """Demonstrates what was shown."""
  del setting
  return jax.tree_util.Partial(_logged)


def _logged(batch: Impression, key: Array) -> Array:
  del key
  return batch.slate


def relevant_first(setting: Setting) -> Demonstrate:
  """Demonstrates what was shown, the items with feedback moved up."""
  del setting
  return jax.tree_util.Partial(_relevant_first)


def _relevant_first(batch: Impression, key: Array) -> Array:
  """Stable order by the first signal, padding last."""
  del key
  shown = batch.slate != PAD
  score = jnp.where(shown, batch.feedback[..., 0], -1)
  order = jnp.argsort(-score, axis=1, stable=True)
  return jnp.take_along_axis(batch.slate, order, axis=1)


def draws(setting: Setting) -> Demonstrate:
  """Demonstrates evaluator A's favourite of a few lists near the log.

  The lists are the one shown and `demo.samples` Plackett-Luce draws over the
  ranker's scores: off the log's own distribution by a choice alone, so that
  A is asked where it was fitted, and varied enough to leave RL room.
  """
  draw = states.bound(_best_draw, setting.config.demo.samples)
  return jax.tree_util.Partial(draw, setting.judged_by("a"))


def _best_draw(samples, reward, batch: Impression, key: Array) -> Array:
  request, K = batch.request, batch.slate.shape[1]
  real = request.candidates != PAD
  shape = (real.shape[0], samples, real.shape[1])
  noise = jax.random.gumbel(key, shape, request.scores.dtype)
  score = jnp.where(real[:, None], request.scores[:, None] + noise, -jnp.inf)
  slate = jax.lax.top_k(score, K)[1].astype(jnp.int32)
  size = jnp.minimum(real.sum(1), request.size)[:, None, None]
  slate = jnp.where(jnp.arange(K)[None, None] < size, slate, PAD)
  slate = jnp.concatenate([batch.slate[:, None], slate], axis=1)
  best = jnp.argmax(reward(batch, slate).reward, axis=1)
  return jnp.take_along_axis(slate, best[:, None, None], axis=1)[:, 0]


def greedy(setting: Setting) -> Demonstrate:
  """Demonstrates the list-greedy slate on evaluator A."""
  one = setting.judges["a"]
  search = states.bound(_greedy, one.model)
  return jax.tree_util.Partial(
    search,
    one.fitted,
    setting.catalogue.features,
    jnp.asarray(setting.weights),
  )


def _greedy(model, fitted, features, weights, batch, key) -> Array:
  del key
  best = search_slates(model, fitted, features, weights, batch.request, 1)
  return best[:, 0]


def search_slates(model, fitted, features, weights, request, width) -> Array:
  """Beam search on an evaluator: i32[B, width, K], best first."""
  score = ensemble.next_values(model, fitted, features, request, weights)
  return list_search.search(score, request, model.slots, width)


RULES = {
  "draws": draws,
  "greedy": greedy,
  "logged": logged,
  "relevant_first": relevant_first,
}


def step(
  policy: Policy, tx, decay: float, catalogue, demonstrate, state, batch, key
):
  """The SFT step: (state, metrics).

  Cross-entropy of the demonstrated tokens under the legality mask.
  """
  slate = jax.lax.stop_gradient(demonstrate(batch, key))[:, None]

  def objective(params):
    game = sample.prepare(policy, params, catalogue, batch.request)
    scores = learner.score_slates(policy, params, game, slate)
    return objectives.cross_entropy(scores, jnp.ones(slate.shape[:2]))

  return states.step_on(state, objective, tx, decay)


def check(config: Config) -> None:
  """Raises ConfigError: an unknown rule, or one without its evaluators."""
  rule = config.demo.rule
  check_choice(rule, RULES, "config.demo.rule")
  if rule in ("draws", "greedy") and "evaluators" not in config.stages:
    raise ConfigError(
      f"config.demo.rule={rule!r} asks evaluator A; add the stage 'evaluators' "
      "to config.stages."
    )
  states.check(config.sft, "config.sft")


def run(setting: Setting) -> Setting:
  """Learns, resumes or reloads the SFT policy.

  Args:
    setting: after `tokenizer`, and `evaluators` where the rule needs A.

  Returns:
    With `params[config.sft_name]`.

  Raises:
    ConfigError: see `check`.
  """
  config = setting.config
  check(config)
  return fitting.run(
    setting,
    STAGE,
    config.sft_name,
    _fit,
    setting.identity["tokenizer"],
    setting.identity.get("evaluators", ""),
    config.policy,
    config.demo,
    config.sft,
    config.protocol,
  )


def _fit(setting: Setting) -> None:
  config, policy = setting.config, setting.policy
  tx = states.optimizer(config.sft)
  own = jax.tree_util.Partial(
    states.bound(step, policy, tx, config.sft.ema),
    setting.catalogue,
    RULES[config.demo.rule](setting),
  )
  state = states.create(fresh(setting), tx)
  batches = fitting.local_batches(setting, config.sft.batch_size, STAGE)
  watch = selection(setting, greedy_ranker(setting))
  fitting.fit(setting, STAGE, state, own, batches, config.sft, watch)


def fresh(setting: Setting) -> Any:
  """The policy's first parameters, the same for every stage."""
  train = setting.dataset.splits["train"]
  example = jax.tree.map(lambda x: jnp.asarray(x[:2]), train.request)
  init = states.jit_once(setting.policy.init)
  return init(setting.key("policy"), setting.catalogue, example)
