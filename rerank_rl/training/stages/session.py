"""Stage `session`: actor and critic learn from users who stay or leave."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from rerank_rl.config import Config, ConfigError, check_choice, refuse_unread
from rerank_rl.decoding import sample
from rerank_rl.models.hpn import LevelCritic
from rerank_rl.models.policy import Policy
from rerank_rl.rl import credit, learner, objectives, replay, values
from rerank_rl.simulation import session as simulation
from rerank_rl.training import critics
from rerank_rl.training import replay as keeping
from rerank_rl.training import session as sessions
from rerank_rl.training import state as states
from rerank_rl.training.critics import Method
from rerank_rl.training.session_setting import SessionRun

STAGE = "session"

# What the critic says of the tokens: (V, PathValues, Outcome, lambda) -> A.
CREDIT = {
  "gae": lambda value, read, outcome, trace: values.advantages(
    read, outcome, trace
  ),
  "a2c": lambda value, read, outcome, trace: values.whole(value, outcome, read),
}
OBJECTIVE = {
  "clipped": objectives.clipped,
  "reinforce": objectives.reinforce,
}


def check(config: Config) -> None:
  """Raises ConfigError: unknown parts, or parts that sessions do not have."""
  rl = config.rl
  at = "config.session.difference"
  check_choice(config.session.difference, critics.DIFFERENCE, at)
  check_choice(rl.credit, CREDIT, "config.rl.credit")
  check_choice(rl.objective, OBJECTIVE, "config.rl.objective")
  check_choice(rl.explore, ("chains",), "config.rl.explore")
  if rl.group != 1:
    raise ConfigError(
      f"config.rl.group={rl.group}: a user sees one slate a turn; use 1."
    )
  refuse_unread(config, "rl.epochs", "rl.temperature")
  if config.session.replay and rl.objective == "reinforce":
    raise ConfigError(
      "config.rl.objective='reinforce' takes slates for the policy's own; with "
      "config.session.replay use clipped."
    )
  states.check(config.rl_train, "config.rl_train")


def learn(method: Method, catalogue, state, target, played: simulation.Turns):
  """One gradient step on sessions: value, credit, objective.

  Who has shown nothing yet has no reference policy; KL leads back to the
  policy's own running average, as what swings from batch to batch is noise.

  Args:
    method: static parts.
    catalogue: the Catalogue.
    state: TrainState of {"policy", "critic"}.
    target: parameters whose critic says what comes after a slate; it reads
      the policy that learns, as `prepare` did.
    played: by the policy, or by what it once was.

  Returns:
    (state, metrics as (sum, count)).
  """
  policy, rl = method.policy, method.rl
  flat = simulation.flat
  request, tree = jax.lax.stop_gradient(flat((played.request, played.record)))
  last = jax.tree.map(lambda x: x[-1], played.after)
  clicked = flat(played.answer.clicked)
  by_turn = lambda x: x.reshape(played.left.shape)

  def scored(own):
    game = sample.prepare(policy, own, catalogue, request)
    return game, learner.score_slates(policy, own, game, tree.slate)

  _, steady = scored(state.ema["policy"])

  def loss(params):
    own = params["policy"]
    game, scores = scored(own)
    value = critics.state_value(method, params, catalogue, request, game)
    weight = critics.importance(method, tree, scores)
    end = sample.prepare(policy, own, catalogue, last)
    trusted = {"policy": own, "critic": target["critic"]}
    met = critics.state_value(method, trusted, catalogue, request, game)
    beyond = critics.state_value(method, trusted, catalogue, last, end)
    outcome = flat(
      critics.outcome_of(method, played, by_turn(met), beyond, by_turn(weight))
    )
    to_come = outcome.reward[:, 0] + outcome.bootstrap[:, 0]
    path = critics.prefix_values(
      method, params, catalogue, request, tree, clicked
    )
    # Advantages pass no gradient on.
    found = CREDIT[rl.credit](value, path, outcome, method.trace)
    given = credit.advantage(tree, outcome.replace(advantage=found))
    main = OBJECTIVE[rl.objective](tree, scores, given, rl.clip)
    wide = objectives.weighted(tree, objectives.entropy(scores))
    slate = tree.slate[:, 0]
    fitted = critics.DIFFERENCE[method.session.difference].loss(
      method, params, catalogue, request, slate, value, to_come, weight
    )
    error = jax.lax.stop_gradient(((value - to_come) ** 2).sum())
    along = values.temporal_difference(
      path, outcome, method.trace, weight[:, None, None]
    )
    far = objectives.weighted(tree, objectives.kl(scores, steady))
    total = main.total + rl.kl * far.total - rl.entropy * wide.total
    total = total / jnp.maximum(main.denominator, 1e-6)
    total += fitted
    total += along.total / jnp.maximum(along.denominator, 1e-6)
    return total, (main, wide, far, error, weight.sum())

  grads, aux = jax.grad(loss, has_aux=True)(state.params)
  main, wide, far, error, weight = aux
  state = states.apply_gradients(state, grads, method.tx, method.decay)
  figures = {
    "loss": main,
    "entropy": wide,
    "kl": far,
    "value_error": (error, played.left.size),
    "importance": (weight, played.left.size),
  }
  return state, figures


def _play(method: Method, params, catalogue, environment, start, key):
  return sessions.play(
    method.policy,
    method.session.turns,
    params["policy"],
    catalogue,
    environment,
    start,
    key,
  )


def _turned(played: simulation.Turns) -> simulation.Turns:
  """[turns, B, ...] as [B, turns, ...], and back."""
  return jax.tree.map(lambda x: x.swapaxes(0, 1), played)


def _by_user(method: Method, *args):
  """The same by user: what replay keeps and draws is sessions."""
  return _turned(_play(method, *args))


def _again(method: Method, catalogue, users: int, ring, state, key):
  """One gradient step on sessions drawn from the ring."""
  played = _turned(replay.draw(ring, key, users))
  return learn(method, catalogue, state, state.target, played)


def step(method: Method, catalogue, environment, state, start, key):
  """One batch of users: play and learn, from what was kept where any is.

  Args:
    method: static parts.
    catalogue: the Catalogue.
    environment: the users' behaviour.
    state: TrainState of {"policy", "critic"}, a ReplayState with
      `session.replay`.
    start: B users.
    key: PRNG key.

  Returns:
    (state, metrics as (sum, count)).
  """
  if method.session.replay:
    first, second = jax.random.split(key)
    played = _by_user(
      method, state.params, catalogue, environment, start, first
    )
    again = functools.partial(_again, method, catalogue, len(played.left))
    state, figures = keeping.step(method.replay, again, state, played, second)
  else:
    played = _play(method, state.params, catalogue, environment, start, key)
    state, figures = learn(method, catalogue, state, state.params, played)
  seen = sessions.figures(played.answer)
  return state, {**figures, **seen}


def run(setting: SessionRun) -> SessionRun:
  """Learns, resumes or reloads the policy and its critic.

  Args:
    setting: after `tokenizer`.

  Returns:
    With `params[config.name]` = {"policy", "critic"}.
  """
  config = setting.config
  check(config)
  return sessions.run(
    setting, STAGE, _fit, config.rl, config.replay, config.critic.decay
  )


def make_method(setting: SessionRun, tx) -> Method:
  """The step's static parts of a run."""
  config = setting.config
  return Method(
    setting.policy,
    setting.critic,
    config.rl,
    config.session,
    config.replay,
    config.critic.decay,
    tx,
    config.rl_train.ema,
  )


