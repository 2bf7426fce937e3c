"""The stage `supervised`: it learns what is clicked, and looks no further."""

import jax
import numpy as np
import pytest

from benchmarks import sessions as benchmark
from configs import supervised
from rerank_rl.config import ConfigError
from rerank_rl.decoding import sample
from rerank_rl.training import session as sessions
from rerank_rl.training import session_pipeline
from rerank_rl.training.stages import supervised as stage
from rerank_rl.training.stages import tokenize
from tests import toys


def _config(variant, changes):
  return toys.frozen(supervised.get_config(variant), changes)


def test_it_is_as_good_as_greed_for_clicks(tmp_path):
  """Where greed has half of the optimum; a tenth of the config's steps."""
  fewer = {
    "rl_train.steps": 50,
    "rl_train.eval_every": 50,
    "rl_train.warmup_steps": 5,
    "policy.dim": 16,
  }
  setting = toys.begun(_config("trust", fewer), tmp_path)
  found = benchmark.greedy_shares(session_pipeline.learn(setting))
  assert found["myopic"] < 0.7
  assert abs(found["greedy"] - found["myopic"]) < 0.03


def test_each_item_shown_is_a_label_under_what_stands_above_it(tmp_path):
  setting = tokenize.run(toys.begun(_config("", toys.SESSIONS), tmp_path))
  policy, catalogue = setting.policy, setting.catalogue
  request, law = sessions.example(setting), setting.environment("train")
  params = jax.jit(policy.init)(jax.random.key(0), catalogue, request)
  start = jax.tree.map(lambda x: x[:4], setting.dataset.splits["train"])
  play = jax.jit(sessions.play, static_argnums=(0, 1))
  key = jax.random.key(1)
  played = play(policy, 3, params, catalogue, law, start, key)
  loss = jax.jit(stage.cross_entropy, static_argnums=0)
  found = loss(policy, params, catalogue, played)

  @jax.jit
  def logits_of(params, request, shown):
    """Of all candidates at every slot: f32[B, K, N], and ranks shown."""
    game = sample.prepare(policy, params, catalogue, request)
    ranks = sample.ranks_of(game.trie, shown)
    states = policy.states(params, game.prompt, ranks)[:, 0, :, 0]
    return policy.logits(params, game.prompt, states, 0), ranks[:, 0]

  total, clicks = 0.0, 0
  for turn in range(3):
    request, shown, said = jax.tree.map(
      lambda x, t=turn: x[t],
      (played.request, played.record.slate, played.answer.clicked),
    )
    logits, ranks, said = jax.device_get(
      (*logits_of(params, request, shown), said)
    )
    for user, slot in np.ndindex(said.shape):
      logit = logits[user, slot, ranks[user, slot]]
      clicked = bool(said[user, slot])
      total += np.log1p(np.exp(-logit if clicked else logit))
      clicks += clicked
  assert found[1] == 3 * 4 * policy.slots and 0 < clicks < found[1]
  np.testing.assert_allclose(found[0], total, rtol=1e-5)


def test_heads_without_one_score_an_item_are_refused():
  with pytest.raises(ConfigError, match=r"config.policy.head='global'"):
    session_pipeline.check(_config("", {"policy.head": "global"}))
