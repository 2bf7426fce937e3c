"""Whether learnt users are worth trusting: --workdir=RUN.

python -m benchmarks.fidelity --workdir=RUN: RUN is a run of
configs/hsrl.py:learnt. The models of users "a" and "b" were fitted to disjoint
groups of users; both are held against the slates that users of neither group
were shown, and then judge the same fixed policies with the same users: two
simulators that can be trusted put them in the same order. So do ensembles on
those models, which have little in common with them, and in the synthetic world
the truth.
"""

from collections.abc import Mapping
from typing import Any

from absl import app
import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats

from benchmarks import common, runs
from launch import errors
from rerank_rl.config import ConfigError
from rerank_rl.evaluation import judge as judges
from rerank_rl.rl import agents
from rerank_rl.simulation import learnt
from rerank_rl.training import session, session_pipeline, session_setting
from rerank_rl.training.session_setting import SessionRun
from rerank_rl.types import PAD, Impression

METRIC = "total_reward"
_NOISE = 1.0  # Deviations of the ranker's scores.


def auc(score: np.ndarray, positive: np.ndarray) -> float:
  """How often a positive scores above a negative; ties count half."""
  own, other = score[positive], score[~positive]
  if not own.size or not other.size:
    return float("nan")
  above = scipy.stats.mannwhitneyu(own, other).statistic
  return float(above / (own.size * other.size))


def simulators(setting: SessionRun) -> dict[str, learnt.Learnt]:
  """Users of every kind that can be learnt, by names like "a, ensemble"."""
  return {
    f"{name}, {kind}": users(setting, name)
    for kind, users in session_setting.LEARNT.items()
    for name in setting.judges
  }


@jax.jit
def _chances(law, rows):
  return learnt.on_log(law.chances, law, rows)


def answers(law: learnt.Learnt, rows: Impression) -> list[dict[str, float]]:
  """AUC, calibration error and means of each signal, on a log's slates."""
  chance, shown = np.asarray(_chances(law, rows)), rows.slate >= 0
  out = []
  for signal in range(chance.shape[-1]):
    p, y = chance[..., signal], rows.feedback[..., signal]
    found = {
      "auc": auc(p[shown], y[shown] > 0.5),
      "ece": judges.calibration(p, y, shown)["ece"],
      "predicted": float(p[shown].mean()),
      "observed": float(y[shown].mean()),
    }
    out.append(found)
  return out


def _noisy(slots, params, request, key):
  del params
  spread = request.scores.std(-1, keepdims=True)
  noise = _NOISE * spread * jax.random.normal(key, request.scores.shape)
  return agents.top(request, request.scores + noise, slots)


def _by_table(slots, params, request, key):
  """Order by a score f32[M] that every item has, i32[B, K]."""
  del key
  return agents.top(request, params[jnp.maximum(request.candidates, 0)], slots)


def policies(setting: SessionRun) -> Mapping[str, tuple[session.Act, Any]]:
  """Fixed policies by name: (act, parameters)."""
  data = setting.dataset
  bind = lambda function: session.system(function, data.slate_size)
  seen = np.bincount(
    data.offers[data.offers != PAD], minlength=len(data.item_ids)
  )
  tables = {"popularity": seen}
  main = np.linalg.svd(data.vectors - data.vectors.mean(0), full_matrices=False)
  for i in range(3):
    tables[f"direction_{i + 1}"] = data.vectors @ main[2][i]
  tables |= {f"{name}_reversed": -table for name, table in tables.items()}
  act, simple = bind(_by_table), bind(session.by_weights)
  return {
    "random": (simple, session.RANDOM),
    "ranker_order": (simple, session.RANKED),
    "ranker_reversed": (simple, -session.RANKED),
    "ranker_noisy": (bind(_noisy), ()),
    **{
      name: (act, jnp.asarray(table, jnp.float32))
      for name, table in tables.items()
    },
  }


def worths(
  setting: SessionRun, laws: Mapping[str, learnt.Learnt]
) -> dict[str, dict[str, float]]:
  """Policy -> what each simulator, and the truth, says that it is worth."""
  environments = {name: learnt.learnt(law) for name, law in laws.items()}
  systems = dict(policies(setting))
  if setting.config.data.name in session_setting.KNOWN:
    known = session_setting.KNOWN[setting.config.data.name]
    environments["truth"] = known(setting, "test")
  else:
    # The truth tells other things of a user: these could not read them there.
    systems |= session_pipeline.learner(setting.config).systems(setting)
  total = lambda act, params, environment: session.judge(
    setting, "test", act, params, environment=environment
  )[METRIC].mean()
  return {
    policy: {
      name: float(total(act, params, environment))
      for name, environment in environments.items()
    }
    for policy, (act, params) in systems.items()
  }


def main() -> None:
  """Prints the tables."""
  setting = runs.sessions()
  if not setting.users:
    raise ConfigError("--workdir is no run with learnt users; use learnt.")
  laws, log = simulators(setting), session_setting.log_of(setting, "test")
  rows = [
    (f"{name}, {signal}", *(f"{value:.4f}" for value in found.values()))
    for name, law in laws.items()
    for signal, found in zip(
      setting.dataset.signals, answers(law, log), strict=True
    )
  ]
  columns = ("model, signal", "AUC", "ECE", "mean predicted", "mean observed")
  common.show("Slates of users whom no model has seen", columns, rows)
  found = worths(setting, laws)
  names = list(next(iter(found.values())))
  table = np.array([[row[name] for name in names] for row in found.values()])
  rows = [
    (policy, *(f"{value:.3f}" for value in row))
    for policy, row in zip(found, table, strict=True)
  ]
  common.show(f"{METRIC}, test users", ("policy", *names), rows)
  pairs = [
    (f"{names[i]}, {names[j]}", f"{correlation(table[:, i], table[:, j]):.3f}")
    for i in range(len(names))
    for j in range(i)
  ]
  common.show("rank correlation", ("simulators", "Spearman"), pairs)


def correlation(one: np.ndarray, other: np.ndarray) -> float:
  """Spearman's rank correlation."""
  return float(scipy.stats.spearmanr(one, other).statistic)


if __name__ == "__main__":
  errors.run(app, main)
