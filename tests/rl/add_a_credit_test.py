"""docs/add_a_credit.md does what it says."""

import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rerank_rl import config as config_lib
from rerank_rl.decoding import tree as trees
from rerank_rl.rl import credit
from rerank_rl.training.stages import rl
from rerank_rl.types import Outcome

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "add_a_credit.md"


@pytest.fixture(name="blocks")
def fixture_blocks():
  blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
  assert len(blocks) == 4
  return blocks


@pytest.fixture(name="page")
def fixture_page(blocks, monkeypatch):
  """The page's first two steps, undone after the test."""
  equation, naming, _, config = blocks
  monkeypatch.setattr(rl, "CREDIT", dict(rl.CREDIT))
  monkeypatch.setattr(rl, "LEGAL", set(rl.LEGAL))
  spot = dict(vars(credit))
  exec(equation, spot)  # What the reader pastes, where they paste it.
  monkeypatch.setattr(
    credit, "leave_one_out", spot["leave_one_out"], raising=False
  )
  exec(naming, vars(rl))
  spot = {}
  exec(config, spot)
  return spot["get_config"]


def test_its_test_passes(page, blocks):
  B, G, T = 3, 4, 6
  token_key, reward_key = jax.random.split(jax.random.key(0))
  token = jax.random.randint(token_key, (B, G, T), 0, 5)
  logp = jnp.full((B, G, T), -1.0)
  slate = token[:, :, ::3]
  chains = trees.from_chains(token, logp, logp, slate, logp, True)
  reward = jax.random.normal(reward_key, (B, G))
  outcome = Outcome(reward, reward[..., None], jnp.zeros_like(reward))
  spot = {"credit": credit, "np": np}
  exec(blocks[2], spot)
  spot["test_leave_one_out_is_centred"](chains, outcome)


def test_its_config_is_legal(page):
  config = config_lib.freeze(page("smoke").to_dict())
  assert config.rl.credit == "leave_one_out"
  rl.check(config)


def test_without_the_page_it_is_refused():
  changed = config_lib.Config(rl=config_lib.RLConfig(credit="leave_one_out"))
  with pytest.raises(config_lib.ConfigError, match="leave_one_out"):
    rl.check(changed)
