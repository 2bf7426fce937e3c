"""Stage `rl` of the next-item task: what is found for a history is ranked.

Each row asks for the next item at one of its places, drawn at random. The
policy's own items are scored token by token, credited, and held near SFT's
policy by the KL at every state on their paths.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rerank_rl.config import Config, ConfigError, RLConfig, check_choice
from rerank_rl.data.sequences import Windows
from rerank_rl.decoding import next_item as decoding
from rerank_rl.decoding import tree as trees
from rerank_rl.decoding.catalogue import Tree
from rerank_rl.decoding.legality import NEGATIVE
from rerank_rl.models.next_item import NextItemPolicy
from rerank_rl.rl import credit, learner, objectives, ranking
from rerank_rl.training import fitting
from rerank_rl.training import state as states
from rerank_rl.training.next_item import NextItem, selection
from rerank_rl.training.stages import next_item as sft
from rerank_rl.training.stages.rl import STAGE, check_group
from rerank_rl.types import PAD, Array, Outcome, TokenTree

PLACES = 10  # Of a ranking, that count: NDCG@10 selects.


class Asked(NamedTuple):
  """One place of each row.

  Attributes:
    state: f32[B, d], what chooses the next item's first token there.
    target: i32[B], the item that came next.
  """

  state: Array
  target: Array


def ask(
  policy: NextItemPolicy,
  tree: Tree,
  params,
  batch: Windows,
  at: Array,
  key: Array,
) -> Asked:
  """`Asked` at the places i32[B] of a batch; the trunk drops out by the key."""
  state = policy.encode(params, tree, batch.item, batch.place, key)
  at = at[:, None]
  return Asked(
    jnp.take_along_axis(state, at[..., None], axis=1)[:, 0],
    jnp.take_along_axis(batch.target, at, axis=1)[:, 0],
  )


def _beam(policy, params, tree, state, group, key):
  return decoding.beam(policy, params, tree, state, group, key)[0]


# Explorers are functions (policy, params, tree, state, group, key) -> items
# i32[B, G].
EXPLORE = {"beam": _beam, "chains": decoding.samples}


# Credits are functions (token tree, outcome, config, key) -> Credit.
def _ranking(found, outcome, config, key):
  G = outcome.reward.shape[1]
  score = trees.on_path(found, found.logp_old).sum(-1) / config.temperature
  given, _ = ranking.plackett_luce(
    score, outcome.reward, trees.found(found), PLACES, G, key
  )
  return credit.spread(found, given * G)


def _plain(function):
  return lambda found, outcome, config, key: function(found, outcome)


CREDIT = {
  "centred": _plain(credit.centred),
  "group": _plain(credit.group),
  "ranking": _ranking,
}
# Samples tell of the policy's choices, a beam's items of its ranking alone.
LEGAL = {("beam", "ranking"), ("chains", "centred"), ("chains", "group")}


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


def ranked(method, tree, reference, params, batch: Windows, key):
  """The policy gradient at one place of each row, and the KL.

  Returns:
    (loss, denominator, figures for the loop).
  """
  policy, config = method.policy, method.config
  asking, finding, drawing, dropping = jax.random.split(key, 4)
  again = jax.random.clone(dropping)
  at = jax.random.categorical(
    asking, jnp.where(batch.target >= 0, 0.0, NEGATIVE)
  )
  now = ask(policy, tree, params, batch, at, dropping)
  frozen = jax.lax.stop_gradient((params, now.state))
  item = EXPLORE[config.explore](
    policy, frozen[0], tree, frozen[1], config.group, finding
  )
  scores = learner.score_items(policy, params, tree, now.state, item)
  # What is dropped is the same: the KL is then 0 where nothing was learnt.
  before = ask(policy, tree, reference, batch, at, again)
  old = learner.score_items(policy, reference, tree, before.state, item)
  found = token_tree(tree, item, scores)
  hit = (item == now.target[:, None]) & (item >= 0)
  hit = hit.astype(scores.logp.dtype)
  outcome = Outcome(hit, hit[..., None], 0 * hit)
  given = CREDIT[config.credit](found, outcome, config, drawing)
  main = objectives.reinforce(found, scores, given, config.clip)
  far = objectives.weighted(found, objectives.kl(scores, old))
  dead = credit.zero_variance(given)
  figures = {
    "reward": (hit.sum(), hit.size),
    "kl": far,
    "zero_variance_groups": (dead.sum(), dead.size),
  }
  return main.total + config.kl * far.total, main.denominator, figures


def continued(method, tree, reference, params, batch: Windows, key):
  """The control: SFT goes on. See `ranked`."""
  del reference
  total, count = sft.cross_entropy(method.member, tree, params, batch, key)
  return total, count, {}


OBJECTIVE = {"reinforce": ranked, "likelihood": continued}


def step(method, tree, reference, state, batch, key):
  """One gradient step; (state, metrics as (sum, count))."""

  def loss(params):
    total, count, figures = OBJECTIVE[method.config.objective](
      method, tree, reference, params, batch, key
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
  check_choice(rl.reward, ("labels",), "config.rl.reward")
  if (rl.explore, rl.credit) not in LEGAL:
    known = " or ".join(f"{e} with {c}" for e, c in sorted(LEGAL))
    raise ConfigError(
      f"config.rl.explore={rl.explore!r} with credit={rl.credit!r} would be "
      f"biased; the next item takes {known}."
    )
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
    config.rl,
    config.rl_train,
  )


def _fit(setting: NextItem) -> None:
  config, train = setting.config, setting.config.rl_train
  start = jax.tree.map(jnp.asarray, setting.params[config.sft_name])
  tx = states.optimizer(train)
  method = Method(setting.policy, setting.member, config.rl, tx, train.ema)
  own = jax.tree_util.Partial(
    functools.partial(step, method), setting.tree, start
  )
  batches = fitting.local_batches(setting, train.batch_size, STAGE)
  state = states.create(start, tx)
  fitting.fit(setting, STAGE, state, own, batches, train, selection(setting))
