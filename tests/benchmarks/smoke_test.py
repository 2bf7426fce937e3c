"""Benchmarks run at tiny sizes, and their checks can fail."""

import sys

import numpy as np
import pytest

from benchmarks import common, decode, learner
from rerank_rl.models.policy import Sizes

TINY = common.Setting(
  dim=8,
  layers=1,
  requests=2,
  group=2,
  items=20,
  data=Sizes(codes=8, levels=2, slots=2, history=3, candidates=5),
)


def test_learner_prints_its_table(capsys):
  ratios = learner.run(TINY, 1)
  assert len(ratios) == 3 and ratios[-1] == 1
  assert "separate sequences" in capsys.readouterr().out


def test_decode_beats_or_not_but_prints_both(capsys):
  pytest.importorskip("transformers")
  pytest.importorskip("torch")
  assert decode.run(TINY, 1) > 0
  assert "generate" in capsys.readouterr().out


def test_decode_without_the_peer_says_what_to_install(capsys, monkeypatch):
  monkeypatch.setitem(sys.modules, "torch", None)
  with pytest.raises(SystemExit, match=r"pip install -e '\.\[bench\]'"):
    decode.run(TINY, 1)
  assert "rerank_rl" in capsys.readouterr().out


def test_a_repeated_or_foreign_item_is_illegal():
  assert decode.legal(np.array([[0, 4], [2, 1]]), 5)
  assert not decode.legal(np.array([[0, 4], [2, 2]]), 5)
  assert not decode.legal(np.array([[0, 5]]), 5)
  assert not decode.legal(np.array([[-1, 1]]), 5)


def test_flops_count_the_matrix_products():
  x = np.ones((8, 16), np.float32)
  y = np.ones((16, 4), np.float32)
  assert common.flops(lambda a, b: a @ b, x, y) == 2 * 8 * 16 * 4
