"""Tables made from finished runs, against figures worked out by hand."""

import pathlib

import numpy as np
import pytest

from benchmarks import reproduce
from rerank_rl.evaluation import judge, report

TABLE = reproduce.Table(
  "A title",
  "",
  ("share", "evaluator_b"),
  (reproduce.Row("glorank_rl", 3), reproduce.Row("baselines/prm", 2)),
)
FIRST = reproduce.FIRST_SEED


def _run(out, row, seed, systems, history=(), table=TABLE):
  """Leaves a report behind: system -> true utility of every request."""
  workdir, _ = reproduce.command(table, row, seed, out)
  judged = {
    name: {
      "true_utility": np.asarray(worth, float),
      "optimum": np.full(len(worth), 2.0),
      "evaluator_b": np.asarray(worth, float) / 4,
    }
    for name, worth in systems.items()
  }
  report.write(
    workdir,
    dataset="world",
    version="",
    split="test",
    protocol="value",
    command="",
    rows=judge.summarise(judged, seed, resamples=10),
    judged=judged,
    timing={},
    history={"rl": list(history)},
  )


def _cells(text, system):
  line = next(x for x in text.splitlines() if x.startswith(f"| `{system}`"))
  return [cell.strip() for cell in line.strip("|").split("|")]


def test_shares_seeds_and_paired_differences(tmp_path):
  own, rival = TABLE.rows
  noise = np.random.default_rng(0).normal(size=(2, 400)) / 10
  for i in range(2):
    worth = 1.5 + noise[i]
    _run(tmp_path, own, FIRST + i, {"glorank_rl": worth})
    _run(tmp_path, rival, FIRST + i, {"prm": worth - 0.1 * (i + 1)})
  text = reproduce.render("t", TABLE, tmp_path)
  name, seeds, share, b, difference = _cells(text, "glorank_rl")
  assert (name, seeds, difference) == ("`glorank_rl`", "2", "")
  assert float(share.split(" ")[0]) == pytest.approx(0.75, abs=0.01)
  assert float(b.split(" ")[0]) == pytest.approx(1.5 / 4, abs=0.01)
  # .1 and .2 of an optimum of 2: .05 and .1, a t-interval with one degree.
  mean, low, high = (
    float(x.strip("[],")) for x in _cells(text, "prm")[-1].split()
  )
  assert mean == pytest.approx(0.075, abs=1e-3)
  wide = 12.706 * 0.025
  assert (low, high) == pytest.approx((mean - wide, mean + wide), abs=0.01)


def test_rows_are_held_against_what_they_name(tmp_path):
  rows = (
    reproduce.Row("a2c", 2),
    reproduce.Row("a2c", 2, "disentangled", "a2c_apart", against="a2c"),
  )
  table = TABLE._replace(rows=rows, own="", variant="learnt")
  for i, noise in enumerate(np.random.default_rng(0).normal(size=(2, 400))):
    _run(tmp_path, rows[0], FIRST + i, {"a2c": 1 + noise}, table=table)
    apart = {"a2c_apart": 1.2 + noise}
    _run(tmp_path, rows[1], FIRST + i, apart, table=table)
  text = reproduce.render("t", table, tmp_path)
  assert "it minus its rival (share)" in text
  assert _cells(text, "a2c")[-1] == ""
  # .2 of an optimum of 2.
  assert float(_cells(text, "a2c_apart")[-1].split()[0]) == pytest.approx(0.1)
  _, argv = reproduce.command(table, rows[1], 1, tmp_path)
  assert "--config=configs/a2c.py:learnt,disentangled" in argv
  assert "--config.name=a2c_apart" in argv


def test_runs_that_are_not_there_are_left_out(tmp_path):
  text = reproduce.render("t", TABLE, tmp_path)
  assert "glorank_rl`" not in text
  assert "checkpoint" not in text


def test_the_cost_of_selection(tmp_path):
  seen = [
    {"step": 0, "evaluator_s": 1.0, "true_utility": 1.0},
    {"step": 1, "evaluator_s": 1.3, "true_utility": 1.9},
    {"step": 2, "evaluator_s": 1.2, "true_utility": 2.0},
  ]
  _run(tmp_path, TABLE.rows[0], FIRST, {"glorank_rl": [1.0, 1.5]}, seen)
  text = reproduce.render("t", TABLE, tmp_path)
  assert text.endswith("(validation), by seed: 0.9500.")


def test_a_table_is_replaced_in_its_place(tmp_path):
  docs = tmp_path / "results.md"
  for name, text in (("a", "one"), ("b", "two"), ("a", "three")):
    reproduce.write(docs, name, text)
  text = docs.read_text()
  assert "one" not in text
  assert text.index("three") < text.index("two")
  assert text.count("<!--") == 4


def test_a_published_table_stays_until_all_of_its_runs_are_there(
  tmp_path, capsys
):
  docs, worth = tmp_path / "results.md", np.arange(1.0, 4.0)
  reproduce.write(docs, "t", "published")
  todo = [(row, FIRST + i) for row in TABLE.rows for i in range(row.seeds)]
  for row, seed in todo[:-1]:
    _run(tmp_path, row, seed, {row.system: worth})
  reproduce.publish("t", TABLE, tmp_path, docs)
  assert "published" in docs.read_text()
  assert "missing: 1 of 5 runs" in capsys.readouterr().out
  _run(tmp_path, *todo[-1], {"prm": worth})
  reproduce.publish("t", TABLE, tmp_path, docs)
  assert "published" not in docs.read_text() and not capsys.readouterr().out


def test_every_table_names_configs_and_its_own_system():
  for name, table in reproduce.TABLES.items():
    names = [row.name or row.config.split("/")[-1] for row in table.rows]
    assert len(set(names)) == len(names), name
    rivals = {row.against for row in table.rows if row.against}
    assert rivals <= set(names) and bool(rivals) != bool(table.own), name
    assert not table.own or table.own in names, name
    for row in table.rows:
      _, argv = reproduce.command(table, row, 1, pathlib.Path("x"))
      config = argv[3].removeprefix("--config=").split(":")[0]
      assert pathlib.Path(config).exists(), config


def test_a_run_is_shared_by_tables_that_ask_for_it_and_by_no_other():
  out, asked = pathlib.Path("x"), {}
  for table in reproduce.TABLES.values():
    for row in table.rows:
      workdir, argv = reproduce.command(table, row, 1, out)
      assert asked.setdefault(workdir, argv) == argv
  td, sessions = (
    {reproduce.command(table, row, 1, out)[0] for row in table.rows}
    for table in map(reproduce.TABLES.get, ("kuairand_td", "kuairand_sessions"))
  )
  assert len(td & sessions) == 5
