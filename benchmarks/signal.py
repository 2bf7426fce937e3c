"""Learning signal: python -m benchmarks.signal --workdir=RUN.

RUN is a finished run of the world with SFT; its critic is fitted or found in
the artifacts. For each request, and each way to explore and to credit, one
gradient at equal forward tokens (16 chains', the prompt not counted) is held
against the gradient from 4,096 rollouts: their cosine, and the share of
requests that carry no signal at all. A first gradient on policy is the same for
reinforce and clipped.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from absl import app, flags
import jax
from jax import flatten_util
import jax.numpy as jnp
import numpy as np

from benchmarks import common, runs
from launch import errors
from rerank_rl.decoding import beam, fixed_tree, sample, value_guided
from rerank_rl.decoding import tree as trees
from rerank_rl.evaluation import bootstrap
from rerank_rl.models.critic import value_of
from rerank_rl.models.policy import Policy
from rerank_rl.rl import credit, learner, objectives, values
from rerank_rl.training.setting import Setting, by_chunks
from rerank_rl.types import Array, Impression, TokenTree

_REWARDS = flags.DEFINE_list("rewards", [], "Default: the run's.")

GROUP = 16  # Chains whose forward tokens everybody may spend.
REPEATS = 4  # Gradients of each kind a request.
ROLLOUTS = 4096  # Of the gradient that they are held against.
_BLOCK = 256  # Of which are held at a time.
_CHUNK = 8


class Way(NamedTuple):
  """How to explore, and credits of what was explored.

  Attributes:
    explore: (params, game, key) -> TokenTree.
    credits: name -> (params, game, tree, outcome) -> Credit.
  """

  explore: Callable
  credits: Mapping[str, Callable]


def ways(policy: Policy, critic: Any, decay: float) -> dict[str, Way]:
  """What is compared; the first credit is what the others are held against.

  Args:
    policy: whose signal is measured.
    critic: its critic's parameters.
    decay: the critic's lambda.

  Raises:
    ValueError: one of them feeds more tokens than GROUP chains.
  """
  T = policy.slots * policy.levels
  budget = GROUP * (T - 1)
  value = value_of(policy, critic)

  def chains(params, game, key):
    return trees.merge(sample.chains(policy, params, game, key, GROUP))

  def stratified(params, game, key):
    return trees.merge(sample.stratified(policy, params, game, key, GROUP))

  def tree(*widths):
    shape = tuple(n for w in widths for n in (w, *[1] * (policy.levels - 1)))
    spent = fixed_tree.forward_tokens(shape, T)
    if spent > budget:
      raise ValueError(f"A tree {widths} feeds {spent} tokens of {budget}.")
    return lambda params, game, key: fixed_tree.fixed_tree(
      policy, params, game, shape, key
    )

  def plain(*parts):
    return lambda params, game, tree, outcome: credit.blend(
      *(part(tree, outcome) for part in parts)
    )

  def multi_level(params, game, tree, outcome):
    read = values.along(policy, params, value, game, tree.slate)
    found = values.advantages(read, outcome, decay)
    return credit.critic(tree, outcome.replace(advantage=found))

  def beams(params, game, key):
    del key
    return beam.beam(policy, params, game, GROUP)

  def search(params, game, key):
    del key
    return value_guided.value_guided(policy, params, value, game, budget)

  # Within a request, `centred` points where `group` does.
  group = {"group": plain(credit.group)}
  sibling = {"sibling": plain(credit.sibling)}
  confined = {"confined": plain(credit.confined)}
  advantage = {"critic": multi_level}
  ahead = {"reward to go": plain(credit.to_go)}
  both = {"group + sibling": plain(credit.group, credit.sibling)}
  return {
    "chains": Way(chains, group | sibling | both | advantage | ahead),
    "stratified tree": Way(stratified, group | sibling | ahead),
    "beam": Way(beams, confined),
    "value-guided": Way(search, sibling | confined),
    "tree 4 x 4": Way(tree(4, 4), sibling | confined),
    # At the first token of all slots but the last: what fits.
    "tree of twins": Way(tree(*[2] * (policy.slots - 1)), sibling),
  }


def names(todo: Mapping[str, Way]) -> list[str]:
  """What `measure`'s columns are called."""
  return [f"{k}, {c}" for k, way in todo.items() for c in way.credits]


def gradients(
  policy: Policy,
  params: Any,
  catalogue,
  batch: Impression,
  tree: TokenTree,
  given: credit.Credit,
) -> Array:
  """The policy's gradients f32[C, P] by C credits stacked in one."""

  def loss(params, given):
    game = sample.prepare(policy, params, catalogue, batch.request)
    scores = learner.score_slates(policy, params, game, tree.slate)
    return objectives.reinforce(tree, scores, given, 0.0).total

  # One pass forward: nothing in it depends on the credit.
  each = jax.vmap(jax.grad(loss), (None, 0))(params, given)
  return jax.vmap(lambda x: flatten_util.ravel_pytree(x)[0])(each)


