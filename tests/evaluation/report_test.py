"""Files of a report: deterministic, whole, readable by programs and people."""

from html.parser import HTMLParser
import json
import os

import numpy as np
import pytest

from rerank_rl.config import ConfigError
from rerank_rl.evaluation import judge, report
from rerank_rl.evaluation import page as page_lib


def _row(system, seed, **metrics):
  return {
    "system": system,
    "seed": seed,
    "metrics": metrics,
    "intervals": {k: [v - 0.1, v + 0.1] for k, v in metrics.items()},
  }


ROWS = [
  _row("ranker_order", 0, **{"true_utility": 1.9, "ndcg@6": 0.61}),
  _row("glorank_rl", 0, true_utility=2.4, odd_metric=7.0),
]
JUDGED = {
  system: {
    "true_utility": np.linspace(0, 1, 5),
    "cold": np.arange(5) > 2,
    "coverage": 0.5,
  }
  for system in ("ranker_order", "glorank_rl")
}
CALIBRATION = judge.calibration(
  np.array([[0.2, 0.8], [0.3, 0.6]]),
  np.array([[0.0, 1.0], [1.0, 1.0]]),
  np.ones((2, 2), bool),
)
DECILES = judge.gap_by_decile(np.arange(20.0), np.arange(20.0) / 2)
HISTORY = {
  "sft": [{"step": 0, "loss": 2.0}, {"step": 5, "loss": 1.0, "ndcg": 0.4}],
  "rl": [{"step": 0, "reward": float("nan")}, {"step": 5, "reward": 2.5}],
}


def _write(folder, **changes):
  report.write(
    folder,
    **{
      "dataset": "world <1> & test",
      "version": "a1",
      "split": "test",
      "protocol": "value",
      "command": "python -m launch.train --config=x.py",
      "rows": ROWS,
      "judged": JUDGED,
      "timing": {"rl": 1.125},
      "history": HISTORY,
      "calibrations": {"A on logged slates": CALIBRATION},
      "deciles": {"glorank_rl": DECILES},
    }
    | changes,
  )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  path = tmp_path_factory.mktemp("report")
  _write(path)
  return path


def test_report_json(folder):
  text = (folder / report.REPORT).read_text()
  content = json.loads(text)
  facts = {"dataset", "version", "split", "protocol", "command"}
  figures = {"rows", "history", "calibrations", "deciles"}
  assert set(content) == facts | figures
  assert content["deciles"]["glorank_rl"][0]["count"] == 2
  assert [row["system"] for row in content["rows"]] == [
    "ranker_order",
    "glorank_rl",
  ]
  assert content["rows"][0]["metrics"]["ndcg@6"] == 0.61
  assert "1.125" not in text  # Times have their own file.
  timing = json.loads((folder / report.TIMING).read_text())
  assert timing == {"rl": 1.125}


def test_equal_runs_give_equal_bytes(folder, tmp_path):
  _write(tmp_path, timing={"rl": 9.0})
  names = (report.REPORT, report.JUDGEMENTS, report.PAGE)
  for name in names:
    assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()
  assert sorted(os.listdir(tmp_path)) == sorted([*names, report.TIMING])


def test_json_is_rounded_strict_and_free_of_numpy(tmp_path):
  rows = [_row("x", np.int64(0), a=np.float32(0.1), b=float("nan"), c=-1e-9)]
  _write(tmp_path, rows=rows, history={}, calibrations={}, deciles={})
  text = (tmp_path / report.REPORT).read_text()

  def refuse(constant):
    raise AssertionError(f"not JSON: {constant}")

  metrics = json.loads(text, parse_constant=refuse)["rows"][0]["metrics"]
  assert metrics == {"a": 0.1, "b": None, "c": 0.0}
  assert "-0.0" not in text


