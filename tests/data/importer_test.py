"""Every mistake in a user's files or flags costs one clear sentence."""

import csv
import json
import pathlib
import resource

from absl import flags
from absl.testing import flagsaver
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from launch import errors, import_logs
from rerank_rl.config import Config, ConfigError, DataConfig
from rerank_rl.data import load, schema, tables
from rerank_rl.types import PAD

if not flags.FLAGS.is_parsed():
  flags.FLAGS(["test"])


def make_items() -> list[dict]:
  return [
    {
      "item_id": f"i{k}",
      "price": k / 2,
      "emb": [k, 1.5],
      "category": f"c{k % 3}",
    }
    for k in range(12)
  ]


def make_rows() -> list[dict]:
  random = np.random.default_rng(0)
  rows = []
  for number in range(40):
    pool = [f"i{k}" for k in random.permutation(12)]
    shown = 1 + number % 3
    rows.append(
      {
        "request_id": f"r{number}",
        "timestamp": 1_000 + number // 2,
        "user_id": number,
        "user_age": number / 40,
        "user_taste": [0.5, number],
        "history": pool[: number % 5],
        "candidates": pool[4 : 9 + number % 2],
        "scores": random.normal(size=5 + number % 2).tolist(),
        "shown": pool[5 : 5 + shown],
        "click": random.integers(0, 2, shown).tolist(),
        "like": random.random(shown).tolist(),
        "propensity": (0.1 + random.random(shown) / 2).tolist(),
      }
    )
  return rows


def save(path: pathlib.Path, rows: list[dict], bars: bool = True) -> str:
  """Writes rows as the file's ending says."""
  if path.suffix == ".jsonl":
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  elif path.suffix == ".parquet":
    pq.write_table(pa.Table.from_pylist(rows), path)
  else:
    cell = lambda v: "|".join(map(str, v)) if bars else json.dumps(v)
    with path.open("w", newline="") as out:
      writer = csv.DictWriter(out, list(rows[0]))
      writer.writeheader()
      for row in rows:
        writer.writerow(
          {k: cell(v) if isinstance(v, list) else v for k, v in row.items()}
        )
  return str(path)


class App:
  """Runs main at once, as absl's app would."""

  def __init__(self, argv=("import_logs",)):
    self.argv = list(argv)

  def run(self, main, flags_parser):
    del flags_parser
    main(self.argv)


def run(tmp_path, argv=("import_logs",), **values) -> None:
  values = {
    "signals": ["click", "like"],
    "weights": ["1", "2"],
    "slate_size": 0,
    "history_size": 50,
    "overwrite": False,
    "out": str(tmp_path / "out"),
  } | values
  with flagsaver.flagsaver(**values):
    errors.run(App(argv), import_logs.main)


def imported(tmp_path, weights=()):
  return load.load(
    Config(
      data=DataConfig(
        name="imported", path=str(tmp_path / "out"), weights=weights
      )
    )
  )


@pytest.fixture
def files(tmp_path):
  return {
    "impressions": save(tmp_path / "log.jsonl", make_rows()),
    "items": save(tmp_path / "items.jsonl", make_items()),
  }


@pytest.mark.parametrize("kind", ["jsonl", "csv", "json.csv", "parquet"])
def test_every_format_comes_back_as_it_was(tmp_path, kind, capsys):
  bars = not kind.startswith("json.")
  rows, items = make_rows(), make_items()
  log = save(tmp_path / f"log.{kind}", rows, bars)
  run(
    tmp_path,
    impressions=log,
    items=save(tmp_path / f"items.{kind}", items, bars),
  )
  assert "columns not used: user_id" in capsys.readouterr().out
  data = imported(tmp_path)
  assert data.item_ids.tolist() == [item["item_id"] for item in items]
  assert data.signals == ("click", "like")
  assert data.weights == (1.0, 2.0)
  assert data.slate_size == 3
  assert data.groups.tolist() == [k % 3 for k in range(12)]
  number = 0
  for name, part in data.splits.items():
    for row, time in enumerate(data.timestamps[name]):
      same(data, schema.take(part, row), time, rows[number])
      number += 1
  assert number == len(rows)
  assert len(data.timestamps["test"]) == len(data.timestamps["valid"]) == 4


