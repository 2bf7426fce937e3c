"""Agents that emit no tokens: DQN, DDPG, HAC, A2C.

An agent is a tuple of pure functions, and a config names it. Letters as in
types.py; D dimensions of a point. `params` is {"critic"}, or {"actor",
"critic"} of agents that act on points.
"""

from collections.abc import Callable
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from rerank_rl.config import PolicyConfig, ReplayConfig, SessionConfig
from rerank_rl.models.agents import ItemValues, PointActor, PointCritic
from rerank_rl.models.prefix_lm import Sizes
from rerank_rl.rl import offpolicy
from rerank_rl.rl.replay import Move, Transition
from rerank_rl.types import PAD, Array, Request


class Agent(NamedTuple):
  """Pure functions of one agent.

  Attributes:
    init: (key, catalogue, request) -> params.
    act: (params, catalogue, request, key) -> Move, exploring.
    greedy: (params, catalogue, request) -> slate i32[B, K].
    logp: (params, catalogue, request, move) -> f32[B], log pi(a | s) of the
      exploring policy.
    quality: (params, catalogue, request, move) -> f32[B, X], Q(s, a) in X
      readings of the action, each of which is fitted.
    ahead: (params, catalogue, request) -> f32[B], Q of the greedy action:
      V(s) as TD bootstraps it.
    value: (params, catalogue, request) -> f32[B], V(s) of the exploring
      policy, a network of its own for the disentangled TD.
    improve: (params, catalogue, transition) -> f32[B], a loss beside those
      of values.
  """

  init: Callable[..., Any]
  act: Callable[..., Move]
  greedy: Callable[..., Array]
  logp: Callable[..., Array]
  quality: Callable[..., Array]
  ahead: Callable[..., Array]
  value: Callable[..., Array]
  improve: Callable[..., Array]


def _real(request: Request) -> Array:
  return request.candidates != PAD


def top(request: Request, scores: Array, slots: int) -> Array:
  """The K best candidates i32[B, K] by scores f32[B, N]; padding last."""
  scores = jnp.where(_real(request), scores, -jnp.inf)
  return jax.lax.top_k(scores, slots)[1].astype(jnp.int32)


def _of_slate(values: Array, slate: Array) -> Array:
  """The mean f32[B] of values f32[B, N] over slates i32[B, K]."""
  return jnp.take_along_axis(values, slate, axis=1).mean(-1)


def _no_loss(params, catalogue, transition: Transition) -> Array:
  del params, catalogue
  return jnp.zeros(transition.answer.left.shape)


# The same arguments give the same functions, which jit then knows again.
@functools.cache
def dqn(
  policy: PolicyConfig,
  sizes: Sizes,
  session: SessionConfig,
  config: ReplayConfig,
) -> Agent:
  """Q-learning over items (Mnih et al. 2015), whose slates are top-K.

    Q(s, slate) = mean over its items of Q(s, i),   V(s') = max Q(s', slate),

  so that the best slate holds the K best items. The mean is fitted as one: what
  a slate does to the user's future is shared out among its items. It explores
  slot by slot, `offpolicy.epsilon_greedy`.

  Args:
    policy: widths.
    sizes: the data's.
    session: whose discount and unit values have.
    config: the numbers of exploring.
  """
  module = ItemValues(policy, sizes, session.unit)

  def apply(params, catalogue, request):
    own = {"params": params["critic"]}
    return jnp.asarray(module.apply(own, catalogue, request))

  def init(key, catalogue, request):
    made = module.init(key, catalogue, request, method="initialise")
    return {"critic": made["params"]}

  def logp(params, catalogue, request, move):
    scores = apply(params, catalogue, request)
    return offpolicy.epsilon_greedy_log_mass(
      scores, _real(request), move.slate, config.epsilon
    )

  def act(params, catalogue, request, key):
    scores, real = apply(params, catalogue, request), _real(request)
    slate = offpolicy.epsilon_greedy(
      key, scores, real, sizes.slots, config.epsilon
    )
    mass = offpolicy.epsilon_greedy_log_mass(
      scores, real, slate, config.epsilon
    )
    return Move(slate, jnp.zeros((slate.shape[0], 0)), mass)

  def greedy(params, catalogue, request):
    return top(request, apply(params, catalogue, request), sizes.slots)

  def quality(params, catalogue, request, move):
    each = apply(params, catalogue, request)
    return _of_slate(each, move.slate)[:, None]

  def ahead(params, catalogue, request):
    each = apply(params, catalogue, request)
    return _of_slate(each, top(request, each, sizes.slots))

  def value(params, catalogue, request):
    own = {"params": params["critic"]}
    return module.apply(own, catalogue, request, method="state")

  return Agent(init, act, greedy, logp, quality, ahead, value, _no_loss)


