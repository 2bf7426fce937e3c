"""Stage `tokenizer`: item vectors -> a codebook and semantic IDs."""

import dataclasses
import json

from absl import logging
import jax
import jax.numpy as jnp

from rerank_rl.tokenizer import residual_kmeans, semantic_ids
from rerank_rl.training.setting import AnyRun, expected


def run(setting: AnyRun) -> AnyRun:
  """Fits on items seen in training; the others get IDs without a refit.

  Args:
    setting: with data.

  Returns:
    With `catalogue.sids`.
  """
  config = setting.config.tokenizer
  setting = setting.identified("tokenizer", setting.identity["data"], config)
  path = setting.folder("tokenizer") / "tokenizer.npz"
  if not expected(setting, "tokenizer", path.exists()):
    vectors, warm = setting.dataset.vectors, setting.dataset.warm
    codebook = residual_kmeans.fit(
      setting.key("tokenizer"),
      jnp.asarray(vectors[warm]),
      config.levels,
      config.codes,
      config.iterations,
      config.balanced,
    )
    sids = semantic_ids.assign(codebook, vectors)
    report = json.dumps(semantic_ids.report(codebook, vectors, sids))
    logging.info("tokenizer: %s", report)
    path.parent.mkdir(parents=True, exist_ok=True)
    if jax.process_index() == 0:
      path.with_name("report.json").write_text(report + "\n", encoding="utf-8")
      semantic_ids.save(path, codebook, sids)
  else:
    _, sids = semantic_ids.load(path)
  catalogue = setting.catalogue.replace(sids=jnp.asarray(sids))
  return dataclasses.replace(setting, catalogue=catalogue)