def same(data, one, time, row) -> None:
  """One loaded impression says what the user's row says."""
  names = lambda index: data.item_ids[index].tolist()
  request, shown = one.request, len(row["shown"])
  real = request.candidates != PAD
  assert time == row["timestamp"]
  assert names(request.candidates[real]) == row["candidates"]
  assert names(request.history[request.history != PAD]) == row["history"]
  np.testing.assert_allclose(request.scores[real], row["scores"], rtol=1e-6)
  np.testing.assert_allclose(
    request.user, [row["user_age"], *row["user_taste"]], rtol=1e-6
  )
  assert names(request.candidates[one.slate[:shown]]) == row["shown"]
  assert request.size == shown
  np.testing.assert_allclose(one.feedback[:shown, 1], row["like"], rtol=1e-6)
  np.testing.assert_allclose(one.feedback[:shown, 0], row["click"])
  np.testing.assert_allclose(
    one.propensity[:shown], row["propensity"], rtol=1e-6
  )
  assert np.isnan(one.propensity[shown:]).all()


def test_blank_lines_mean_nothing_and_vast_numbers_are_rounded(tmp_path):
  items = make_items()
  for number, item in enumerate(items):
    item["price"] = 2**55 + number
  log = pathlib.Path(save(tmp_path / "log.csv", make_rows()))
  log.write_text("\n\n" + log.read_text())
  saved = save(tmp_path / "items.parquet", items)
  run(tmp_path, impressions=str(log), items=saved)
  assert len(imported(tmp_path).item_ids) == 12


@pytest.mark.parametrize("value", ("", "a\0"))
def test_text_that_says_nothing_in_a_parquet(tmp_path, capsys, files, value):
  for name in ("item_id", "category"):
    items = make_items()
    items[3][name] = value
    path = save(tmp_path / f"{name}.parquet", items)
    refused(tmp_path, capsys, ["row 4", f"'{name}'"], **files | {"items": path})


def test_optional_columns_may_be_absent_and_long_histories_are_cut(tmp_path):
  rows = make_rows()
  for row in rows:
    for name in ("propensity", "user_age", "user_taste", "like"):
      del row[name]
  run(
    tmp_path,
    impressions=save(tmp_path / "log.parquet", rows),
    items=save(tmp_path / "i.csv", [{"item_id": f"i{k}"} for k in range(12)]),
    signals=["click"],
    weights=[],
    history_size=2,
    slate_size=5,
  )
  data = imported(tmp_path)
  train = data.splits["train"]
  assert data.slate_size == 5
  assert data.weights == (1.0,)
  assert train.request.user.shape[1] == 0
  assert np.isnan(train.propensity).all()
  assert (
    data.item_ids[train.request.history[4]].tolist() == rows[4]["history"][-2:]
  )
  assert data.features.shape[1] > 0


def test_splits_follow_time_and_never_part_equal_times(tmp_path, files):
  rows = make_rows()
  for number, row in enumerate(rows):
    row["timestamp"] = [5, 5, 5, 6, 6, 6, 6, 7, 7, 7][number % 10]
  run(tmp_path, **files | {"impressions": save(tmp_path / "l.jsonl", rows)})
  times = imported(tmp_path).timestamps
  assert set(times["train"]) == {5}
  assert set(times["valid"]) == {6}
  assert set(times["test"]) == {7}


def test_whole_numbers_stay_whole_numbers(tmp_path, files):
  rows, items = make_rows(), make_items()
  for row in rows:
    for name in ("history", "candidates", "shown"):
      row[name] = [int(item[1:]) for item in row[name]]
  for item in items:
    item["item_id"] = int(item["item_id"][1:])
  run(
    tmp_path,
    impressions=save(tmp_path / "log.csv", rows),  # Text meets numbers.
    items=save(tmp_path / "i.parquet", items),
  )
  assert imported(tmp_path).item_ids.dtype == np.int64


def test_warm_items_are_those_of_training_rows(tmp_path, files):
  rows = make_rows()
  items = [*make_items(), {**make_items()[0], "item_id": "new"}]
  rows[-1]["history"] = ["new"]
  run(
    tmp_path,
    impressions=save(tmp_path / "l.jsonl", rows),
    items=save(tmp_path / "i.jsonl", items),
  )
  assert imported(tmp_path).warm.tolist() == [True] * 12 + [False]


def put(row, field, value):
  return lambda rows: rows[row].__setitem__(field, value)


