"""A system of the world of trust against the exact solution: --workdir=RUN.

python -m benchmarks.sessions --workdir=RUN: RUN is a run of
configs/hsrl.py:trust, or of its rivals there. Returns are discounted, from any
level of trust alike, computed by dynamic programming from the slates that the
system shows; no session is sampled. A policy's own probabilities of all slates
say what it is worth when it samples, and its critic is held against that.
"""

from typing import NamedTuple

from absl import app
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import common, runs
from launch import errors
from rerank_rl.config import ConfigError
from rerank_rl.data import synthetic
from rerank_rl.decoding import sample
from rerank_rl.rl import learner
from rerank_rl.training import critics, session_pipeline
from rerank_rl.training.session_setting import SessionRun
from rerank_rl.training.stages import session as session_stage
from rerank_rl.world import trust


class Solved(NamedTuple):
  """Discounted returns f64[S], by level of trust.

  Attributes:
    optimum: of the best policy there is.
    myopic: of the policy that collects most clicks now.
    greedy: of the learnt policy, decoded greedily.
    sampled: of the learnt policy, sampled.
    critic: what the critic says of the sampled one.
  """

  optimum: np.ndarray
  myopic: np.ndarray
  greedy: np.ndarray
  sampled: np.ndarray
  critic: np.ndarray


def solve(setting: SessionRun, params) -> Solved:
  """Holds {"policy", "critic"} of a run against the world's exact solution."""
  world = trust.build(synthetic.seed_of(setting.config))
  gamma, policy = setting.config.session.gamma, setting.policy
  every = trust.slates()
  request = jax.vmap(trust.request)(jnp.arange(trust.LEVELS))

  @jax.jit
  def read(params, catalogue):
    game = sample.prepare(policy, params["policy"], catalogue, request)
    slate = jnp.broadcast_to(every[None], (trust.LEVELS, *every.shape))
    scores = learner.score_slates(policy, params["policy"], game, slate)
    best = sample.greedy(policy, params["policy"], catalogue, request)
    method = session_stage.make_method(setting, None)
    value = critics.state_value(method, params, catalogue, request, game)
    return jnp.exp(scores.logp.sum(-1)), best, value

  chance, best, value = jax.device_get(read(params, setting.catalogue))
  shown = (every[None] == best[:, None]).all(-1).astype(np.float64)
  chance = chance.astype(np.float64)
  return Solved(
    trust.optimum(world, gamma),
    trust.value(world, trust.best(world, 0.0), gamma),
    trust.value(world, shown, gamma),
    trust.value(world, chance / chance.sum(1, keepdims=True), gamma),
    value.astype(np.float64),
  )


def shares(found: Solved) -> dict[str, float]:
  """Shares of the optimum, and the critic's mean error as a share of V^pi."""
  best = found.optimum.mean()
  error = np.abs(found.critic - found.sampled).mean() / found.sampled.mean()
  return {
    "myopic": found.myopic.mean() / best,
    "sampled": found.sampled.mean() / best,
    "greedy": found.greedy.mean() / best,
    "critic's error": error,
  }


def greedy_shares(setting: SessionRun) -> dict[str, float]:
  """Shares of the optimum of any run's own system, decoded greedily."""
  world = trust.build(synthetic.seed_of(setting.config))
  gamma, name = setting.config.session.gamma, setting.config.name
  request = jax.vmap(trust.request)(jnp.arange(trust.LEVELS))
  act, params = session_pipeline.learner(setting.config).systems(setting)[name]
  slate = jax.jit(act)(params, request, jax.random.key(0))
  shown = (trust.slates()[None] == np.asarray(slate)[:, None]).all(-1)
  worth = {
    "myopic": trust.value(world, trust.best(world, 0.0), gamma),
    "greedy": trust.value(world, shown.astype(np.float64), gamma),
  }
  best = trust.optimum(world, gamma).mean()
  return {name: value.mean() / best for name, value in worth.items()}


def main() -> None:
  """Prints the table."""
  setting = runs.sessions()
  if setting.config.data.name != "trust":
    raise ConfigError("--workdir is not a run in the world of trust.")
  rows = []
  for name, params in setting.params.items():
    if session_stage.STAGE in setting.config.stages:
      found = shares(solve(setting, params))
    else:
      found = greedy_shares(setting)
    rows.append((name, *(f"{value:.4f}" for value in found.values())))
  title = f"share of the optimal return, seed {setting.config.seed}"
  common.show(title, ("system", *found), rows)


if __name__ == "__main__":
  errors.run(app, main)