def true_gradient(
  policy: Policy, params: Any, catalogue, reward, batch: Impression, key
) -> Array:
  """REINFORCE over ROLLOUTS chains, against their mean reward: f32[P]."""
  game = sample.prepare(policy, params, catalogue, batch.request)

  def play(key):
    tree = sample.chains(policy, params, game, key, _BLOCK)
    return tree, reward(batch, tree.slate).reward

  keys = jax.random.split(key, ROLLOUTS // _BLOCK)
  played, worth = jax.lax.map(play, keys)
  worth -= worth.mean()

  def add(total, block):
    tree, advantage = block
    given = _stacked(credit.spread(tree, advantage))
    own = gradients(policy, params, catalogue, batch, tree, given)
    return total + own[0], None

  zero = jnp.zeros_like(flatten_util.ravel_pytree(params)[0])
  return jax.lax.scan(add, zero, (played, worth))[0]


def _stacked(*credits: credit.Credit) -> credit.Credit:
  return jax.tree.map(lambda *x: jnp.stack(x), *credits)


def cosine(a: Array, b: Array) -> Array:
  """Cosine of two vectors f32[P]; 0 where one of them is 0."""
  size = jnp.linalg.norm(a) * jnp.linalg.norm(b)
  return jnp.vdot(a, b) / jnp.maximum(size, jnp.finfo(a.dtype).tiny)


def measure(
  setting: Setting,
  todo: Mapping[str, Way],
  params: Any,
  reward: Callable,
  impressions: Impression,
) -> tuple[np.ndarray, np.ndarray]:
  """(cosines f32[n, C], share of gradients without signal, the same)."""
  policy = setting.policy

  def one(params, catalogue, reward, batch, key):
    batch = jax.tree.map(lambda x: x[None], batch)
    first, *keys = jax.random.split(key, 1 + len(todo))
    wanted = true_gradient(policy, params, catalogue, reward, batch, first)
    game = sample.prepare(policy, params, catalogue, batch.request)

    def tried(way, key):
      tree = way.explore(params, game, key)
      outcome = reward(batch, tree.slate)
      given = [f(params, game, tree, outcome) for f in way.credits.values()]
      own = gradients(policy, params, catalogue, batch, tree, _stacked(*given))
      silent = jnp.stack([credit.zero_variance(g)[0] for g in given])
      return jax.vmap(cosine, (0, None))(own, wanted), silent

    out = []
    for way, own in zip(todo.values(), keys, strict=True):
      each = jax.random.split(own, REPEATS)
      tries = jax.lax.map(lambda k, way=way: tried(way, k), each)
      out.append([x.mean(0) for x in tries])
    return tuple(jnp.concatenate(x) for x in zip(*out))

  @jax.jit
  def several(params, catalogue, reward, batch, rows):
    each = lambda x: one(
      params,
      catalogue,
      reward,
      x[0],
      jax.random.fold_in(setting.key("signal"), x[1]),
    )
    return jax.lax.map(each, (batch, rows))

  rows = np.arange(len(impressions.slate))
  return by_chunks(
    lambda x, i: several(params, setting.catalogue, reward, x, i),
    _CHUNK,
    impressions,
    rows,
  )


def main() -> None:
  """Prints a table for each reward."""
  setting = runs.learnt("tokenizer", "evaluators", "sft", "critic")
  todo = ways(setting.policy, setting.critic, setting.config.critic.decay)
  part = runs.requests(setting)
  params = jax.tree.map(jnp.asarray, setting.params[setting.config.sft_name])
  for name in _REWARDS.value or [setting.config.rl.reward]:
    cosines, silent = measure(setting, todo, params, setting.reward(name), part)
    title = (
      f"{len(cosines)} requests x {REPEATS} of seed {setting.config.seed}, "
      f"reward {name}; against {ROLLOUTS} rollouts"
    )
    _show(title, names(todo), cosines, silent)


def _show(title, names, cosines, silent):
  """Prints a table of `measure`'s columns."""
  rows = []
  for name, angle, none in zip(names, cosines.T, silent.T, strict=True):
    mean = bootstrap.over_requests(angle[:, None])[0]
    gap = bootstrap.paired_difference(angle[None], cosines[None, :, 0])
    cell = "{:.4f} [{:.4f}, {:.4f}]".format(*mean)
    rows.append((name, cell, gap.signed(), f"{none.mean():.1%}"))
  columns = ("explore, credit", "cosine", "minus the first's", "no signal")
  common.show(title, columns, rows)


if __name__ == "__main__":
  errors.run(app, main)