def drop(field):
  return lambda rows: [row.pop(field) for row in rows]


def entry(row, field, index, value):
  return lambda rows: rows[row][field].__setitem__(index, value)


def longer(row, field, value):
  return lambda rows: rows[row][field].append(value)


# (name, which file, change, what the sentence must hold)
MISTAKES = [
  ("no_request_id", "log", drop("request_id"),
   ["'request_id'", "among 'timestamp', 'user_id', ", " and 1 more;"]),
  ("no_timestamp", "log", drop("timestamp"), ["'timestamp'"]),
  ("no_history", "log", drop("history"), ["'history'"]),
  ("no_candidates", "log", drop("candidates"), ["'candidates'"]),
  ("no_scores", "log", drop("scores"), ["'scores'"]),
  ("no_shown", "log", drop("shown"), ["'shown'"]),
  ("no_signal", "log", drop("like"), ["'like'", "signal"]),
  ("id_null", "log", put(3, "request_id", None), ["row 4", "'request_id'"]),
  ("id_twice", "log", put(7, "request_id", "r2"), ["row 8", "'r2'", "row 3"]),
  ("id_list", "log", put(3, "request_id", [1]), ["row 4", "'request_id'"]),
  ("id_half", "log", put(3, "request_id", "\ud800"),
   ["row 4", "'request_id'", "half a character"]),
  ("id_bool", "log", put(3, "request_id", True), ["row 4", "'request_id'"]),
  ("time_null", "log", put(1, "timestamp", None), ["row 2", "'timestamp'"]),
  ("time_text", "log", put(1, "timestamp", "noon"),
   ["row 2", "'noon'", "convert it"]),
  ("time_past", "log", put(1, "timestamp", -5), ["row 2", "-5"]),
  ("time_part", "log", put(1, "timestamp", 1.5), ["row 2", "1.5"]),
  ("time_nan", "log", put(1, "timestamp", float("nan")), ["row 2", "nan"]),
  ("time_inf", "log", put(1, "timestamp", float("inf")), ["row 2", "inf"]),
  ("time_huge", "log", put(1, "timestamp", 2**70), ["row 2", "'timestamp'"]),
  ("time_bool", "log", put(1, "timestamp", True), ["row 2", "'timestamp'"]),
  ("unknown_candidate", "log", entry(11, "candidates", 0, "x"),
   ["row 12", "'candidates'", "'x'", "items.jsonl", "drop the row"]),
  ("unknown_history", "log", entry(11, "history", 0, "x"), ["'history'"]),
  ("unknown_shown", "log", entry(11, "shown", 0, "x"), ["'shown'", "'x'"]),
  ("number_id", "log", entry(11, "shown", 0, 4), ["row 12", "'4'"]),
  ("float_id", "log", entry(11, "shown", 0, 4.5), ["row 12", "4.5"]),
  ("null_candidate", "log", entry(9, "candidates", 1, None), ["row 10"]),
  ("empty_candidate", "log", entry(9, "candidates", 1, ""), ["row 10"]),
  ("nested_candidate", "log", entry(9, "candidates", 1, ["i1"]),
   ["row 10", "entry ['i1'] is not an id"]),
  ("huge_candidate", "log", entry(9, "candidates", 1, 2**64),
   ["row 10", "entry 18446744073709551616 is not an id (64-bit"]),
  ("half_candidate", "log", entry(9, "candidates", 1, "\udfff"),
   ["row 10", "'candidates'", r"'\udfff'", "half a character"]),
  ("no_candidate", "log", put(9, "candidates", []),
   ["row 10", "'candidates'", "empty"]),
  ("null_candidates", "log", put(9, "candidates", None), ["row 10"]),
  ("scalar_candidates", "log", put(9, "candidates", 3),
   ["row 10", "a list", "correct it"]),
  ("dict_candidates", "log", put(9, "candidates", {"a": 1}), ["row 10"]),
  ("candidate_twice", "log",
   lambda rows: rows[5]["candidates"].__setitem__(1, rows[5]["candidates"][0]),
   ["row 6", "'candidates'", "twice"]),
  ("null_history", "log", put(9, "history", None), ["row 10", "'history'"]),
  ("shown_none", "log", put(9, "shown", []), ["row 10", "'shown'", "empty"]),
  ("shown_elsewhere", "log",
   lambda rows: rows[6]["shown"].__setitem__(0, rows[6]["history"][0]),
   ["row 7", "'shown'", "not among the candidates"]),
  ("shown_twice", "log",
   lambda rows: rows[5]["shown"].__setitem__(1, rows[5]["shown"][0]),
   ["row 6", "'shown'", "twice"]),
  ("scores_short", "log", lambda rows: rows[4]["scores"].pop(),
   ["row 5", "'scores'", "4 values", "has 5"]),
  ("scores_long", "log", longer(4, "scores", 1.0), ["row 5", "'scores'"]),
  ("score_nan", "log", entry(4, "scores", 0, float("nan")), ["row 5", "nan"]),
  ("score_inf", "log", entry(4, "scores", 0, float("inf")), ["row 5", "inf"]),
  ("score_big", "log", entry(4, "scores", 0, 1e300), ["row 5", "1e+300"]),
  ("score_vast", "log", entry(4, "scores", 0, 1e30), ["row 5", "1e+30"]),
  ("score_text", "log", entry(4, "scores", 0, "high"), ["row 5", "'high'"]),
  ("score_null", "log", entry(4, "scores", 0, None), ["row 5", "missing"]),
  ("scores_null", "log", put(4, "scores", None), ["row 5", "'scores'"]),
  ("click_long", "log", longer(4, "click", 1), ["row 5", "'click'"]),
  ("click_short", "log", put(4, "click", []), ["row 5", "'click'"]),
  ("click_two", "log", entry(4, "click", 0, 2), ["row 5", "2", "[0, 1]"]),
  ("click_over", "log", entry(4, "click", 0, 1 + 1e-9),
   ["row 5", "1.000000001 is outside"]),
  ("click_minus", "log", entry(4, "click", 0, -1), ["row 5", "[0, 1]"]),
  ("like_nan", "log", entry(4, "like", 0, float("nan")), ["row 5", "'like'"]),
  ("like_text", "log", entry(4, "like", 0, "yes"), ["row 5", "'yes'"]),
  ("chance_zero", "log", entry(4, "propensity", 0, 0), ["row 5", "(0, 1]"]),
  ("chance_tiny", "log", entry(4, "propensity", 0, 1e-60), ["(0, 1]"]),
  ("chance_big", "log", entry(4, "propensity", 0, 1.1), ["1.1", "(0, 1]"]),
  ("chance_nan", "log", entry(4, "propensity", 0, float("nan")), ["row 5"]),
  ("chance_long", "log", longer(4, "propensity", 0.5), ["row 5"]),
  ("user_nan", "log", put(4, "user_age", float("nan")), ["'user_age'"]),
  ("user_text", "log", put(4, "user_age", "old"), ["row 5", "'old'"]),
  ("user_null", "log", put(4, "user_age", None), ["row 5", "'user_age'"]),
  ("user_short", "log", put(4, "user_taste", [1.0]), ["row 5", "'user_taste'"]),
  ("user_inf", "log", entry(4, "user_taste", 0, float("inf")), ["row 5"]),
  ("blank_name", "log",
   lambda rows: [r.update({" propensity": r.pop("propensity")}) for r in rows],
   ["' propensity'", "blank"]),
  ("late_field", "log", put(4, "propensty", [1.0]), ["row 5", "'propensty'"]),
  ("one_time", "log", lambda rows: [r.update(timestamp=7) for r in rows],
   ["'timestamp'", "1 different"]),
  ("two_rows", "log", lambda rows: rows.__delitem__(slice(2, None)),
   ["'timestamp'"]),
  ("no_rows", "log", lambda rows: rows.clear(), ["no rows"]),
  ("no_items", "items", lambda rows: rows.clear(), ["no rows"]),
  ("no_item_id", "items", drop("item_id"), ["'item_id'"]),
  ("item_twice", "items", put(3, "item_id", "i1"), ["row 4", "'i1'", "row 2"]),
  ("item_nul", "items", put(3, "item_id", "i3\0"), ["row 4", r"'i3\x00'"]),
  ("item_null", "items", put(3, "item_id", None), ["row 4", "'item_id'"]),
  ("item_float", "items", put(3, "item_id", 1.5), ["row 4", "1.5"]),
  ("price_text", "items", put(3, "price", "dear"),
   ["row 4", "'dear'", "drop the column"]),
  ("price_nan", "items", put(3, "price", float("nan")), ["row 4", "'price'"]),
  ("price_null", "items", put(3, "price", None), ["row 4", "'price'"]),
  ("price_big", "items", put(3, "price", 1e39), ["row 4", "'price'"]),
  ("emb_short", "items", put(3, "emb", [1.0]), ["row 4", "'emb'"]),
  ("emb_text", "items", put(3, "emb", ["a", 1]), ["row 4", "'a'"]),
  ("category_null", "items", put(3, "category", None), ["row 4"]),
  ("category_half", "items", put(3, "category", "\ud83d"), ["row 4"]),
  ("category_list", "items", put(3, "category", [1]), ["row 4", "'category'"]),
]  # fmt: skip


