"""Stage `replay`: agents that learn sessions from what they did."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rerank_rl.config import Config, ReplayConfig, check_choice, refuse_unread
from rerank_rl.rl import agents, offpolicy, replay
from rerank_rl.rl.agents import Agent
from rerank_rl.rl.objectives import Loss
from rerank_rl.rl.replay import Ring, Transition
from rerank_rl.simulation import session as simulation
from rerank_rl.training import replay as keeping
from rerank_rl.training import session as sessions
from rerank_rl.training import state as states
from rerank_rl.training.replay import ReplayState
from rerank_rl.training.session_setting import SessionRun
from rerank_rl.types import Array

STAGE = "replay"


class Method(NamedTuple):
  """The static parts of a step."""

  agent: Agent
  config: ReplayConfig
  difference: str
  gamma: float
  turns: int
  tx: Any
  decay: float


def check(config: Config) -> None:
  """Raises ConfigError: an agent or a difference that is not there."""
  check_choice(config.replay.agent, agents.AGENTS, "config.replay.agent")
  check_choice(
    config.session.difference, DIFFERENCE, "config.session.difference"
  )
  refuse_unread(config, "session.replay", "session.decay")
  states.check(config.rl_train, "config.rl_train")


def _quality(method, params, catalogue, batch, ahead) -> tuple[Loss, Array]:
  """(L_Q, Q(s, a) f32[B, X]) with V(s') = `ahead`."""
  target = batch.target(ahead, method.gamma)
  quality = method.agent.quality(params, catalogue, batch.request, batch.move)
  wide = jnp.broadcast_to(target[:, None], quality.shape)
  return offpolicy.quality_loss(quality, wide), quality


def temporal_difference(
  method: Method, params, target, catalogue, batch: Transition
) -> tuple[Loss, ...]:
  """(L_Q,): Q(s, a) is fitted to r + gamma (1 - left) Q'(s', greedy).

  Args:
    method: static parts.
    params: the agent's.
    target: those of the target network, Q'.
    catalogue: the Catalogue.
    batch: transitions.
  """
  ahead = method.agent.ahead(target, catalogue, batch.after)
  return (_quality(method, params, catalogue, batch, ahead)[0],)


def disentangled(
  method: Method, params, target, catalogue, batch: Transition
) -> tuple[Loss, ...]:
  """(L_Q, L_V): arXiv 2501.17409, with beta for each sample.

  Q(s, a) is fitted to r + gamma (1 - left) V'(s'), and V(s) to Q(s, a),
  weighed by what the exploring policy of today makes of the action against
  that of its day.

  Args:
    method: static parts.
    params: the agent's.
    target: those of the target network, V'.
    catalogue: the Catalogue.
    batch: transitions.
  """
  agent, request, move = method.agent, batch.request, batch.move
  ahead = agent.value(target, catalogue, batch.after)
  main, quality = _quality(method, params, catalogue, batch, ahead)
  logp = agent.logp(params, catalogue, request, move)
  weight = offpolicy.importance(logp, move.logp, method.config.clip)
  value = agent.value(params, catalogue, request)
  return main, offpolicy.value_loss(value, quality.mean(-1), weight)


DIFFERENCE = {"td": temporal_difference, "disentangled": disentangled}


def play(method: Method, params, catalogue, environment, start, key):
  """What B users did in all turns: Transition, leading dimension turns * B."""

  def act(request, key):
    move = method.agent.act(params, catalogue, request, key)
    return move.slate, move

  played = simulation.play(environment, act, start, key, method.turns)
  return simulation.flat(
    Transition(played.request, played.record, played.answer, played.after)
  )


def _update(method: Method, catalogue, ring: Ring, state: ReplayState, key):
  """One gradient step on a batch drawn from the ring."""
  batch = replay.draw(ring, key, method.config.batch_size)
  learn = DIFFERENCE[method.difference]

  def loss(params):
    losses = learn(method, params, state.target, catalogue, batch)
    beside = method.agent.improve(params, catalogue, batch)
    total = sum(one.total / one.denominator for one in losses)
    return total + beside.mean(), (losses[0], beside)

  grads, (main, beside) = jax.grad(loss, has_aux=True)(state.params)
  state = states.apply_gradients(state, grads, method.tx, method.decay)
  return state, {"loss": main, "beside": Loss(beside.sum(), beside.size)}


def step(
  method: Method, catalogue, environment, state: ReplayState, start, key
):
  """One batch of users: play, keep, several gradient steps.

  Args:
    method: static parts.
    catalogue: the Catalogue.
    environment: the users' behaviour.
    state: ReplayState.
    start: B users.
    key: PRNG key.

  Returns:
    (state, metrics as (sum, count)).
  """
  first, second = jax.random.split(key)
  seen = play(method, state.params, catalogue, environment, start, first)
  update = functools.partial(_update, method, catalogue)
  state, figures = keeping.step(method.config, update, state, seen, second)
  return state, {**figures, **sessions.figures(seen.answer)}


def run(setting: SessionRun) -> SessionRun:
  """Learns, resumes or reloads the agent.

  Args:
    setting: after `tokenizer`.

  Returns:
    With `params[config.name]`, the agent's.
  """
  config = setting.config
  check(config)
  return sessions.run(setting, STAGE, _fit, config.replay)


def agent_of(setting: SessionRun) -> Agent:
  """The configured agent."""
  config = setting.config
  make = agents.AGENTS[config.replay.agent]
  return make(config.policy, setting.sizes, config.session, config.replay)


def make_method(setting: SessionRun, tx) -> Method:
  """The step's static parts of a run."""
  config = setting.config
  return Method(
    agent_of(setting),
    config.replay,
    config.session.difference,
    config.session.gamma,
    config.session.turns,
    tx,
    config.rl_train.ema,
  )


def _fit(setting: SessionRun) -> None:
  train, config = setting.config.rl_train, setting.config.replay
  agent = states.jit_once(agent_of(setting).init)
  request = sessions.example(setting)
  params = agent(setting.key("agent"), setting.catalogue, request)
  tx = states.optimizer(states.longer(train, config.updates), tuple(params))
  method = make_method(setting, tx)
  state = keeping.begin(setting, states.bound(play, method), params, tx)
  own = states.bound(step, method)
  sessions.fit(setting, STAGE, own, state, watch(setting))


def _greedy(agent: Agent, catalogue, params, request, key: Array) -> Array:
  del key
  return agent.greedy(params, catalogue, request)


def greedy_act(setting: SessionRun) -> sessions.Act:
  """The agent's greedy slates as a system."""
  return sessions.system(_greedy, agent_of(setting), setting.catalogue)


def watch(setting: SessionRun):
  """(evaluate, select) for `loop.fit`: greedy sessions of validation users."""
  return sessions.watch(setting, greedy_act(setting))


def systems(setting: SessionRun) -> dict[str, tuple[sessions.Act, Any]]:
  """What reports judge: the run's system as (act, parameters)."""
  name = setting.config.name
  return {name: (greedy_act(setting), setting.params[name])}
