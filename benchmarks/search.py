"""Search at equal forward tokens: python -m benchmarks.search --workdir=RUN.

RUN is a finished run of the world with SFT. Its critic is fitted (or found in
the artifacts), then the same SFT policy is searched in several ways, A chooses
among the leaves of each, and the truth judges what A chose. A budget is a
multiple of one greedy slate's T - 1 tokens.
"""

from collections.abc import Callable

from absl import app, flags

from benchmarks import common, runs
from launch import errors
from rerank_rl.decoding import beam, fixed_tree, sample, value_guided
from rerank_rl.evaluation import bootstrap
from rerank_rl.models.critic import value_of
from rerank_rl.training import systems
from rerank_rl.training.setting import Setting, valuer

_BUDGETS = flags.DEFINE_list("budgets", ["1", "2", "4", "8", "16"], "Times.")
_ENTROPY = flags.DEFINE_float("entropy", 0.1, "Of value_guided.")
_EXPLORE = flags.DEFINE_float("explore", 1.0, "Of value_guided.")
_CHUNK = 64

Search = Callable  # (params, game, key) -> TokenTree


def rivals(setting: Setting, times: int) -> dict[str, Search]:
  """Every way to spend `times` greedy slates' tokens, by name."""
  policy = setting.policy
  T = policy.slots * policy.levels
  budget = times * (T - 1)
  value = value_of(policy, setting.critic)
  out: dict[str, Search] = {
    "samples": lambda p, game, key: sample.chains(policy, p, game, key, times),
    "beam": lambda p, game, key: beam.beam(policy, p, game, times),
    "stochastic_beam": lambda p, game, key: beam.beam(
      policy, p, game, times, key=key
    ),
    "value_guided": lambda p, game, key: value_guided.value_guided(
      policy, p, value, game, budget, _ENTROPY.value, _EXPLORE.value
    ),
  }
  for slot in range(0, policy.slots, 2):
    shape = branching_at(slot * policy.levels, budget, T)
    out[f"tree_at_slot_{slot}"] = lambda p, game, key, shape=shape: (
      fixed_tree.fixed_tree(policy, p, game, shape, key)
    )
  return out


def branching_at(depth: int, budget: int, tokens: int) -> tuple[int, ...]:
  """One branching at a depth, as wide as the budget of tokens allows."""
  width = 1
  while fixed_tree.forward_tokens((*[1] * depth, width + 1), tokens) <= budget:
    width += 1
  return (*[1] * depth, width)


def main() -> None:
  """Prints a table for each budget."""
  setting = runs.learnt("tokenizer", "evaluators", "sft", "critic")
  part = runs.requests(setting)
  params = setting.params[setting.config.sft_name]
  key = setting.key("search")
  truth, a = valuer(setting.reward("world")), valuer(setting.judged_by("a"))
  bounds = systems.bounds_of(setting.world, setting.config.seed, part)
  optimum = truth(part, bounds["optimum"])
  bayes = truth(part, bounds["bayes_list"])
  for times in map(int, _BUDGETS.value):
    found = {
      name: systems.best_leaf(setting, params, part, search, key, _CHUNK)
      for name, search in rivals(setting, times).items()
    }
    worth = {name: truth(part, slate) for name, slate in found.items()}
    ours = worth.pop("value_guided")
    cells = _cells(ours, a(part, found["value_guided"]), optimum)
    rows = [("value_guided", *cells, "")]
    for name, values in worth.items():
      d = bootstrap.paired_difference(ours[None], values[None], optimum[None])
      cells = _cells(values, a(part, found[name]), optimum)
      rows.append((name, *cells, d.signed()))
    best = max(v.mean() for v in worth.values())
    closed = (ours.mean() - best) / (bayes.mean() - best)
    columns = ("search", "share of optimum", "A", "value_guided minus it")
    title = (
      f"{times} x {setting.policy.slots * setting.policy.levels - 1} tokens; "
      f"bayes_list {bayes.sum() / optimum.sum():.4f}; closes {closed:.1%} of "
      "the gap from the best rival"
    )
    common.show(title, columns, rows)


def _cells(values, a, optimum):
  return f"{values.sum() / optimum.sum():.4f}", f"{a.mean():.4f}"


if __name__ == "__main__":
  errors.run(app, main)
