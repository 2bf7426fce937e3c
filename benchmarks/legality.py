"""Counts illegal slates: python -m benchmarks.legality.

A million requests with random logits and ten thousand with each head, with
short candidate lists, slates of every size, shared prefixes, and business
rules in every other batch.
"""

from absl import app, flags
import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from benchmarks import common
from launch import errors
from rerank_rl.config import PolicyConfig
from rerank_rl.decoding import legality, sample
from rerank_rl.models.policy import HEADS, Policy, make_policy
from rerank_rl.models.prefix_lm import Prompt, Sizes
from rerank_rl.types import PAD, Catalogue, Request

_RANDOM = flags.DEFINE_integer("random", 10**6, "Requests with random logits.")
_EACH = flags.DEFINE_integer("each", 10**4, "Requests with each head.")
_SEED = flags.DEFINE_integer("seed", 0, "Seed of everything.")

BATCH, ITEMS, GROUPS = 2000, 80, 6
# Few codes a level: nearly every prefix is shared.
SIZES = Sizes(codes=5, levels=3, slots=6, history=2, candidates=20)


def noise(sizes: Sizes) -> Policy:
  """A policy whose logits are random numbers; its parameters are a key."""

  def prefill(key, catalogue, request, order):
    B, N = order.shape
    root = 5 * jax.random.normal(jax.random.fold_in(key, 0), (B, N))
    return Prompt(root, (), root > 0, root, root)

  def step(key, prompt, cache, rank, t, at, mask):
    key = jax.random.fold_in(key, t + 1)
    shape = (*rank.shape, prompt.root.shape[-1])
    return 5 * jax.random.normal(key, shape), cache

  return Policy(
    levels=sizes.levels,
    slots=sizes.slots,
    init=lambda key, catalogue, request: key,
    even=lambda key: key,
    codes=lambda c, r: c.sids[jnp.maximum(r.candidates, 0)],
    prefill=prefill,
    step=step,
    logits=lambda key, prompt, state, level: state,
    states=lambda *args: None,
    score=lambda *args: None,
    cache=lambda prompt, C, S: (),
  )


def catalogue(random: np.random.Generator) -> Catalogue:
  """Items with distinct semantic IDs."""
  number = random.choice(SIZES.codes**SIZES.levels, ITEMS, replace=False)
  shape = (SIZES.codes,) * SIZES.levels
  sids = np.stack(np.unravel_index(number, shape), 1)
  features = random.normal(size=(ITEMS, 4))
  return Catalogue(
    jnp.asarray(features, jnp.float32), jnp.asarray(sids, jnp.int32)
  )


def requests(random: np.random.Generator) -> Request:
  """1 .. N candidates in random places, 1 .. K slots."""
  N, K, H = SIZES.candidates, SIZES.slots, SIZES.history
  rows = np.argsort(random.random((BATCH, ITEMS)), axis=1).astype(np.int32)
  count = random.integers(1, N + 1, (BATCH, 1))
  candidates = np.where(np.arange(N) < count, rows[:, :N], PAD)
  return Request(
    user=np.zeros((BATCH, 0), np.float32),
    history=rows[:, -H:],
    candidates=candidates,
    scores=random.normal(size=(BATCH, N)).astype(np.float32),
    size=random.integers(1, K + 1, BATCH).astype(np.int32),
  )


def faults(slate, request, pins=None, groups=None, limit=None) -> np.ndarray:
  """bool[B]: an item twice, none of the request's, a hole, a broken rule."""
  K = slate.shape[1]
  count = (request.candidates >= 0).sum(1)
  shown = slate >= 0
  bad = (shown & (slate >= count[:, None])).any(1)
  ordered = np.sort(np.where(shown, slate, -1 - np.arange(K)), axis=1)
  bad |= (ordered[:, 1:] == ordered[:, :-1]).any(1)
  open_ = np.arange(K) < request.size[:, None]
  bad |= (shown & ~open_).any(1)
  if pins is None:
    return bad | (shown.sum(1) != np.minimum(request.size, count))
  pinned = (pins >= 0) & shown
  bad |= (pinned & (slate != pins)).any(1)
  where = np.where(shown, groups[np.arange(len(slate))[:, None], slate], -1)
  for group in range(GROUPS):
    bad |= (where == group).sum(1) > limit
  return bad


def count(policy: Policy, total: int, title: str) -> tuple[int, int]:
  """(requests decoded, of which illegal)."""
  random = np.random.default_rng(_SEED.value)
  items = catalogue(random)
  start = jax.jit(policy.init)

  def decode(params, request, key, rules=()):
    game = sample.prepare(policy, params, items, request)
    return sample.chains(policy, params, game, key, 1, rules=rules).slate[:, 0]

  free = jax.jit(decode)
  ruled = jax.jit(
    lambda params, request, key, pins, groups, limit: decode(
      params, request, key, (legality.pin(pins), legality.cap(groups, limit))
    )
  )
  done = illegal = 0
  for i in tqdm.tqdm(range(-(-total // BATCH)), desc=title):
    request = requests(random)
    key = jax.random.fold_in(jax.random.key(_SEED.value), i)
    params = start(key, items, request)  # Other logits for every batch.
    if i % 2 == 0:
      slate = np.asarray(free(params, request, key))
      illegal += faults(slate, request).sum()
    else:
      pins = np.full((BATCH, SIZES.slots), PAD, np.int32)
      real = (request.candidates >= 0).sum(1)
      pins[:, 1] = np.where(random.random(BATCH) < 0.5, real - 1, PAD)
      groups = random.integers(0, GROUPS, request.candidates.shape)
      groups = groups.astype(np.int32)
      limit = random.integers(1, 4, BATCH).astype(np.int32)
      slate = np.asarray(ruled(params, request, key, pins, groups, limit))
      illegal += faults(slate, request, pins, groups, limit).sum()
    done += BATCH
  return done, int(illegal)


def main() -> None:
  """Prints the table."""
  rows = [("random logits", *count(noise(SIZES), _RANDOM.value, "noise"))]
  for head in HEADS:
    policy = make_policy(PolicyConfig(head=head, dim=16), SIZES)
    rows.append((head, *count(policy, _EACH.value, head)))
  common.show("Decoded slates", ("logits", "requests", "illegal"), rows)


if __name__ == "__main__":
  errors.run(app, main)
