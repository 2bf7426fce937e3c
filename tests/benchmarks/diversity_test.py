"""Figures of diversity against enumeration; runs that cannot be compared."""

import dataclasses
import itertools
import json

import numpy as np
import pytest

from benchmarks import diversity, runs
from rerank_rl import config as config_lib


def test_pass_at_is_the_chance_of_a_good_draw():
  good = np.array([[0, 1, 0, 1, 0, 0], [0] * 6, [1] * 6, [1, 0, 0, 0, 0, 0]])
  for tries in (1, 2, 4, 6):
    draws = list(itertools.combinations(range(6), tries))
    wanted = [np.mean([row[list(d)].any() for d in draws]) for row in good]
    np.testing.assert_allclose(
      diversity.pass_at(good.astype(bool), tries), wanted, atol=1e-12
    )


def test_slates_count_once_and_only_if_good():
  slates = np.array([[[1, 2], [2, 1], [1, 2], [3, 4]]] * 2)
  good = np.array([[1, 1, 1, 0], [0, 0, 0, 1]], bool)
  np.testing.assert_array_equal(diversity.distinct(slates, good), [2, 1])


def _leave(folder, **changes):
  config = dataclasses.replace(config_lib.Config(), **changes)
  folder.mkdir()
  text = json.dumps(dataclasses.asdict(config))
  (folder / "config.json").write_text(text)
  return str(folder)


def test_runs_that_cannot_be_compared_are_refused(tmp_path, monkeypatch):
  monkeypatch.setattr(runs.pipeline, "begin", _begun)
  monkeypatch.setattr(runs.pipeline, "learn", lambda setting: setting)
  monkeypatch.setattr(runs, "_artifacts", lambda workdir: workdir)
  one, two = _leave(tmp_path / "one"), _leave(tmp_path / "two", name="two")
  assert list(runs.several([one, two])) == [one, two]
  other = _leave(tmp_path / "other", seed=3)
  with pytest.raises(config_lib.ConfigError, match=r"config\.seed=3, unlike"):
    runs.several([one, other])
  with pytest.raises(config_lib.ConfigError, match=r"no config\.json"):
    runs.several([str(tmp_path)])
  with pytest.raises(config_lib.ConfigError, match="names no run"):
    runs.several([])


@dataclasses.dataclass(frozen=True)
class _Begun:
  config: config_lib.Config
  root: str


def _begun(config, root):
  return _Begun(config, root)
