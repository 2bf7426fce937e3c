"""Which system of a run is exported, and which runs have none."""

import pytest

from configs import degre, glorank_rl, glorank_sft, hsrl, tiger
from configs.baselines import prm
from rerank_rl.config import ConfigError
from rerank_rl.export import run
from tests import toys


@pytest.mark.parametrize(
  ("get_config", "variant", "system"),
  [
    (glorank_rl.get_config, "", "glorank_rl"),
    (glorank_sft.get_config, "", "glorank_sft"),
    (degre.get_config, "", "degre"),
    # Distilled after a clone of the log.
    (degre.get_config, "preference", "degre"),
  ],
)
def test_what_the_last_stage_left_is_exported(get_config, variant, system):
  assert run.exported(toys.frozen(get_config(variant), {})) == system


@pytest.mark.parametrize("module", [prm, hsrl, tiger])
def test_runs_that_rerank_by_no_token_policy_are_refused(module):
  config = toys.frozen(module.get_config(""), {})
  with pytest.raises(ConfigError, match=f"'{config.name}'.*no token policy"):
    run.exported(config)
