"""What a reranker that knows the items and the law could do at best.

The user is known only as a policy knows it: from the history and from the
ranker's scores. With S the candidates' scores and h the history,

  p(u | S, h) ~ p(u) prod_n N(S_n; rel(u, n), noise^2)
                prod_h sigmoid(rel(u, h)) / Z(u),
  Z(u) = sum over the catalogue of sigmoid(rel(u, i)),

sampled by sequential Monte Carlo: users drawn from the prior, the likelihood
raised to its power in steps, and between the steps resampling and moves
that leave the prior as it is (Neal 1998, "Regression and classification
using Gaussian process priors", as preconditioned Crank-Nicolson). That the
candidates are the best-scored of a pool is left out of the likelihood, and
history is taken as drawn from the whole catalogue even where a log withheld
the cold items; both cost the references a little, never the systems.
"""

import functools
import math

from flax import struct
import jax
import jax.numpy as jnp
import jax.scipy.stats as jstats
import numpy as np

from rerank_rl.types import PAD, Array, Request
from rerank_rl.world import click_law, utility
from rerank_rl.world import world as world_lib

PARTICLES = 256
STAGES = 8  # Tempering steps; the power rises as (stage / STAGES)^3.
STEPS = (0.6, 0.4, 0.2)  # Fresh noise in each of the moves of a stage.
ANCHORS = 2048  # Prior users that log Z is fitted on.
CHUNK = 32  # Requests at a time.


@struct.dataclass
class Roots:
  """A user's causes under the prior.

  Attributes:
    first: i32[S], topic a.
    second: i32[S], topic b.
    normal: f[S, 1 + D], N(0, 1): Phi of the first is topic a's share, the
      others are the noise.
  """

  first: Array
  second: Array
  normal: Array


def _users(world: world_lib.World, roots: Roots) -> jax.Array:
  """f[S, D]."""
  share = jstats.norm.cdf(roots.normal[:, :1])
  noise = roots.normal[:, 1:] / math.sqrt(world.z.shape[1])
  return world_lib.blend(world, roots.first, roots.second, share, noise)


def _monomials(users: Array) -> jax.Array:
  """f[S, D] -> f[S, F]: 1 and the products of up to three coordinates."""
  size = users.shape[1]
  i, j = np.triu_indices(size)
  square = users[:, i] * users[:, j]
  first, second = np.nonzero(np.arange(size)[:, None] <= i[None, :])
  cube = users[:, first] * square[:, second]
  one = jnp.ones_like(users[:, :1])
  return jnp.concatenate([one, users, square, cube], axis=-1)


@jax.jit
def _log_normalisers(world: world_lib.World, users: Array) -> jax.Array:
  """log Z of users f[S, D], exact: f[S]."""
  rows = jnp.arange(world.z.shape[0])

  def one(user):
    rel = world_lib.relevance(world, user, rows)
    return jnp.log(jax.nn.sigmoid(rel).sum())

  return jax.lax.map(one, users, batch_size=16)


def fit_normaliser(world: world_lib.World, key: Array) -> jax.Array:
  """Coefficients f[F] of log Z(u) as a cubic polynomial in u.

  Fitted by least squares on users of the prior, whose Z is exact. Users are
  unit vectors, so some monomials are collinear: numpy takes the shortest
  solution.
  """
  users = world_lib.users(world, key, ANCHORS)
  inputs = np.asarray(_monomials(users), np.float64)
  target = np.asarray(_log_normalisers(world, users), np.float64)
  # A cut well above rounding keeps f32 coefficients small.
  coefficients = np.linalg.lstsq(inputs, target, rcond=1e-5)[0]
  return jnp.asarray(coefficients, world.z.dtype)


def _log_likelihood(world, normaliser, request, users) -> jax.Array:
  """log p(S, h | u) of users f[S, D], up to a constant: f[S]."""
  bound = functools.partial(world_lib.relevance, world)
  many = jax.vmap(bound, (0, None))
  gap = request.scores[None, :] - many(users, request.candidates)
  gap = jnp.where(request.candidates[None, :] == PAD, 0.0, gap)
  # A ranker without noise would make every particle impossible.
  noise = max(world.config.ranker_noise, 1e-2)
  seen = (request.history != PAD)[None, :]
  kept = jax.nn.log_sigmoid(many(users, request.history))
  kept = jnp.where(seen, kept, 0.0).sum(-1)
  log_z = _monomials(users) @ normaliser
  return kept - seen.sum() * log_z - (gap**2).sum(-1) / (2 * noise**2)


def _resample(key: Array, log_weight: Array) -> jax.Array:
  """Systematic resampling: i[S] rows, row s about S w_s times."""
  count = log_weight.shape[0]
  edges = jnp.cumsum(jax.nn.softmax(log_weight))
  offset = jax.random.uniform(key, (), edges.dtype)
  points = (jnp.arange(count) + offset) / count
  return jnp.minimum(jnp.searchsorted(edges, points), count - 1)


