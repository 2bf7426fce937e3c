import dataclasses
import json

import pytest

from rerank_rl.config import Config, ConfigError
from rerank_rl.export import run


def test_runs_that_cannot_be_exported_are_refused(tmp_path):
  refused = lambda text: pytest.raises(ConfigError, match=text)
  with refused("config.json is missing"):
    run.finished(tmp_path, tmp_path)
  config = dataclasses.asdict(Config())
  (tmp_path / "config.json").write_text(json.dumps(config))
  with refused("report.json is missing"):
    run.finished(tmp_path, tmp_path)
  (tmp_path / "report.json").write_text("{}")
  with refused("no artifact of stage 'tokenizer'"):
    run.finished(tmp_path, tmp_path)
  for stage in Config().stages:
    (tmp_path / f"{stage}-0123").mkdir()
  assert run.finished(tmp_path, tmp_path) == Config()
  config |= {"name": "prm", "stages": ["tokenizer", "ranker"]}
  (tmp_path / "config.json").write_text(json.dumps(config))
  with refused("'prm'.* no token policy"):
    run.finished(tmp_path, tmp_path)
