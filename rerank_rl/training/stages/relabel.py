"""Stage `relabel`: a policy that is asked for what to achieve (MocDT).

Fixed behaviours fill slates; what each achieves over users is measured, its
slates are relabelled with that goal, and the policy clones them with the goal
in its prompt. Asked for another goal, it does as those did who achieved it. In
the end its own slates are relabelled, too, so that it is asked for what it
takes.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rerank_rl.config import Config, check_choice, refuse_unread
from rerank_rl.decoding import sample
from rerank_rl.models.policy import GOAL_HEADS, Policy
from rerank_rl.rl import learner, objectives
from rerank_rl.simulation import session as simulation
from rerank_rl.training import fitting, goals
from rerank_rl.training import session as sessions
from rerank_rl.training import state as states
from rerank_rl.training.session_setting import SessionRun
from rerank_rl.types import Array

STAGE = "relabel"
_SIDE, _WATCHED = 3, 200  # Goals, and users a goal, that selection asks.
_CELLS = 6  # Of a histogram of goals, along each objective.
# How far past the behaviours' goals the policy is tried, and on how many users
# a goal, to find its aim.
_BEYOND, _TRIED = 1.5, 64


def check(config: Config) -> None:
  """Raises ConfigError: a head that reads no goal, parts that nobody reads."""
  check_choice(config.policy.head, GOAL_HEADS, "config.policy.head")
  refuse_unread(config, "session.replay", "session.difference", "session.decay")
  states.check(config.rl_train, "config.rl_train")


def scaled(goal: Array, region: Array) -> Array:
  """Goals f32[B, 2] in standard deviations of what was achieved f32[P, 2]."""
  mean, spread = region.mean(0, keepdims=True), region.std(0, keepdims=True)
  return (goal - mean) / spread


def pursue(policy: Policy, catalogue, params, goal, request, key) -> Array:
  """Slates i32[B, K] drawn from the policy for goals f32[B, 2]."""
  one = jnp.ones_like(goal[:, :1])
  asked = jnp.concatenate([goal, one], axis=1) @ params["aim"]
  request = request.replace(goal=scaled(asked, params["region"]))
  own = params["policy"]
  game = sample.prepare(policy, own, catalogue, request)
  return sample.chains(policy, own, game, key, 1).slate[:, 0]


def weights(region: np.ndarray) -> np.ndarray:
  """How often each behaviour is shown, f32[P]: goals as evenly as can be.

  One over the number of behaviours in the same cell of a histogram; uniform
  behaviours crowd where little can be gained or lost.

  Args:
    region: f32[P, 2], what behaviours achieved.
  """
  cell = []
  for column in region.T:
    edges = np.linspace(column.min(), column.max(), _CELLS + 1)[1:-1]
    cell.append(np.digitize(column, edges))
  _, where, count = np.unique(
    np.stack(cell), axis=1, return_inverse=True, return_counts=True
  )
  weight = 1.0 / count[where.ravel()]
  return (weight / weight.sum()).astype(np.float32)


def step(policy, tx, config: Config, world, shown, state, start, key):
  """One batch of users: they meet behaviours, whose slates are cloned.

  Args:
    policy: to learn.
    tx: optimiser.
    config: the run's.
    world: (catalogue, environment).
    shown: (Behaviour of [P], goals f32[P, 2] scaled, weight f32[P]).
    state: TrainState.
    start: B users.
    key: PRNG key.

  Returns:
    (state, metrics as (sum, count)).
  """
  (catalogue, environment), (behaviours, goal, weight) = world, shown
  B = jax.tree.leaves(start)[0].shape[0]
  which_key, play_key = jax.random.split(key)
  which = jax.random.categorical(which_key, jnp.log(weight), shape=(B,))
  own = jax.tree.map(lambda x: x[which], behaviours)

  def act(request, key):
    out = goals.behave(policy.slots, catalogue.features, own, request, key)
    return out[0], out

  played = simulation.play(
    environment, act, start, play_key, config.goals.window
  )
  flat = simulation.flat
  request, (slate, worth) = flat((played.request, played.record))
  asked = jnp.tile(goal[which], (config.goals.window, 1))
  request = request.replace(goal=asked)
  # Slates of sessions that began within the window have no share in the goal.
  here = flat(simulation.met(played.left)).astype(asked.dtype)

  def objective(params):
    game = sample.prepare(policy, params, catalogue, request)
    scores = learner.score_slates(policy, params, game, slate[:, None])
    # The behaviour's own probabilities: a draw from them tells less.
    labels = learner.soft_labels(game.trie, slate[:, None], worth[:, None])
    return objectives.distill(scores, labels, here[:, None], 0.0, 1.0)

  return states.step_on(state, objective, tx, config.rl_train.ema)


def run(setting: SessionRun) -> SessionRun:
  """Learns, resumes or reloads the policy.

  Args:
    setting: after `tokenizer`.

  Returns:
    With `params[config.name]` = {"policy", "region" f32[P, 2], "aim" f32[3, 2]
    of `goals.aim`}.
  """
  config = setting.config
  check(config)
  return sessions.run(setting, STAGE, _fit, config.goals)


def _fit(setting: SessionRun) -> None:
  config, policy = setting.config, setting.policy
  train = config.rl_train
  behaviours = goals.behaviours(
    setting.key("behaviours"), config.goals.behaviours
  )
  found = achieved(setting, "train", behaviours)
  region = jnp.asarray(found)
  shown = behaviours, scaled(region, region), jnp.asarray(weights(found))
  tx = states.optimizer(train)
  own = jax.tree_util.Partial(
    states.bound(step, policy, tx, config),
    (setting.catalogue, setting.environment("train")),
    shown,
  )
  batches = fitting.local_batches(setting, train.batch_size, STAGE)
  state = states.create(init(setting), tx)
  straight = jnp.eye(3, 2)
  whole = lambda params: {"policy": params, "region": region, "aim": straight}
  aimed = lambda params: _aimed(setting, whole(params))
  fitting.fit(
    setting, STAGE, state, own, batches, train, watch(setting, whole), aimed
  )


def _aimed(setting: SessionRun, params):
  """The policy with the aim that its own slates tell."""
  region = np.asarray(params["region"])
  asked = region.mean(0) + _BEYOND * (region - region.mean(0))
  reached = goals.measure(
    setting, "train", act_of(setting), params, asked, _TRIED
  )
  return {**params, "aim": jnp.asarray(goals.aim(asked, reached))}


def achieved(
  setting: SessionRun, split: str, behaviours: goals.Behaviour, **where: Any
) -> np.ndarray:
  """What behaviours achieve among a split's users: f32[P, 2]."""
  return goals.measure(
    setting,
    split,
    sessions.system(_as_behaviour, setting.policy.slots),
    setting.catalogue.features,
    behaviours,
    setting.config.goals.users,
    **where,
  )