def _moved(world, likelihood, power, state, inputs):
  """One Metropolis move of every particle, for the prior x likelihood^power.

  The proposal x' = sqrt(1 - b^2) x + b e leaves the prior as it is, so that
  the likelihood alone decides.

  Args:
    world: the truth.
    likelihood: users f[S, D] -> log-likelihoods f[S].
    power: the likelihood's.
    state: Roots and their log-likelihoods f[S].
    inputs: b f[], e f[S, 1 + D] Gaussian and exponential draws f[S].

  Returns:
    The new state and None, as scan wants it.
  """
  roots, value = state
  step, noise, bar = inputs
  fresh = roots.replace(
    normal=jnp.sqrt(1 - step**2) * roots.normal + step * noise
  )
  fresh_value = likelihood(_users(world, fresh))
  accept = power * (fresh_value - value) > -bar
  normal = jnp.where(accept[:, None], fresh.normal, roots.normal)
  value = jnp.where(accept, fresh_value, value)
  return (roots.replace(normal=normal), value), None


def posterior(
  world: world_lib.World, normaliser: Array, request: Request, key: Array
) -> jax.Array:
  """Equally weighted users of the posterior of one request.

  Args:
    world: the truth; its items and law are read, and the prior of users.
    normaliser: from `fit_normaliser`.
    request: one, without a leading dimension.
    key: a PRNG key.

  Returns:
    f[PARTICLES, D].
  """
  likelihood = functools.partial(_log_likelihood, world, normaliser, request)
  pair_key, draw_key, stage_key = jax.random.split(key, 3)
  shape, dtype = (PARTICLES, 1 + world.z.shape[1]), world.z.dtype

  def stage(state, inputs):
    rise, power, index = inputs
    key = jax.random.fold_in(stage_key, index)
    pick_key, noise_key, bar_key = jax.random.split(key, 3)
    rows = _resample(pick_key, rise * state[1])
    state = jax.tree.map(lambda x: x[rows], state)
    moves = (
      jnp.asarray(STEPS, dtype),
      jax.random.normal(noise_key, (len(STEPS), *shape), dtype),
      jax.random.exponential(bar_key, (len(STEPS), PARTICLES), dtype),
    )
    move = functools.partial(_moved, world, likelihood, power)
    return jax.lax.scan(move, state, moves)[0], None

  first, second = world_lib.topic_pairs(world, pair_key, PARTICLES)
  roots = Roots(first, second, jax.random.normal(draw_key, shape, dtype))
  powers = (np.arange(STAGES + 1) / STAGES) ** 3
  inputs = (
    jnp.asarray(np.diff(powers), dtype),
    jnp.asarray(powers[1:], dtype),
    jnp.arange(STAGES),
  )
  state = (roots, likelihood(_users(world, roots)))
  (roots, _), _ = jax.lax.scan(stage, state, inputs)
  return _users(world, roots)


def _by_mean_relevance(world, request, users) -> jax.Array:
  """i32[K]: the order of E[rel], which is rel at the mean user."""
  rel = world_lib.relevance(world, users.mean(0), request.candidates)
  rel = jnp.where(request.candidates == PAD, utility.NEG, rel)
  return jax.lax.top_k(rel, world.config.slate_size)[1]


def _by_mean_utility(world, request, users) -> jax.Array:
  """i32[K]: slot by slot the item of the largest E[e_t p_t]."""
  law, items = world.law, request.candidates
  truth = jax.vmap(lambda user: utility.truth_of(world, user, items))(users)
  prefix = click_law.empty_prefix(truth.rel)
  legal, slate = items != PAD, []
  for slot in range(world.config.slate_size):
    p = click_law.next_clicks(law, prefix, truth.rel, slot)
    gain = (prefix.examined[:, None] * p).mean(0)
    item = jnp.where(legal, gain, utility.NEG).argmax()
    prefix = click_law.place(
      law, prefix, truth.rel[:, item], p[:, item], truth.alike[:, item]
    )
    legal = legal.at[item].set(False)
    slate.append(item)
  return jnp.stack(slate).astype(jnp.int32)


RULES = {"bayes_pointwise": _by_mean_relevance, "bayes_list": _by_mean_utility}


@jax.jit
def _apply(world, normaliser, request, key, rows):
  def one(request, row):
    users = posterior(world, normaliser, request, jax.random.fold_in(key, row))
    slates = [rule(world, request, users) for rule in RULES.values()]
    return jnp.stack(slates)

  return jax.vmap(one)(request, rows)


def slates(
  world: world_lib.World, request: Request, key: Array
) -> dict[str, np.ndarray]:
  """What a reader of the posterior would show.

  Args:
    world: the truth; the users' vectors are not read.
    request: B requests, each of at least K candidates.
    key: a PRNG key.

  Returns:
    i32[B, K], positions in `request.candidates`: "bayes_pointwise", in the
    order of posterior mean relevance; "bayes_list", list-greedy on the
    posterior mean utility.
  """
  fit_key, key = jax.random.split(key)
  normaliser = fit_normaliser(world, fit_key)

  def part(history, candidates, scores, rows):
    known = Request(
      user=candidates[:, :0],
      history=history,
      candidates=candidates,
      scores=scores,
      size=candidates[:, 0],
    )
    return _apply(world, normaliser, known, key, rows)

  both = utility.chunked(
    part,
    CHUNK,
    request.history,
    request.candidates,
    request.scores,
    np.arange(len(request.candidates)),
  )
  return {name: both[:, i] for i, name in enumerate(RULES)}
