"""What the benchmarks of simulators compute, and that they can fail."""

import numpy as np
import pytest

from benchmarks import fidelity, simulator

TINY = simulator.Sizes(
  users=8,  # The tests have as many devices.
  turns=2,
  dim=8,
  history=5,
  slots=2,
  candidates=4,
  items=20,
  features=4,
)


def test_auc_counts_pairs():
  score = np.array([0.1, 0.4, 0.4, 0.9])
  positive = np.array([False, True, False, True])
  assert fidelity.auc(score, positive) == pytest.approx((1 + 0.5 + 2) / 4)
  assert np.isnan(fidelity.auc(score, np.ones(4, bool)))


def test_the_peer_is_the_same_model(capsys):
  pytest.importorskip("torch")
  law, start = simulator.users(TINY)
  peer = simulator.Peer(law, start, TINY)
  assert simulator.disagreement(law, start, peer) < 1e-5
  other, _ = simulator.users(TINY, seed=1)
  assert simulator.disagreement(other, start, peer) > 1e-3
  rewards = peer()
  assert rewards.shape == (TINY.turns, TINY.users)
  assert simulator.run(TINY, 1) > 0
  assert "PyTorch" in capsys.readouterr().out
