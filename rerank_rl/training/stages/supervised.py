"""Stage `supervised`: a slate policy that is told what was clicked, no more.

What HSRL is measured by: it sees what stands above an item, and nothing that
comes after the slate.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import optax

from rerank_rl.config import Config, check_choice, refuse_unread
from rerank_rl.decoding import sample
from rerank_rl.models.policy import Policy
from rerank_rl.rl.objectives import Loss
from rerank_rl.simulation.session import Turns, flat
from rerank_rl.training import session as sessions
from rerank_rl.training import state as states
from rerank_rl.training.session_setting import SessionRun

STAGE = "supervised"


class Method(NamedTuple):
  """The static parts of a step."""

  policy: Policy
  turns: int
  tx: Any
  decay: float


def check(config: Config) -> None:
  """Raises ConfigError: a head without a score an item, parts unread."""
  check_choice(config.policy.head, ("pointer",), "config.policy.head")
  refuse_unread(config, "session.replay", "session.difference", "session.decay")
  states.check(config.rl_train, "config.rl_train")


def cross_entropy(policy: Policy, params, catalogue, played: Turns) -> Loss:
  """-log P(what was clicked among what was shown), over the slots shown.

    P(click on i_k | s, i_1 .. i_{k-1}) = sigmoid(the policy's logit of i_k)

  Greedy decoding then places what is clicked most likely under what it has
  placed above; samples are drawn by the odds of a click.

  Args:
    policy: a pointer's functions.
    params: its parameters.
    catalogue: the Catalogue.
    played: sessions, leading dimensions [turns, B].
  """
  request, slate = flat((played.request, played.record.slate))
  game = sample.prepare(policy, params, catalogue, request)
  ranks = sample.ranks_of(game.trie, slate)
  logits = policy.score(params, game.prompt, ranks)[:, 0, :, 0]
  logits = jnp.take_along_axis(logits, ranks[:, 0, :, None], axis=-1)[..., 0]
  clicked = flat(played.answer.clicked).astype(logits.dtype)
  error = optax.sigmoid_binary_cross_entropy(logits, clicked)
  return Loss(error.sum(), error.size)


def step(method: Method, catalogue, environment, state, start, key):
  """One batch of users: play, one gradient step on their clicks.

  Args:
    method: static parts.
    catalogue: the Catalogue.
    environment: the users' behaviour.
    state: TrainState of the policy.
    start: B users.
    key: PRNG key.

  Returns:
    (state, metrics as (sum, count)).
  """
  policy, turns = method.policy, method.turns
  played = sessions.play(
    policy, turns, state.params, catalogue, environment, start, key
  )
  loss = lambda params: cross_entropy(policy, params, catalogue, played)
  state, figures = states.step_on(state, loss, method.tx, method.decay)
  seen = sessions.figures(played.answer)
  return state, {**figures, **seen}


def run(setting: SessionRun) -> SessionRun:
  """Learns, resumes or reloads the policy.

  Args:
    setting: after `tokenizer`.

  Returns:
    With `params[config.name]`, the policy's.
  """
  check(setting.config)
  return sessions.run(setting, STAGE, _fit)


def _fit(setting: SessionRun) -> None:
  config, policy = setting.config, setting.policy
  train = config.rl_train
  # Nothing was shown to it before it plays.
  init = states.jit_once(lambda *args: policy.even(policy.init(*args)))
  request = sessions.example(setting)
  params = init(setting.key("policy"), setting.catalogue, request)
  tx = states.optimizer(train)
  method = Method(policy, config.session.turns, tx, train.ema)
  own = states.bound(step, method)
  watch = sessions.watch(setting, sessions.greedy(setting))
  sessions.fit(setting, STAGE, own, states.create(params, tx), watch)


def systems(setting: SessionRun) -> dict[str, tuple[sessions.Act, Any]]:
  """What reports judge: the run's system as (act, parameters)."""
  name = setting.config.name
  return {name: (sessions.greedy(setting), setting.params[name])}
