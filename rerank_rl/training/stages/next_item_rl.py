"""Stage `rl` of the next-item task: what is found for a history is valued.

Each row asks for the next item at one of its places. The policy's own items are
scored token by token, credited, and held near SFT's policy by the KL at every
state on their paths.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rerank_rl.config import (
  Config,
  ConfigError,
  RLConfig,
  check_choice,
  refuse_unread,
)
from rerank_rl.data.sequences import Windows
from rerank_rl.decoding import next_item as decoding
from rerank_rl.decoding import tree as trees
from rerank_rl.decoding.catalogue import Tree
from rerank_rl.decoding.legality import NEGATIVE
from rerank_rl.models import item_to_item
from rerank_rl.models.next_item import NextItemPolicy
from rerank_rl.rl import credit, learner, objectives, ranking
from rerank_rl.training import fitting
from rerank_rl.training import state as states
from rerank_rl.training.next_item import NextItem, selection
from rerank_rl.training.stages import next_item as sft
from rerank_rl.training.stages import next_item_evaluator as evaluator
from rerank_rl.training.stages.rl import (
  STAGE,
  check_explorer,
  check_group,
  need_evaluators,
)
from rerank_rl.types import PAD, Array, Outcome, TokenTree

PLACES = 10  # Of a ranking, that count: NDCG@10 selects.


def ask(
  policy: NextItemPolicy,
  tree: Tree,
  params,
  batch: Windows,
  at: Array,
  key: Array,
) -> jax.Array:
  """What chooses the next item's first token, f32[B, d], at places i32[B].

  The trunk drops out by the key.
  """
  state = policy.encode(params, tree, batch.item, batch.place, key)
  return jnp.take_along_axis(state, at[:, None, None], axis=1)[:, 0]


class Reward(NamedTuple):
  """What is asked, and what an answer is worth.

  Attributes:
    rows: (setting) -> Windows that batches are made of.
    worth: (setting) -> a pytree that is called with (batch, at i32[B], items
      i32[B, G]), and gives f32[B, G].
    place: (batch, key) -> i32[B], where each row is asked.
  """

  rows: Callable
  worth: Callable
  place: Callable


def _hit(batch, at, item):
  target = jnp.take_along_axis(batch.target, at[:, None], axis=1)
  return ((item == target) & (item >= 0)).astype(jnp.float32)


def _any_place(batch, key):
  return jax.random.categorical(
    key, jnp.where(batch.target >= 0, 0.0, NEGATIVE)
  )


def _untold(setting: NextItem) -> Windows:
  """All training items of each user: what follows them nobody has been told."""
  valid = setting.dataset.splits["valid"]
  return valid.replace(target=np.full_like(valid.target, PAD))


def _followed(matrix, batch, at, item, decay):
  del at  # The last.
  score = item_to_item.scores(matrix, batch, decay)
  return jnp.take_along_axis(score, jnp.maximum(item, 0), axis=1)


def _evaluated(setting: NextItem) -> Callable:
  decay = setting.config.item_to_item.decay
  score = states.bound(_followed, decay=decay)
  return jax.tree_util.Partial(score, setting.follows)


def _last_place(batch, key):
  del key
  return jnp.full(len(batch.item), batch.item.shape[1] - 1)


REWARDS = {
  "evaluator": Reward(_untold, _evaluated, _last_place),
  "labels": Reward(
    lambda setting: setting.dataset.splits["train"],
    lambda setting: jax.tree_util.Partial(_hit),
    _any_place,
  ),
}


def _beam(policy, params, tree, state, group, key):
  return decoding.beam(policy, params, tree, state, group, key)[0]


# Explorers are functions (policy, params, tree, state, group, key) -> items
# i32[B, G].
EXPLORE = {"beam": _beam, "chains": decoding.samples}


def _scores(found):
  """log pi of the items found, f32[B, G]."""
  return trees.on_path(found, found.logp_old).sum(-1)


# Credits are functions (token tree, outcome, key) -> Credit.
def _ranking(found, outcome, key):
  G, score = outcome.reward.shape[1], _scores(found)
  given, _ = ranking.plackett_luce(
    score, outcome.reward, trees.found(found), PLACES, G, key
  )
  return credit.spread(found, given * G)


def _plain(function):
  return lambda found, outcome, key: function(found, outcome)


def _expected(found, outcome, key):
  del key
  return credit.expected(found, outcome, _scores(found))


CREDIT = {
  "centred": _plain(credit.centred),
  "expected": _expected,
  "group": _plain(credit.group),
  "ranking": _ranking,
}
# Samples tell of the policy's choices, a beam's items of its ranking alone.
LEGAL = {
  ("beam", "expected"),
  ("beam", "ranking"),
  ("chains", "centred"),
  ("chains", "group"),
}


def token_tree(
  tree: Tree, item: Array, scores: learner.PathScores
) -> TokenTree:
  """Items i32[B, G] as chains of tokens, as `scores` has found them."""
  code = tree.code[tree.path[jnp.maximum(item, 0)]]
  token = jnp.where((item >= 0)[..., None], code, PAD)
  logp = jax.lax.stop_gradient(scores.logp)
  none = jnp.zeros_like(logp)
  return trees.from_chains(token, logp, none, item[..., None], logp, False)


class Method(NamedTuple):
  """The static parts of a step."""

  policy: NextItemPolicy
  member: NextItemPolicy
  config: RLConfig
  tx: object
  decay: float


def valued(method, tree, reference, worth, params, batch: Windows, key):
  """The policy gradient at one place of each row, and the KL.

  Returns:
    (loss, denominator, figures for the loop).
  """
  policy, config = method.policy, method.config
  asking, finding, drawing, dropping = jax.random.split(key, 4)
  again = jax.random.clone(dropping)
  at = REWARDS[config.reward].place(batch, asking)
  now = ask(policy, tree, params, batch, at, dropping)
  frozen = jax.lax.stop_gradient((params, now))
  item = EXPLORE[config.explore](
    policy, frozen[0], tree, frozen[1], config.group, finding
  )
  scores = learner.score_items(policy, params, tree, now, item)
  # What is dropped is the same: the KL is then 0 where nothing was learnt.
  before = ask(policy, tree, reference, batch, at, again)
  old = learner.score_items(policy, reference, tree, before, item)
  found = token_tree(tree, item, scores)
  value = worth(batch, at, item).astype(scores.logp.dtype)
  outcome = Outcome(value, value[..., None], 0 * value)
  given = CREDIT[config.credit](found, outcome, drawing)
  main = objectives.reinforce(found, scores, given, config.clip)
  far = objectives.weighted(found, objectives.kl(scores, old))
  dead = credit.zero_variance(given)
  figures = {
    "reward": (value.sum(), value.size),
    "kl": far,
    "zero_variance_groups": (dead.sum(), dead.size),
  }
  return main.total + config.kl * far.total, main.denominator, figures


def continued(method, tree, reference, worth, params, batch: Windows, key):
  """The control: SFT goes on. See `valued`."""
  del reference, worth
  total, count = sft.cross_entropy(method.member, tree, params, batch, key)
  return total, count, {}


OBJECTIVE = {"reinforce": valued, "likelihood": continued}


def step(method, tree, reference, worth, state, batch, key):
  """One gradient step; (state, metrics as (sum, count))."""

  def loss(params):
    total, count, figures = OBJECTIVE[method.config.objective](
      method, tree, reference, worth, params, batch, key
    )
    return total / jnp.maximum(count, 1e-6), ((total, count), figures)

  grads, (own, figures) = jax.grad(loss, has_aux=True)(state.params)
  state = states.apply_gradients(state, grads, method.tx, method.decay)
  return state, {"loss": own, **figures}


def check(config: Config) -> None:
  """Refuses illegal compositions, with the reason.

  Raises:
    ConfigError: an unknown part, or parts that do not go together.
  """
  rl = config.rl
  check_choice(rl.explore, EXPLORE, "config.rl.explore")
  check_choice(rl.credit, CREDIT, "config.rl.credit")
  check_choice(rl.objective, OBJECTIVE, "config.rl.objective")
  check_choice(rl.reward, REWARDS, "config.rl.reward")
  if rl.reward == "evaluator":
    need_evaluators(config)
  if rl.objective == "likelihood" and rl.reward != "labels":
    raise ConfigError(
      "config.rl.objective='likelihood' learns from labels; add "
      "config.rl.reward=labels."
    )
  if (rl.explore, rl.credit) not in LEGAL:
    known = " or ".join(f"{e} with {c}" for e, c in sorted(LEGAL))
    raise ConfigError(
      f"config.rl.explore={rl.explore!r} with credit={rl.credit!r} would be "
      f"biased; the next item takes {known}."
    )
  if rl.entropy:
    raise ConfigError(
      f"config.rl.entropy={rl.entropy}: the next item has no bonus for "
      "entropy; use 0."
    )
  refuse_unread(config, "rl.epochs", "rl.bonus", "rl.temperature")
  check_explorer(config)
  check_group(rl)
  states.check(config.rl_train, "config.rl_train")


def run(setting: NextItem) -> NextItem:
  """Learns, resumes or reloads the RL policy, starting from SFT's.

  Args:
    setting: after `sft`.

  Returns:
    With `params[config.name]`.
  """
  config = setting.config
  return fitting.run(
    setting,
    STAGE,
    config.name,
    _fit,
    setting.identity[sft.STAGE],
    setting.identity.get(evaluator.STAGE, ""),
    config.rl,
    config.rl_train,
  )


def _fit(setting: NextItem) -> None:
  config, train = setting.config, setting.config.rl_train
  start = jax.tree.map(jnp.asarray, setting.params[config.sft_name])
  tx = states.optimizer(train)
  method = Method(setting.policy, setting.member, config.rl, tx, train.ema)
  reward = REWARDS[config.rl.reward]
  own = jax.tree_util.Partial(
    states.bound(step, method), setting.tree, start, reward.worth(setting)
  )
  rows, size = reward.rows(setting), train.batch_size
  batches = fitting.local_batches(setting, size, STAGE, rows)
  state = states.create(start, tx)
  fitting.fit(setting, STAGE, state, own, batches, train, selection(setting))
