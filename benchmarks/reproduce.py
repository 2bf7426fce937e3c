"""Makes the tables of docs/results.md: python -m benchmarks.reproduce.

Every row is one `launch.train` in its own folder; rows that have a report are
not run again, so that the command can be stopped and started at will. A table
is written once all of its runs are finished, and printed before.
"""

from collections.abc import Iterator
import hashlib
import json
import pathlib
import shlex
import subprocess
import sys
import time
from typing import NamedTuple

from absl import app, flags
import numpy as np
import tqdm

from launch import errors
from rerank_rl.evaluation import bootstrap, report

_RUNS = flags.DEFINE_string("runs", "runs/reproduce", "Folder of all runs.")
_TABLES = flags.DEFINE_list("tables", [], "Which tables; none = all.")
_SEEDS = flags.DEFINE_integer("seeds", 0, "Most seeds a row; 0 = the table's.")
_DOCS = flags.DEFINE_string("docs", "docs/results.md", "Where tables go.")

# Seed 0's tests were read while the defaults were being chosen, and 7's too.
FIRST_SEED = 1

BEGIN, END = "<!-- table {} -->", "<!-- end {} -->"


class Row(NamedTuple):
  """One system of a table.

  Attributes:
    config: its config file, without folder and ending.
    seeds: how many.
    variant: of this row, besides the table's.
    name: what the table calls the system; "" = as its config does.
    against: the system that this one is held against; "" = the table's own
      is held against this one.
    flags: what else its command has.
  """

  config: str
  seeds: int
  variant: str = ""
  name: str = ""
  against: str = ""
  flags: tuple[str, ...] = ()

  @property
  def system(self) -> str:
    """What the table calls it."""
    return self.name or pathlib.Path(self.config).name


class Table(NamedTuple):
  """Systems that are compared on one data set under one protocol.

  Attributes:
    title: what the document calls it.
    variant: of every config.
    metrics: columns of the document.
    rows: the runs.
    own: the system that is held against the others, in the first metric; ""
      where rows say against what they are held.
  """

  title: str
  variant: str
  metrics: tuple[str, ...]
  rows: tuple[Row, ...]
  own: str = "glorank_rl"


RIVALS = (
  "baselines/prm",
  "baselines/prm_mmr",
  "baselines/nar4rec",
  "baselines/pointer_sft",
  "baselines/pointer_rl",
  "baselines/local_index_rl",
  "baselines/goalrank",
)
WORLD = ("share", "true_utility", "evaluator_a", "evaluator_b", "win_rate_b")
VALUE = ("evaluator_b", "evaluator_a", "evaluator_s", "win_rate_b", "ild")
RECOVERY = ("ndcg@6", "precision@6", "map@6", "f1@6")
SESSION = ("total_reward", "discounted_reward", "slate_reward")
SESSIONS = ("hsrl", "a2c", "dqn", "ddpg", "hac")  # They value sessions.


def _rows(own: int, rivals: int, supervised: int = 0) -> tuple[Row, ...]:
  """GloRank and its rivals; `supervised`: other seeds of PRM and NAR4Rec."""
  seeds = dict.fromkeys(RIVALS, rivals)
  if supervised:
    seeds |= dict.fromkeys(("baselines/prm", "baselines/nar4rec"), supervised)
  return Row("glorank_rl", own), *(Row(*each) for each in seeds.items())


def _parts(name: str, variant: str) -> Table:
  """HSRL with one advantage a slate, flat tokens, or the paper's policy."""

  def other(name, *flags):
    return Row("hsrl", 3, name=f"hsrl_{name}", flags=flags)

  flat, scalar = "--config.policy.head=pointer", "--config.rl.credit=a2c"
  rows = (
    Row("hsrl", 3),
    other("scalar", scalar),
    other("flat", flat),
    other("flat_scalar", flat, scalar),
    other("hpn", "--config.policy.head=hpn"),
    other("hpn_expected", "--config.policy.head=hpn_expected"),
  )
  title = f"{name}, sessions with learnt users: HSRL without its parts"
  return Table(title, f"learnt,{variant}", SESSION, rows, "hsrl")


def _sessions(name: str, variant: str) -> Table:
  """HSRL and its rivals among users learnt from a log."""
  rows = tuple(Row(config, 5) for config in (*SESSIONS, "supervised"))
  title = f"{name}, sessions with learnt users"
  return Table(title, f"learnt,{variant}", SESSION, rows, "hsrl")


