"""From a finished run to its bundle."""

import json
import os
import pathlib
from typing import Any

import jax

from rerank_rl.config import Config, ConfigError, freeze
from rerank_rl.evaluation import report
from rerank_rl.export import bundle
from rerank_rl.tokenizer import semantic_ids
from rerank_rl.training import pipeline

_REQUESTS = 8  # Of the golden input.


def export_run(
  workdir: str | os.PathLike,
  artifacts: str | os.PathLike,
  out: str | os.PathLike,
) -> dict[str, Any]:
  """Exports the policy that a finished run's last stage left.

  Args:
    workdir: the run's folder.
    artifacts: where its stages' artifacts are.
    out: the bundle; absent or empty.

  Returns:
    The manifest.

  Raises:
    ValueError: `out` is taken, the run is not finished or has no policy.
  """
  bundle.check_absent(out)
  artifacts = pathlib.Path(artifacts)
  config = finished(pathlib.Path(workdir), artifacts)
  setting = pipeline.learn(pipeline.begin(config, artifacts))
  fitted = setting.folder("tokenizer") / "tokenizer.npz"
  test = setting.dataset.splits["test"].request
  system = config.name if "rl" in config.stages else config.sft_name
  return bundle.save(
    out,
    setting.policy,
    setting.params[system],
    setting.catalogue,
    setting.dataset.item_ids,
    semantic_ids.load(fitted)[0],
    config,
    jax.tree.map(lambda x: x[:_REQUESTS], test),
  )


def finished(workdir: pathlib.Path, artifacts: pathlib.Path) -> Config:
  """The configuration of a run that can be exported.

  Raises:
    ConfigError: the run is not finished, has no token policy, or its
      artifacts are elsewhere: exporting must not train it again.
  """
  for name in ("config.json", report.REPORT):
    if not (workdir / name).exists():
      raise ConfigError(
        f"{workdir / name} is missing; finish the run with launch.train first."
      )
  text = (workdir / "config.json").read_text(encoding="utf-8")
  config = freeze(json.loads(text))
  if "ranker" in config.stages or "sft" not in config.stages:
    raise ConfigError(
      f"{workdir} holds {config.name!r}, whose stages "
      f"{', '.join(config.stages)} leave no token policy; export a run that "
      "ends with the stage 'sft' or 'rl'."
    )
  for stage in config.stages:
    if not any(artifacts.glob(f"{stage}-*")):
      raise ConfigError(
        f"{artifacts} has no artifact of stage {stage!r}; give the run's own "
        "--artifacts."
      )
  return config
