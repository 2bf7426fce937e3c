"""What the world knows is made beside the stages, and kept by the run."""

import threading

import jax
import numpy as np

from rerank_rl.training import mesh, pipeline, systems
from tests.data import load_test


def test_bounds_are_made_by_a_thread_and_kept_by_who_asks(
  tmp_path, monkeypatch
):
  """Orbax mixes up what two threads save at a time."""
  makers = []

  def bounds_of(world, seed, impressions):
    makers.append(threading.current_thread())
    return {"optimum": np.asarray(impressions.slate)}

  monkeypatch.setattr(systems, "bounds_of", bounds_of)
  setting = pipeline.begin(
    load_test.WORLD, tmp_path, mesh.make(jax.devices()[:1])
  )
  making = systems.begin_bounds(setting, setting.world)
  assert making is not None
  making.result()
  assert not list(tmp_path.glob("bounds-*"))
  assert threading.current_thread() not in makers
  once = systems.bounds(setting, setting.world, making)
  np.testing.assert_array_equal(
    once["optimum"], setting.dataset.splits["test"].slate
  )
  # They are there now: nobody makes them again.
  assert systems.begin_bounds(setting, setting.world) is None
  again = systems.bounds(setting, setting.world)
  np.testing.assert_array_equal(again["optimum"], once["optimum"])
  assert len(makers) == 1