def _differences(name: str, variant: str) -> Table:
  """Learners of sessions by TD, and by the disentangled TD."""
  rows = []
  for config in SESSIONS:
    apart = f"{config}_disentangled"
    rows += [
      Row(config, 5),
      Row(config, 5, "disentangled", apart, against=config),
    ]
  title = f"{name}, sessions with learnt users: TD against disentangled TD"
  return Table(title, f"learnt,{variant}", SESSION, tuple(rows), "")


def _search(own: int) -> tuple[Row, ...]:
  """V-STAR, GloRank with its tokens and with more, and what parts add."""
  few = "--config.rl.group=4", "--config.rl_train.batch_size=16"
  beam = "--config.rl.explore=beam", "--config.rl.credit=confined"
  published = "--config.rl.credit=group+sibling", "--config.rl.biased_credit=1"
  return (
    Row("vstar", own),
    Row("glorank_rl", own, name="glorank_rl_4", flags=few),
    Row("glorank_rl", own),
    Row("vstar", 3, name="vstar_published", flags=published),
    Row("glorank_rl", 3, name="beam_confined", flags=(*few, *beam)),
    Row("sibling_grpo", 3, name="sibling_grpo_4", flags=few),
  )


def _short(row: Row, steps: int) -> Row:
  """A row of less RL, whose schedule ends there."""
  return row._replace(flags=(*row.flags, f"--config.rl_train.steps={steps}"))


def _degre(own: int, rivals: int) -> tuple[Row, ...]:
  """DeGRe, what its policy is measured by, and its ablations."""

  def without(name, *flags):
    return Row("degre", rivals, name=f"degre_{name}", flags=flags)

  def cloned(name, rule):
    flags = f"--config.sft_name={name}", f"--config.demo.rule={rule}"
    return Row("glorank_sft", rivals, name=name, flags=flags)

  return (
    Row("degre", own),
    Row("glorank_sft", own),
    without("hard_only", "--config.distill.soft=0"),
    without("soft_only", "--config.distill.hard=0"),
    without("soft_1", "--config.distill.soft=1"),
    cloned("clicked_first", "relevant_first"),
    cloned("list_reward_only", "draws"),
    without("lists_1", "--config.distill.lists=1"),
    without("width_4", "--config.mine.width=4"),
    without("tau_q_.02", "--config.distill.tau_q=.02"),
    without("tau_q_.2", "--config.distill.tau_q=.2"),
    Row("degre", rivals, "preference", "degre_preference"),
  )


TABLES = {
  "oracle": Table(
    "Oracle world, 6 -> 3",
    "oracle",
    ("regret", "true_utility"),
    (Row("glorank_rl", 5),),
  ),
  "world": Table("Default world, 50 -> 6", "", WORLD, _rows(5, 3)),
  "pointwise": Table(
    "World without list effects", "pointwise", WORLD, _rows(3, 3)[:3]
  ),
  "shuffled": Table(
    "Shuffled feedback", "shuffled", WORLD, (Row("glorank_rl", 3),)
  ),
  "constant": Table(
    "Constant feedback", "constant", WORLD, (Row("glorank_rl", 3),)
  ),
  "kuairand_value": Table(
    "KuaiRand-Pure, value", "kuairand_pure", VALUE, _rows(5, 3, 5)
  ),
  "movielens_value": Table(
    "MovieLens-1M, value", "movielens_1m", VALUE, _rows(5, 3)
  ),
  "kuairand_recovery": Table(
    "KuaiRand-Pure, recovery",
    "kuairand_pure,recovery",
    RECOVERY,
    _rows(3, 3),
  ),
  "movielens_recovery": Table(
    "MovieLens-1M, recovery", "movielens_1m,recovery", RECOVERY, _rows(3, 3)
  ),
  "world_search": Table(
    "RL by search, default world", "", WORLD, _search(5), "vstar"
  ),
  "world_search_half": Table(
    "RL by search with half the steps, default world",
    "",
    WORLD,
    tuple(_short(row, 200) for row in _search(5)[:2]),
    "vstar",
  ),
  "kuairand_search": Table(
    "RL by search, KuaiRand-Pure by value",
    "kuairand_pure",
    VALUE,
    _search(3),
    "vstar",
  ),
  "world_degre": Table(
    "DeGRe and its ablations, default world", "", WORLD, _degre(5, 5), "degre"
  ),
  "kuairand_degre": Table(
    "DeGRe, KuaiRand-Pure by value",
    "kuairand_pure",
    VALUE,
    _degre(3, 3),
    "degre",
  ),
  "movielens_degre": Table(
    "DeGRe, MovieLens-1M by value",
    "movielens_1m",
    VALUE,
    _degre(3, 3)[:2],
    "degre",
  ),
  "kuairand_sessions": _sessions("KuaiRand-Pure", "kuairand_pure"),
  "kuairand_parts": _parts("KuaiRand-Pure", "kuairand_pure"),
  "movielens_sessions": _sessions("MovieLens-1M", "movielens_1m"),
  "kuairand_td": _differences("KuaiRand-Pure", "kuairand_pure"),
}