def _as_behaviour(slots, params, own, request, key):
  return goals.behave(slots, params, own, request, key)[0]


def init(setting: SessionRun):
  """Fresh parameters of a policy that reads a goal."""
  request = sessions.example(setting)
  request = request.replace(goal=jnp.zeros((2, len(goals.OBJECTIVES))))
  make = states.jit_once(setting.policy.init)
  return make(setting.key("policy"), setting.catalogue, request)


def act_of(setting: SessionRun) -> goals.Pursue:
  """The policy as a system that is asked for a goal."""
  return sessions.system(pursue, setting.policy, setting.catalogue)


def watch(setting: SessionRun, whole):
  """(evaluate, select) for `loop.fit`: the error over a grid of goals."""
  act = act_of(setting)

  def evaluate(params) -> dict[str, float]:
    params = whole(params)
    asked = goals.grid(np.asarray(params["region"]), _SIDE)
    reached = goals.measure(setting, "valid", act, params, asked, _WATCHED)
    found = goals.control(asked, reached)
    figures = {"error": float(found.error.max())}
    for i, name in enumerate(goals.OBJECTIVES):
      figures[f"slope_{name}"] = float(found.slope[i])
      figures[f"error_{name}"] = float(found.error[i])
    return figures

  return evaluate, ("error", False)


def systems(setting: SessionRun) -> dict[str, tuple[sessions.Act, Any]]:
  """What reports judge: the policy, asked for the best reward it may be."""
  name = setting.config.name
  params = setting.params[name]
  asked = goals.grid(np.asarray(params["region"]), _SIDE)
  best = jnp.asarray(asked[asked[:, 0].argmax()])
  act = jax.tree_util.Partial(_for_one, act_of(setting), best)
  return {name: (act, params)}


def _for_one(act, goal, params, request, key):
  return act(params, jnp.tile(goal, (len(request.size), 1)), request, key)