def _fit(setting: SessionRun) -> None:
  config, params = setting.config, init(setting)
  train, again = config.rl_train, config.session.replay
  schedule = states.longer(train, config.replay.updates) if again else train
  tx = states.optimizer(schedule, tuple(params))
  method = make_method(setting, tx)
  if again:
    play = states.bound(_by_user, method)
    state = keeping.begin(setting, play, params, tx)
  else:
    state = states.create(params, tx)
  own = states.bound(step, method)
  sessions.fit(setting, STAGE, own, state, watch(setting))


def init(setting: SessionRun):
  """Fresh parameters {"policy", "critic"}, and those of further critics."""
  more = critics.DIFFERENCE[setting.config.session.difference].critics
  key, keys = setting.key("policy"), {name: setting.key(name) for name in more}
  make = states.jit_once(states.bound(_init, setting.policy, setting.critic))
  return make(key, keys, sessions.example(setting), setting.catalogue)


def _init(policy: Policy, critic: LevelCritic, key, more, request, catalogue):
  _, second, third = jax.random.split(key, 3)
  share = jnp.zeros(request.candidates.shape, request.scores.dtype)
  slate = jnp.zeros((2, policy.slots), jnp.int32)
  keys = {"critic": third, **more}
  valued = {
    name: critic.init(
      key, catalogue, request, share, slate, method="initialise"
    )["params"]
    for name, key in keys.items()
  }
  own = policy.even(policy.init(second, catalogue, request))
  return {"policy": own, **valued}


def watch(setting: SessionRun):
  """(evaluate, select) for `loop.fit`: greedy sessions of validation users."""
  return sessions.watch(setting, sessions.greedy(setting), "policy")


def systems(setting: SessionRun) -> dict[str, tuple[sessions.Act, Any]]:
  """What reports judge: the run's system as (act, parameters)."""
  name = setting.config.name
  return {name: (sessions.greedy(setting), setting.params[name]["policy"])}