def refused(tmp_path, capsys, texts, **flag_values) -> None:
  """One sentence on stderr, status 2, nothing left behind."""
  before = sorted(tmp_path.rglob("*"))
  with pytest.raises(SystemExit) as caught:
    run(tmp_path, **flag_values)
  assert caught.value.code == 2
  captured = capsys.readouterr()
  assert captured.out == ""
  lines = captured.err.splitlines()
  assert len(lines) == 1, lines
  assert lines[0].startswith("error: ")
  assert lines[0].endswith(".")
  for text in texts:
    assert text in lines[0], (text, lines[0])
  assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
  "which,change,texts", [m[1:] for m in MISTAKES], ids=[m[0] for m in MISTAKES]
)
def test_a_mistake_in_a_file(tmp_path, capsys, which, change, texts):
  tables = {"log": make_rows(), "items": make_items()}
  change(tables[which])
  paths = {
    name: save(tmp_path / f"{name}.jsonl", rows)
    for name, rows in tables.items()
  }
  refused(
    tmp_path,
    capsys,
    [f"{which}.jsonl", *texts],
    impressions=paths["log"],
    items=paths["items"],
  )


# The same rules hold where Arrow types the columns.
PARQUET = [
  "id_twice", "time_past", "unknown_candidate", "null_candidate",
  "empty_candidate", "no_candidate", "null_candidates", "candidate_twice",
  "shown_none",
  "shown_twice", "scores_short", "score_nan", "score_null", "click_two",
  "chance_zero", "user_nan", "user_null", "user_short", "no_scores", "no_like",
]  # fmt: skip


