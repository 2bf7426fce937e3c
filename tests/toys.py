"""Tiny requests and policies that several tests play with."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np

from rerank_rl import config as config_lib
from rerank_rl.config import PolicyConfig
from rerank_rl.decoding import sample
from rerank_rl.models.policy import Policy, make_policy
from rerank_rl.models.prefix_lm import Sizes
from rerank_rl.rl import learner
from rerank_rl.simulation import session
from rerank_rl.training import mesh, session_pipeline
from rerank_rl.training.session_setting import SessionRun
from rerank_rl.types import PAD, Array, Catalogue, Outcome, Request, TokenTree

HEADS = ("global", "pointer", "local_index", "hpn", "hpn_expected")
SIZES = Sizes(codes=3, levels=3, slots=3, history=4, candidates=5)

# A run of sessions in the synthetic world that takes seconds.
SESSIONS = {
  "world.num_items": 60,
  "world.num_candidates": 8,
  "world.slate_size": 3,
  "world.num_train": 64,
  "world.num_valid": 16,
  "world.num_test": 40,
  "tokenizer.codes": 8,
  "policy.dim": 16,
  "policy.layers": 1,
  "session.turns": 5,
  "rl_train.steps": 4,
  "rl_train.warmup_steps": 1,
  "rl_train.batch_size": 16,
  "rl_train.eval_every": 2,
}


def frozen(config, changes) -> config_lib.Config:
  """A config file's ConfigDict with dotted field -> value, frozen."""
  with config.ignore_type():
    config.update_from_flattened_dict(changes)
  return config_lib.freeze(config.to_dict())


def begun(config: config_lib.Config, folder) -> SessionRun:
  """A run of sessions before its stages, on one device."""
  return session_pipeline.begin(config, folder, mesh.make(jax.devices()[:1]))


def catalogue(seed: int = 0, items: int = 20, sizes: Sizes = SIZES):
  """Distinct semantic IDs that share many prefixes, random features."""
  random = np.random.default_rng(seed)
  every = list(itertools.product(range(sizes.codes), repeat=sizes.levels))
  sids = np.array(every, np.int32)[random.permutation(len(every))[:items]]
  features = random.normal(size=(items, 6)).astype(np.float32)
  return Catalogue(jnp.asarray(features), jnp.asarray(sids))


def request(seed: int = 0, batch: int = 4, items: int = 20, sizes=SIZES):
  """Requests with 5, 4, 2, 5, ... candidates."""
  random = np.random.default_rng(seed + 1)
  N, H = sizes.candidates, sizes.history
  candidates = np.stack([random.permutation(items)[:N] for _ in range(batch)])
  for row, count in zip(range(batch), itertools.cycle((N, N - 1, 2))):
    candidates[row, count:] = PAD
  history = random.integers(0, items, (batch, H))
  history[0, :2] = PAD
  scores = np.where(candidates < 0, 0, random.normal(size=(batch, N)))
  return Request(
    user=jnp.zeros((batch, 0)),
    history=jnp.asarray(history, jnp.int32),
    candidates=jnp.asarray(candidates, jnp.int32),
    scores=jnp.asarray(scores, jnp.float32),
    size=jnp.full((batch,), sizes.slots, jnp.int32),
  )


@functools.cache
def policy(
  head: str, sharpness: float = 1.3, seed: int = 0, sizes=SIZES, layers: int = 1
):
  """(Policy, params) whose distribution is far from uniform.

  A mistake about a later layer's cache takes two layers to show; programs of
  one compile in less time.
  """
  config = PolicyConfig(head=head, dim=16, layers=layers)
  made: Policy = make_policy(config, sizes)
  params = jax.jit(made.init)(jax.random.key(seed), catalogue(), request())
  return made, scaled(params, sharpness)


def scaled(params, factor: float, more: float = 0.0):
  """Parameters times a number, and more.

  In numpy: eager arithmetic on a tree compiles a program for every shape.
  """
  change = lambda x: jnp.asarray(np.asarray(x) * factor + more)
  return jax.tree.map(change, params)


def wide_policy(head: str, layers: int = 1):
  """The same with parameters in 64 bits; within `jax.enable_x64`.

  Only an error can then be seen: rounding stays near 1e-14.
  """
  config = PolicyConfig(head=head, dim=16, layers=layers, dtype="float64")
  to_wide = lambda x: jnp.asarray(np.float64(x))
  narrow = policy(head, layers=layers)[1]
  return make_policy(config, SIZES), jax.tree.map(to_wide, narrow)


# Apart, so that tests share the first: half of the whole.
prepare = jax.jit(sample.prepare, static_argnums=0)
_score = jax.jit(learner.score_slates, static_argnums=0)
_greedy = jax.jit(sample.greedy, static_argnums=0)


def game(policy: Policy, params, asked: Request | None = None) -> sample.Game:
  """`request()`, or another of the toy catalogue, made ready."""
  return prepare(policy, params, catalogue(), asked or request())


@functools.partial(jax.jit, static_argnums=(0, 3))
def _chains(policy: Policy, params, made, group: int, key):
  return sample.chains(policy, params, made, key, group)


def chains(policy: Policy, params, key, group: int = 16) -> TokenTree:
  """Rollouts of `request()`."""
  return _chains(policy, params, game(policy, params), group, key)


def greedy(policy: Policy, params, request: Request) -> Array:
  """Positions i32[B, K]."""
  return _greedy(policy, params, catalogue(), request)


def scores(
  policy: Policy, params, request: Request, slate
) -> learner.PathScores:
  """What the learner says of slates i32[B, G, K] of the toy catalogue."""
  return _score(policy, params, game(policy, params, request), slate)


def outcome(tree) -> Outcome:
  """A worth of slates that tells any two of them apart."""
  reward = jnp.sin(tree.slate @ jnp.array([5.0, 3.0, 1.0]))
  return Outcome(reward, jnp.zeros(tree.slate.shape), 0 * reward)


def every_slate(sizes: Sizes = SIZES) -> np.ndarray:
  """All ordered slates of full length: i32[P(N, K), K]."""
  slates = itertools.permutations(range(sizes.candidates), sizes.slots)
  return np.array(list(slates), np.int32)


def value(prompt, state, level, left):
  """An arbitrary value of children that tells siblings apart: f32[B, X, N]."""
  keys = jnp.sin(3 * prompt.keys[:, level]).sum(-1)
  place = state.sum(-1) + left
  return jnp.cos(keys[:, None] + place[..., None])


def counting():
  """A user is a number that grows by one a turn; he leaves at his limit."""

  def request(state):
    count, _ = state
    one = jnp.zeros((1,))
    return Request(count[None], one, one, one, jnp.int32(1))

  def react(state, slate, key):
    del slate, key
    count, limit = state
    away = (count + 1 >= limit).astype(jnp.int32)
    answer = session.Answer((count + 1)[None], jnp.ones((1,), bool), away)
    return (count + 1, limit), answer

  return session.Environment(
    session.as_is, lambda start, key: (jnp.float32(0), start), request, react
  )