def command(table: Table, row: Row, seed: int, out: pathlib.Path):
  """(workdir, argv) of one run, which all tables share that ask for it."""
  config = f"configs/{row.config}.py"
  variants = [x for x in (table.variant, row.variant) if x]
  if variants:
    config += f":{','.join(variants)}"
  named = [f"--config.name={row.name}"] if row.name else []
  asked = [f"--config={config}", f"--config.seed={seed}", *named, *row.flags]
  code = hashlib.sha256(shlex.join(asked).encode()).hexdigest()[:8]
  workdir = out / f"{row.system}-{seed}-{code}"
  return workdir, [
    "python",
    "-m",
    "launch.train",
    *asked,
    f"--workdir={workdir}",
    f"--artifacts={out / 'artifacts'}",
  ]


def execute(todo: dict[pathlib.Path, list[str]]) -> None:
  """Runs what is not done, one after the other, with an ETA.

  Raises:
    ValueError: a run failed; its log is named.
  """
  for workdir, argv in tqdm.tqdm(todo.items(), desc="rows", unit="run"):
    workdir.mkdir(parents=True, exist_ok=True)
    with open(workdir / "log.txt", "a", encoding="utf-8") as log:
      begin = time.monotonic()
      done = subprocess.run(
        [sys.executable, *argv[1:]], stdout=log, stderr=log, check=False
      )
      log.write(f"{time.monotonic() - begin:.0f} seconds\n")
    if done.returncode:
      raise ValueError(
        f"{shlex.join(argv)} ended with status {done.returncode}; see "
        f"{workdir / 'log.txt'}."
      )


def seeds_of(row: Row, most: int = 0) -> range:
  """The seeds of a row, at most `most` of them unless that is 0."""
  return range(FIRST_SEED, FIRST_SEED + min(row.seeds, most or row.seeds))


class Run(NamedTuple):
  """A row's run of one seed, made or to be made."""

  row: Row
  seed: int
  workdir: pathlib.Path
  argv: list[str]

  @property
  def done(self) -> bool:
    """Whether it has a report."""
    return (self.workdir / report.REPORT).exists()


def runs_of(table: Table, out: pathlib.Path, most: int = 0) -> Iterator[Run]:
  """All runs of a table, of at most `most` seeds unless that is 0."""
  for row in table.rows:
    for seed in seeds_of(row, most):
      yield Run(row, seed, *command(table, row, seed, out))


def collect(table: Table, out: pathlib.Path) -> dict:
  """system -> {seed: {metric: per-request array}} of finished runs."""
  found: dict[str, dict[int, dict]] = {}
  for run in runs_of(table, out):
    if run.done:
      judged = report.load_judgements(run.workdir / report.JUDGEMENTS)
      for system, values in judged.items():
        found.setdefault(system, {}).setdefault(run.seed, values)
  return found


def render(name: str, table: Table, out: pathlib.Path) -> str:
  """The table in Markdown, with paired differences to the own system."""
  found = collect(table, out)
  first = table.metrics[0]
  apart = f"{table.own} minus it" if table.own else "it minus its rival"
  head = ["system", "seeds", *table.metrics, f"{apart} ({first})"]
  lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
  for system, seeds in found.items():
    cells = [f"`{system}`", str(len(seeds))]
    for metric in table.metrics:
      values = [_figure(seeds[s], metric) for s in sorted(seeds)]
      mean, low, high = bootstrap.over_seeds(np.array(values))
      cells.append(f"{mean:.4f}" + _plus(mean, low, high))
    cells.append(_difference(found, system, table))
    lines.append("| " + " | ".join(cells) + " |")
  variant = f":{table.variant}" if table.variant else ""
  text = f"`python -m benchmarks.reproduce --tables={name}` (configs{variant})"
  return "\n".join(
    [
      f"## {table.title}",
      "",
      text,
      "",
      *lines,
      *_selection(table, out),
    ]
  )