@pytest.mark.parametrize("name", [n for n in PARQUET if n != "no_like"])
def test_a_mistake_in_a_parquet(tmp_path, capsys, name):
  _, _, change, texts = next(m for m in MISTAKES if m[0] == name)
  rows = make_rows()
  change(rows)
  texts = [text for text in texts if text != "items.jsonl"]
  refused(
    tmp_path,
    capsys,
    ["log.parquet", *texts],
    impressions=save(tmp_path / "log.parquet", rows),
    items=save(tmp_path / "items.parquet", make_items()),
  )


HEADER = b"request_id,timestamp,history,candidates,scores,shown,click,like\n"
ROW = b"a,1,i1,i1|i2,1|2,i1,1,0\n"
LINE = json.dumps(make_rows()[0]).encode() + b"\n"
# (file name, bytes, what the sentence must hold)
BROKEN = {
  "nothing.csv": (b"", ["no rows"]),
  "header.csv": (HEADER, ["no rows"]),
  "ragged.csv": (HEADER + b"a,1,2\n", ["row 1", "3 fields", "8"]),
  "quote.csv": (HEADER + ROW + b'"a', ["row 2", "csv"]),
  "latin.csv": (HEADER + b"\xff\xfe,1", ["csv", "UTF-8"]),
  "late.csv": (HEADER + 6 * ROW + ROW.replace(b"a", b"\xe9"),
               ["row 7", "csv", "byte 0xe9", "encoding"]),
  "wide.csv": (HEADER.decode().encode("utf-16"), ["wide.csv: no readable csv"]),
  "tabs.csv": (HEADER.replace(b",", b"\t") + b"a\n",
               [r"among 'request_id\ttimestamp", "rename"]),
  "deep.csv": (HEADER + ROW.replace(b"1|2", b"[" * 100_000),
               ["row 1", "'scores'"]),
  "LOUD.CSV": (HEADER, ["no rows"]),
  "index.csv": (b"," + HEADER + b"0," + ROW, ["column 1 has no name"]),
  "twice.csv": (b"click," + HEADER + b"1," + ROW, ["'click'", "twice"]),
  "list.csv": (HEADER + ROW.replace(b"1|2", b"[1;2"), ["row 1", "'scores'"]),
  "word.csv": (HEADER + ROW.replace(b"1|2", b"1|b"), ["row 1", "'b'"]),
  "hole.csv": (HEADER + ROW.replace(b"1|2", b"1|"), ["row 1", "missing"]),
  "nothing.jsonl": (b"", ["no rows"]),
  "blank.jsonl": (b"\n\n", ["no rows"]),
  "cut.jsonl": (b'{"request_id": 1', ["row 1", "JSON"]),
  "twice.jsonl": (b'{"a": 1, "b": 2, "a": 3}\n', ["row 1", "'a'", "twice"]),
  "array.jsonl": (b"[1]\n", ["row 1", "JSON object"]),
  "bytes.jsonl": (b'{"a": "\xff"}\n', ["JSON", "UTF-8"]),
  "late.jsonl": (30 * LINE + LINE.replace(b"r0", b"\xe9"),
                 ["row 31", "JSON", "byte 0xe9", "encoding"]),
  "deep.jsonl": (b"[" * 100_000, ["row 1", "JSON"]),
  "nothing.parquet": (b"", ["parquet"]),
  "text.parquet": (b"PAR1 but not really PAR1", ["parquet"]),
  "log.xlsx": (b"x", ["unknown kind", ".parquet, .csv or .jsonl"]),
  "log": (b"x", ["unknown kind"]),
}  # fmt: skip


