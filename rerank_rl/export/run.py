"""From a finished run to its bundle."""

import os
import pathlib
from typing import Any, cast

import jax

from rerank_rl.config import Config, ConfigError
from rerank_rl.export import bundle
from rerank_rl.tokenizer import semantic_ids
from rerank_rl.training import pipeline, tasks
from rerank_rl.training.setting import Setting

_REQUESTS = 8  # Of the golden input.


def export_run(
  config: Config,
  artifacts: str | os.PathLike,
  out: str | os.PathLike,
) -> dict[str, Any]:
  """Exports the policy that a finished run's last stage left.

  Args:
    config: the finished run's, see `tasks.finished`.
    artifacts: where its stages' artifacts are.
    out: the bundle; absent or empty.

  Returns:
    The manifest.

  Raises:
    ValueError: `out` is taken, the run has no policy, or its artifacts are
      elsewhere: exporting must not train it again.
  """
  bundle.check_absent(out)
  system = exported(config)
  setting = cast(Setting, tasks.reload(config, pathlib.Path(artifacts)))
  fitted = setting.folder("tokenizer") / "tokenizer.npz"
  test = setting.dataset.splits["test"].request
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


def exported(config: Config) -> str:
  """The system that a run's last stage of a token policy left.

  Raises:
    ConfigError: the run leaves none that ranks candidates.
  """
  named = {"sft": config.sft_name, "distill": config.name, "rl": config.name}
  left = [named[stage] for stage in config.stages if stage in named]
  slates = tasks.of(config) is pipeline
  if not slates or not left or "ranker" in config.stages:
    raise ConfigError(
      f"config.name={config.name!r} has protocol={config.protocol!r} and "
      f"stages={config.stages}, which leave no token policy that reranks "
      "candidates; export a run that ends with the stage 'sft', 'distill' or "
      "'rl'."
    )
  return left[-1]