def _selection(table: Table, out: pathlib.Path) -> list[str]:
  """What evaluator S's choice of a checkpoint cost, where truth is known."""
  shares = []
  for run in runs_of(table, out):
    if run.row.system != table.own or not run.done:
      continue
    text = (run.workdir / report.REPORT).read_text(encoding="utf-8")
    seen = json.loads(text).get("history", {}).get("rl", [])
    if not seen or not {"true_utility", "evaluator_s"} <= set(seen[0]):
      return []
    chosen = max(seen, key=lambda x: x["evaluator_s"])
    best = max(x["true_utility"] for x in seen)
    shares.append(f"{chosen['true_utility'] / best:.4f}")
  if not shares:
    return []
  return [
    "",
    f"True utility of the checkpoint that S selects, as a share of the best "
    f"checkpoint's (validation), by seed: {', '.join(shares)}.",
  ]


def _plus(mean: float, low: float, high: float) -> str:
  return "" if np.isnan(low) else f" ± {max(mean - low, high - mean):.4f}"


def _figure(values: dict, metric: str) -> float:
  """A seed's figure from its per-request arrays; NaN where it has none."""
  if metric in ("share", "regret") and "optimum" in values:
    share = values["true_utility"].sum() / values["optimum"].sum()
    return float(share if metric == "share" else 1 - share)
  if metric not in values:
    return float("nan")
  return float(np.nanmean(values[metric]))


def _difference(found: dict, system: str, table: Table) -> str:
  """Paired difference of the first metric: own minus `system`.

  Where the table has no own, `system` minus the one that its row names.
  """
  metric = table.metrics[0]
  column = {"share": "true_utility", "regret": "true_utility"}.get(
    metric, metric
  )
  named = {row.name: row.against for row in table.rows if row.against}
  first, second = table.own, system
  if not table.own:
    first, second = system, named.get(system, system)
  own, other = found.get(first, {}), found.get(second, {})
  seeds = sorted(set(own) & set(other))
  if first == second or not seeds or column not in other[seeds[0]]:
    return ""
  stack = lambda runs, key: np.stack([runs[s][key] for s in seeds])
  per = None
  if column != metric:
    per = stack(own, "optimum")
  d = bootstrap.paired_difference(stack(own, column), stack(other, column), per)
  return d.signed()


def write(docs: pathlib.Path, name: str, text: str) -> None:
  """Replaces a table between its marks in the document, or appends it."""
  old = docs.read_text(encoding="utf-8") if docs.exists() else "# Results\n"
  begin, end = BEGIN.format(name), END.format(name)
  block = f"{begin}\n{text}\n{end}"
  if begin in old:
    before, rest = old.split(begin, 1)
    old = before + block + rest.split(end, 1)[1]
  else:
    old = old.rstrip("\n") + f"\n\n{block}\n"
  docs.write_text(old, encoding="utf-8")


def publish(
  name: str, table: Table, out: pathlib.Path, docs: pathlib.Path
) -> None:
  """Writes a table that is whole, and prints one that is not.

  What is published would be lost to a run of fewer seeds.
  """
  text = render(name, table, out)
  done = [run.done for run in runs_of(table, out)]
  if all(done):
    write(docs, name, text)
  else:
    lacks = f"{done.count(False)} of {len(done)} runs"
    print(f"{text}\n\nmissing: {lacks}; {docs} is left as is.\n")


def main() -> None:
  """Runs the missing rows, then writes the tables."""
  names = _TABLES.value or list(TABLES)
  for name in names:
    if name not in TABLES:
      raise ValueError(
        f"--tables={name} is unknown; choose from {', '.join(TABLES)}."
      )
  out, docs = pathlib.Path(_RUNS.value), pathlib.Path(_DOCS.value)
  todo = {
    run.workdir: run.argv
    for name in names
    for run in runs_of(TABLES[name], out, _SEEDS.value)
    if not run.done
  }
  try:
    execute(todo)
  finally:
    for name in names:
      publish(name, TABLES[name], out, docs)


if __name__ == "__main__":
  errors.run(app, main)