@pytest.mark.parametrize("which", ["impressions", "items"])
@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file(tmp_path, capsys, files, name, which):
  content, texts = BROKEN[name]
  if which == "items" and name in (
    "quote.csv",
    "late.csv",
    "deep.csv",
    "list.csv",
    "word.csv",
    "hole.csv",
    "late.jsonl",
  ):
    texts = ["'item_id'"]
  (tmp_path / name).write_bytes(content)
  values = files | {which: str(tmp_path / name)}
  refused(tmp_path, capsys, [name, *texts], **values)


def test_a_truncated_parquet_and_one_with_damaged_pages(
  tmp_path, capsys, files
):
  good = pathlib.Path(save(tmp_path / "log.parquet", make_rows())).read_bytes()
  for name, content in {
    "short.parquet": good[: len(good) // 2],
    "pages.parquet": good[:4] + b"\xff" * 3000 + good[3004:],
  }.items():
    (tmp_path / name).write_bytes(content)
    refused(
      tmp_path, capsys, [name], **files | {"impressions": str(tmp_path / name)}
    )


def broken_text(values: list[bytes]) -> pa.Array:
  """Text that no writer has checked."""
  _, offsets, data = pa.array(values).buffers()
  return pa.StringArray.from_buffers(len(values), offsets, data)


LATIN = [b"caf\xe9" if k == 3 else b"i1" for k in range(40)]
# (which file, column, values, what the sentence must hold)
COLUMNS = [
  ("items", "created", pa.array([10**18 + 1] * 12, pa.timestamp("ns")),
   ["'created'", "timestamp[ns]", "not a number", "drop it"]),
  ("items", "created", pa.array([10**12] * 12, pa.timestamp("s")),
   ["'created'", "timestamp"]),
  ("items", "created", pa.array([1] * 12, pa.timestamp("s", "Mars/Phobos")),
   ["'created'", "Mars/Phobos"]),
  ("items", "created", pa.array([10**7] * 12, pa.int32()).cast(pa.date32()),
   ["'created'", "date32"]),
  ("items", "created", pa.array([2**62] * 12, pa.duration("s")),
   ["'created'", "duration"]),
  ("items", "created", pa.array([[1]] * 12, pa.list_(pa.time64("ns"))),
   ["'created'", "time64[ns]"]),
  ("log", "request_id", pa.array(range(1, 41), pa.timestamp("ns")),
   ["'request_id'", "timestamp[ns]", "convert it"]),
  ("items", "item_id", broken_text(LATIN[:12]), ["row 4", "'item_id'"]),
  ("items", "category", broken_text(LATIN[:12]), ["row 4", "not UTF-8"]),
  ("log", "shown",
   pa.ListArray.from_arrays(pa.array(range(41), pa.int32()),
                            broken_text(LATIN)), ["row 4", "'shown'"]),
]  # fmt: skip


@pytest.mark.parametrize("which,name,column,texts", COLUMNS)
def test_a_parquet_column_that_python_cannot_hold(
  tmp_path, capsys, which, name, column, texts
):
  paths = {}
  for kind, rows in (("log", make_rows()), ("items", make_items())):
    table = pa.Table.from_pylist(rows)
    if kind == which:
      keep = [old for old in table.column_names if old != name]
      table = table.select(keep).append_column(name, column)
    paths[kind] = str(tmp_path / f"{kind}.parquet")
    pq.write_table(table, paths[kind])
  refused(
    tmp_path,
    capsys,
    [f"{which}.parquet", *texts],
    impressions=paths["log"],
    items=paths["items"],
  )


def test_lists_stay_as_long_from_batch_to_batch(
  tmp_path, capsys, files, monkeypatch
):
  monkeypatch.setattr(tables, "_ROWS", 4)
  for which, make, names in (
    ("impressions", make_rows, ("user_taste", "user_b")),
    ("items", make_items, ("emb", "b")),
  ):
    rows = make()
    for number, row in enumerate(rows):  # Together they stay as wide.
      row |= dict(zip(names, ([1, 2], [1, 2, 3])[:: -1 if number > 7 else 1]))
    path = save(tmp_path / f"swap_{which}.jsonl", rows)
    texts = ["row 9", f"'{names[0]}'", "3 values", "above have 2", "give as"]
    refused(tmp_path, capsys, texts, **files | {which: path})


FLAGS = [
  ({"impressions": "absent.csv"}, ["absent.csv", "no such file"]),
  ({"items": "absent.parquet"}, ["absent.parquet", "no such file"]),
  ({"signals": []}, ["--signals"]),
  ({"signals": ["click", "click"]}, ["--signals"]),
  ({"signals": ["click", ""]}, ["--signals"]),
  ({"signals": ["click", "scores"]}, ["--signals=scores"]),
  ({"signals": ["click", "buy"]}, ["'buy'", "no such signal among 'request"]),
  ({"weights": ["1"]}, ["--weights", "one for each"]),
  ({"weights": ["1", "x"]}, ["--weights=1,x"]),
  ({"weights": ["1", "nan"]}, ["--weights", "finite"]),
  ({"weights": ["1", "1e300"]}, ["--weights", "at most 1e+18"]),
  ({"weights": ["0", "0"]}, ["--weights", "not 0"]),
  ({"slate_size": -1}, ["--slate_size=-1"]),
  ({"slate_size": 7}, ["--slate_size=7", "at most 6 candidates", "lower it"]),
  ({"slate_size": 10**30}, ["--slate_size=1000", "at most 6 candidates"]),
  ({"slate_size": 2}, ["row 3", "'shown'", "--slate_size=2"]),
  ({"history_size": 0}, ["--history_size=0"]),
  ({"argv": ("import_logs", "stray")}, ["'stray'"]),
]


@pytest.mark.parametrize("values,texts", FLAGS)
def test_a_wrong_flag(tmp_path, capsys, files, values, texts):
  refused(tmp_path, capsys, texts, **files | values)


def test_paths_that_lead_nowhere(tmp_path, capsys, files):
  (tmp_path / "folder.csv").mkdir()
  for name in ("loop", "loop.csv"):
    (tmp_path / name).symlink_to(tmp_path / name)
  for flag, path, text in (
    ("impressions", tmp_path / "folder.csv", "no regular file"),
    ("impressions", tmp_path / "loop.csv", "no such file"),
    ("items", tmp_path / "loop.csv", "no such file"),
    ("out", tmp_path / "loop", "loop is no folder"),
    ("out", tmp_path / "loop" / "out", "loop is no folder"),
    ("out", tmp_path / "log.jsonl" / "a" / "b", "log.jsonl is no folder"),
    ("out", "/", "mount point"),
  ):
    refused(tmp_path, capsys, [str(path), text], **files | {flag: str(path)})


def test_a_full_disk(tmp_path, capsys, files):
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
  try:
    refused(tmp_path, capsys, [str(tmp_path), "free space"], **files)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_out_is_never_overwritten_by_accident(tmp_path, capsys, files):
  out = tmp_path / "out"
  out.mkdir()
  (out / "precious").write_text("mine")
  refused(tmp_path, capsys, ["not empty", "--overwrite"], **files)
  again = files | {"overwrite": True}
  refused(tmp_path, capsys, ["holds precious", "no earlier import"], **again)
  manifest = out / "manifest.json"
  fields = dict.fromkeys(("format", "signals", "weights", "rows", "sha256"), 1)
  bundle = {"name": "bundle", "sha256": {"precious": "1"}}
  for content in ([], fields, bundle):
    manifest.write_text(json.dumps(content))
    refused(tmp_path, capsys, ["no earlier import"], **again)
  refused(
    tmp_path, capsys, ["is no folder"], **files | {"out": str(out / "precious")}
  )
  refused(tmp_path, capsys, ["holds"], **files | {"out": str(tmp_path)})
  assert (out / "precious").read_text() == "mine"


def test_overwrite_replaces_an_earlier_import(tmp_path, capsys, files):
  run(tmp_path, **files)
  capsys.readouterr()
  rows = make_rows()[:30]
  again = files | {"impressions": save(tmp_path / "b.jsonl", rows)}
  foreign = tmp_path / "out" / "items" / "thesis"
  foreign.mkdir()
  refused(tmp_path, capsys, ["holds items/thesis"], **again, overwrite=True)
  foreign.rmdir()
  foreign.write_text("years")
  refused(tmp_path, capsys, ["holds items/thesis"], **again, overwrite=True)
  foreign.unlink()
  run(tmp_path, **again, overwrite=True)
  total = sum(t.size for t in imported(tmp_path).timestamps.values())
  assert total == 30
  assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_a_failed_overwrite_keeps_the_earlier_import(tmp_path, capsys, files):
  run(tmp_path, **files)
  capsys.readouterr()
  rows = make_rows()
  rows[20]["scores"] = []
  bad = files | {"impressions": save(tmp_path / "b.jsonl", rows)}
  refused(tmp_path, capsys, ["row 21"], **bad, overwrite=True)
  assert imported(tmp_path).timestamps["train"].size == 32


def test_damage_is_noticed(tmp_path, files):
  run(tmp_path, **files)
  out = tmp_path / "out"
  record = next(out.rglob("*train*array_record*"))
  good = record.read_bytes()
  record.write_bytes(good[:100] + b"?" + good[101:])
  with pytest.raises(ConfigError, match="has changed since the import"):
    imported(tmp_path)
  record.unlink()
  with pytest.raises(ConfigError, match="is missing"):
    imported(tmp_path)
  manifest = out / "manifest.json"
  text = manifest.read_text()
  manifest.write_text(text.replace('"format": 1', '"format": 99'))
  with pytest.raises(ConfigError, match="format 99"):
    imported(tmp_path)
  manifest.write_text(text[:50])
  with pytest.raises(ConfigError, match="damaged"):
    imported(tmp_path)
  manifest.unlink()
  with pytest.raises(ConfigError, match=r"holds no manifest\.json"):
    imported(tmp_path)


def test_load_checks_its_config(tmp_path, files):
  run(tmp_path, **files)
  assert imported(tmp_path, (3.0, 4.0)).weights == (3.0, 4.0)
  with pytest.raises(ConfigError, match=r"config\.data\.weights"):
    imported(tmp_path, (3.0,))
  with pytest.raises(ConfigError, match=r"config\.data\.path is empty"):
    load.load(Config(data=DataConfig(name="imported")))
  with pytest.raises(ConfigError, match=r"config\.data\.name='fake'"):
    load.load(Config(data=DataConfig(name="fake")))


def test_the_documents_example_row_is_valid(tmp_path):
  page = pathlib.Path(__file__).parents[2] / "docs" / "data.md"
  line = next(
    text for text in page.read_text().splitlines() if '{"request_id"' in text
  )
  rows = [
    json.loads(line) | {"request_id": k, "timestamp": k} for k in range(3)
  ]
  run(
    tmp_path,
    impressions=save(tmp_path / "log.jsonl", rows),
    items=save(tmp_path / "i.csv", [{"item_id": k} for k in (3, 4, 7, 17)]),
    signals=["click"],
    weights=[],
  )
  data = imported(tmp_path)
  assert data.splits["train"].slate.tolist() == [[1, 0]]