class _Points(NamedTuple):
  """Deterministic policy gradient over points (DDPG, Lillicrap et al. 2016).

    z = mu(s),   slate = top-K of z . e_i,   actor's gain Q(s, mu(s)),

  exploring by Gaussian noise on z. Top-K has no gradient, so the items'
  vectors learn from clicks alone: the cross-entropy of sigmoid(z . e + b),
  weighed by `config.clicks` (as HAC's authors do, arXiv 2302.03431).

  Attributes:
    actor: mu and the items' vectors.
    critic: Q(s, z) and V(s).
    session: whose discount values have.
    config: the numbers of exploring.
  """

  actor: PointActor
  critic: PointCritic
  session: SessionConfig
  config: ReplayConfig

  def point(self, params, catalogue, request):
    own = {"params": params["actor"]}
    return jnp.asarray(self.actor.apply(own, catalogue, request))

  def slate(self, params, catalogue, request, point):
    """The K candidates with the largest z . e."""
    own = {"params": params["actor"]}
    e = self.actor.apply(own, catalogue, request, method="vectors")
    scores = jnp.einsum("bd,bnd->bn", point, e)
    return top(request, scores, self.actor.sizes.slots)

  def of_point(self, params, catalogue, request, point):
    own = {"params": params["critic"]}
    return jnp.asarray(self.critic.apply(own, catalogue, request, point))

  def init(self, key, catalogue, request):
    first, second = jax.random.split(key)
    slate = jnp.zeros((request.size.shape[0], self.actor.sizes.slots), int)
    actor = self.actor.init(first, catalogue, request, method="initialise")
    critic = self.critic.init(
      second, catalogue, request, slate, method="initialise"
    )
    return {"actor": actor["params"], "critic": critic["params"]}

  def act(self, params, catalogue, request, key):
    mean = self.point(params, catalogue, request)
    noise = jax.random.normal(key, mean.shape, mean.dtype)
    point = mean + self.config.noise * noise
    slate = self.slate(params, catalogue, request, point)
    logp = offpolicy.gaussian_log_density(point, mean, self.config.noise)
    return Move(slate, point, logp)

  def greedy(self, params, catalogue, request):
    point = self.point(params, catalogue, request)
    return self.slate(params, catalogue, request, point)

  def logp(self, params, catalogue, request, move):
    mean = self.point(params, catalogue, request)
    return offpolicy.gaussian_log_density(move.point, mean, self.config.noise)

  def quality(self, params, catalogue, request, move):
    return self.of_point(params, catalogue, request, move.point)[:, None]

  def ahead(self, params, catalogue, request):
    point = self.point(params, catalogue, request)
    return self.of_point(params, catalogue, request, point)

  def value(self, params, catalogue, request):
    own = {"params": params["critic"]}
    return self.critic.apply(own, catalogue, request, method="state")

  def liking(self, params, catalogue, transition):
    """The cross-entropy f32[B] to the slates' clicks, weighed."""
    own, request = {"params": params["actor"]}, transition.request
    shown = transition.move.slate
    logits = jnp.asarray(
      self.actor.apply(own, catalogue, request, shown, method="clicks")
    )
    clicked = transition.answer.clicked.astype(logits.dtype)
    error = optax.sigmoid_binary_cross_entropy(logits, clicked).mean(-1)
    return self.config.clicks * error

  def improve(self, params, catalogue, transition):
    """-Q(s, mu(s)) / unit, and `liking`."""
    fixed = jax.lax.stop_gradient(params["critic"])
    own = {**params, "critic": fixed}
    worth = self.ahead(own, catalogue, transition.request)
    liking = self.liking(params, catalogue, transition)
    return liking - worth / self.critic.unit


class _HyperPoints(_Points):
  """Hyper-Actor Critic (arXiv 2302.03431), KuaiSim's strongest baseline.

  A Gaussian actor over points z, slates as DDPG's. The critic values both
  actions by one function, Q(s, z) and Q(s, h(slate)) with h the point that
  the slate's pooled items stand for, and |h(slate) - z|^2 aligns them.
  """

  def pooled(self, params, catalogue, request, move):
    own = {"params": params["critic"]}
    return self.critic.apply(
      own, catalogue, request, move.slate, method="pooled"
    )

  def quality(self, params, catalogue, request, move):
    points = move.point, self.pooled(params, catalogue, request, move)
    of = functools.partial(self.of_point, params, catalogue, request)
    return jnp.stack([of(point) for point in points], axis=-1)

  def improve(self, params, catalogue, transition):
    move = transition.move
    point = self.pooled(params, catalogue, transition.request, move)
    apart = ((point - move.point) ** 2).mean(-1)
    return super().improve(params, catalogue, transition) + apart


class _LikelyPoints(_Points):
  """Advantage actor-critic over points (A2C, Mnih et al. 2016).

    z ~ N(mu(s), noise^2),   slate = top-K of z . e_i,
    actor's gain beta A log pi(z | s),   A = r + gamma (1 - left) V(s') - V(s),

  with V(s) = Q(s, mu(s)), the critic's value of the actor's mean. It learns
  from what it has just done (`config.capacity` 1); beta, as in
  `offpolicy.importance`, is for what gradient steps since have changed. Items'
  vectors learn as DDPG's do.
  """

  def improve(self, params, catalogue, transition):
    """-beta A log pi(z | s) / unit, and `liking`."""
    request = transition.request
    fixed = jax.lax.stop_gradient(params)
    ahead = self.ahead(fixed, catalogue, transition.after)
    target = transition.target(ahead, self.session.gamma)
    gain = target - self.ahead(fixed, catalogue, request)
    logp = self.logp(params, catalogue, request, transition.move)
    beta = offpolicy.importance(logp, transition.move.logp, self.config.clip)
    liking = self.liking(params, catalogue, transition)
    return liking - beta * gain * logp / self.critic.unit


@functools.cache
def _on_points(
  kind: type[_Points],
  policy: PolicyConfig,
  sizes: Sizes,
  session: SessionConfig,
  config: ReplayConfig,
) -> Agent:
  """The functions of a kind of points; else the arguments are `dqn`'s."""
  actor = PointActor(policy, sizes)
  critic = PointCritic(policy, sizes, session.unit)
  parts = kind(actor, critic, session, config)
  return Agent(**{name: getattr(parts, name) for name in Agent._fields})


AGENTS = {
  "dqn": dqn,
  "ddpg": functools.partial(_on_points, _Points),
  "hac": functools.partial(_on_points, _HyperPoints),
  "a2c": functools.partial(_on_points, _LikelyPoints),
}