def test_judgements_come_back_for_paired_intervals(folder):
  judged = report.load_judgements(folder / report.JUDGEMENTS)
  assert list(judged) == list(JUDGED)
  assert set(judged["glorank_rl"]) == {"true_utility", "cold"}
  for name, value in judged["glorank_rl"].items():
    np.testing.assert_allclose(value, JUDGED["glorank_rl"][name])
  assert judged["glorank_rl"]["cold"].dtype == bool


@pytest.mark.parametrize("name", (report.REPORT, report.PAGE, report.TIMING))
def test_a_folder_in_a_files_place_is_named_before_anything(tmp_path, name):
  (tmp_path / name).mkdir()
  with pytest.raises(ConfigError, match=f"{name} is damaged .*remove it"):
    _write(tmp_path)
  assert os.listdir(tmp_path) == [name]


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
  path = tmp_path / report.JUDGEMENTS
  report.save_judgements(path, JUDGED)
  before = path.read_bytes()

  def fail(*_):
    raise OSError("the disk is gone")

  monkeypatch.setattr(os, "replace", fail)
  with pytest.raises(OSError, match="disk is gone"):
    report.save_judgements(path, {"other": {"x": np.ones(3)}})
  assert path.read_bytes() == before
  assert os.listdir(tmp_path) == [report.JUDGEMENTS]


def test_table_shows_the_headline_first_with_its_interval():
  lines = report.table(ROWS).splitlines()
  text = "\n".join(lines)
  assert max(map(len, lines)) <= 80
  assert "[2.300, 2.500]" in text and "[0.510, 0.710]" not in text
  assert "odd" not in text and "seed" not in text
  (last,) = (line for line in lines if "glorank_rl" in line)
  assert last.split()[-1] == "-"  # It has no NDCG.
  many = report.table([*ROWS, _row("glorank_rl", 1, true_utility=2.2)])
  assert "seed" in many


def test_table_of_every_metric_does_not_cut_a_number():
  plain = ("precision", "ndcg", "map", "f1", "cold_ndcg")
  names = [f"{x}@10" if x in plain else x for x in page_lib.HEADLINE]
  values = {name: 0.001 * (i + 100) for i, name in enumerate(names)}
  text = report.table([_row("a_system_with_a_long_name", 0, **values)])
  for value in values.values():
    assert f"{value:.3f}" in text
  assert "…" not in text


class _Page(HTMLParser):
  """Checks nesting and collects what a reader's tools rely on."""

  VOID = frozenset({"meta", "img"})

  def __init__(self):
    super().__init__()
    self.stack, self.images, self.tags, self.links = [], [], [], []

  def handle_starttag(self, tag, attrs):
    attrs = dict(attrs)
    self.tags.append(tag)
    self.links += [attrs[x] for x in ("src", "href", "srcset") if x in attrs]
    if tag == "img":
      self.images.append(attrs)
    if tag not in self.VOID:
      self.stack.append(tag)

  def handle_endtag(self, tag):
    assert self.stack.pop() == tag


def test_page_is_self_contained_and_accessible(folder):
  text = (folder / report.PAGE).read_text()
  page = _Page()
  page.feed(text)
  assert not page.stack
  assert page.tags.count("table") == page.tags.count("caption") >= 5
  assert len(page.images) == 5  # Systems, deciles, calibration, two stages.
  assert page.tags.count("figcaption") == 5
  assert all(len(image["alt"]) > 10 for image in page.images)
  assert all(link.startswith("data:image/png") for link in page.links)
  assert "http" not in text and "<script" not in text
  assert "prefers-color-scheme: dark" in text
  assert "world &lt;1&gt; &amp; test" in text and "<1>" not in text
  assert "A - B by decile" in text and "odd metric" in text


def test_page_without_figures_or_rows(tmp_path):
  _write(
    tmp_path,
    rows=[],
    judged={},
    history={"rl": [{"step": 0, "loss": float("nan")}]},
    calibrations={},
    deciles={},
  )
  page = _Page()
  page.feed((tmp_path / report.PAGE).read_text())
  assert not page.stack and not page.images
