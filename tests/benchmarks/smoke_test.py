"""Benchmarks run at tiny sizes, and their checks can fail."""

import dataclasses
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import (
  common,
  decode,
  greedy,
  hit_rate,
  latency,
  legality,
  lookahead,
  permutation,
  tree,
  trie,
)
from rerank_rl.models.prefix_lm import Sizes
from rerank_rl.types import PAD, Request

TINY = common.Setting(
  dim=8,
  layers=1,
  requests=2,
  group=2,
  items=20,
  data=Sizes(codes=8, levels=2, slots=2, history=3, candidates=5),
)


def test_a_tree_prints_its_table(capsys):
  """By what compares the learner's layouts on chains, too."""
  shape = dataclasses.replace(TINY, group=64, requests=1, items=60)
  data = TINY.data._replace(slots=3, candidates=40)
  ratios = tree.run(dataclasses.replace(shape, data=data), 1)
  assert len(ratios) == 3 and ratios[-1] == 1
  said = capsys.readouterr().out
  assert "4 x 4 x 4" in said and "separate sequences" in said


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


def test_trie_prints_a_ratio_a_size(monkeypatch, capsys):
  monkeypatch.setattr(trie, "CODES", 4)
  monkeypatch.setattr(trie, "PREFIXES", 8)
  ratios = trie.run([10, 40], 1)
  assert ratios[0] == (1, 1) and min(ratios[1]) > 0
  assert "slots fans" in " ".join(capsys.readouterr().out.split())


def test_flops_count_the_matrix_products():
  x = np.ones((8, 16), np.float32)
  y = np.ones((16, 4), np.float32)
  assert common.flops(lambda a, b: a @ b, x, y) == 2 * 8 * 16 * 4


def _two_requests(slates, **rules):
  """Faults of slates of up to 3 slots for 2 requests with 3 candidates."""
  request = Request(
    user=np.zeros((2, 0)),
    history=np.zeros((2, 1), np.int32),
    candidates=np.array([[5, 7, 9, PAD], [5, 7, PAD, PAD]]),
    scores=np.zeros((2, 4)),
    size=np.array([3, 2]),
  )
  return legality.faults(np.array(slates), request, **rules).tolist()


def test_every_fault_of_a_slate_is_counted():
  assert _two_requests([[2, 0, 1], [1, 0, PAD]]) == [False, False]
  assert _two_requests([[2, 0, 0], [1, 1, PAD]]) == [True, True]  # Twice.
  assert _two_requests([[2, 0, 3], [2, 0, PAD]]) == [True, True]  # Foreign.
  assert _two_requests([[2, 0, PAD], [0, 1, 0]]) == [True, True]  # Length.
  rules = dict(
    pins=np.array([[PAD, 0, PAD], [PAD, PAD, PAD]]),
    groups=np.array([[0, 1, 1, 0], [2, 2, 0, 0]]),
    limit=np.array([1, 1]),
  )
  assert _two_requests([[2, 0, PAD], [1, PAD, PAD]], **rules) == [False] * 2
  assert _two_requests([[0, 2, PAD], [1, 0, PAD]], **rules) == [True] * 2


def test_order_changes_local_indices_alone(monkeypatch, capsys):
  monkeypatch.setattr(permutation, "SAMPLES", 40)
  rows = permutation.run(TINY)
  (same, _), moved, bound = rows["global"]
  assert same == 0 and moved < 1e-6 and np.isnan(bound)
  (changed, total), moved, bound = rows["local_index"]
  assert changed > 0.2 * total and moved > 1e-3 and bound > 1 - 1e-6
  assert "Permuted" in capsys.readouterr().out


def test_greedy_prints_its_table(capsys):
  assert len(greedy.run(TINY, 1)) == 2
  assert "without the prompt" in capsys.readouterr().out


def test_latency_prints_its_table(capsys, monkeypatch):
  monkeypatch.setattr(latency, "ROUNDS", 1)
  ratios = latency.run(TINY, 1)
  assert len(ratios) == 4 and ratios["PRM"] == 1
  assert "NAR4Rec" in capsys.readouterr().out


def test_list_auc_counts_ordered_pairs():
  rng = np.random.default_rng(0)
  value, outcome = rng.integers(0, 5, 40) * 0.1, rng.integers(0, 3, 40)
  won = [
    (x > y) + (x == y) / 2
    for x, a in zip(value, outcome)
    for y, b in zip(value, outcome)
    if a > b
  ]
  np.testing.assert_allclose(lookahead.list_auc(value, outcome), np.mean(won))
  assert np.isnan(lookahead.list_auc(value, 0 * outcome))


def test_a_prefixs_count_is_held_against_its_own_feedback():
  part = SimpleNamespace(
    slate=np.array([[3, 1, 2], [0, PAD, PAD]]),
    feedback=np.array([[1.0, 0, 1], [0, 0, 0]])[..., None],
  )
  truth = np.zeros((2, 3, 1, 3))
  truth[0, :, 0] = [[1, 0, 0], [1, 0, 0], [1, 1, 0]]
  assert lookahead.reliability(truth, part, 0)["ece"] == 0
  found = lookahead.reliability(1 - truth, part, 0)
  assert found["ece"] == 1 and sum(b["count"] for b in found["bins"]) == 7


def test_the_place_among_all_lists():
  every = np.tile(np.arange(100.0, 200), (3, 1))
  np.testing.assert_allclose(
    hit_rate.place(every, np.array([199.0, 198.0, 150.0 - 1e-6])),
    [0, 0.01, 0.49],
  )
