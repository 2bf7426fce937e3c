"""Group rollouts against Hugging Face's `generate`, and against the limit.

python -m benchmarks.decode [--large]: the same slates a request, prompts of
the same length, the same trie of candidates, no item twice.
"""

import sys

from absl import app
import jax
import numpy as np

from benchmarks import common
from launch import errors
from rerank_rl.decoding import sample

_MISSING = (
  "torch or transformers is not installed, so there is nothing to compare"
  " with: pip install -e '.[bench]'."
)


def legal(slates: np.ndarray, candidates: int) -> bool:
  """Whether i32[X, K] positions are candidates and none comes twice."""
  inside = (slates >= 0) & (slates < candidates)
  ordered = np.sort(slates, axis=1)
  return bool(inside.all() and (ordered[:, 1:] > ordered[:, :-1]).all())


def ours(problem: common.Problem, group: int):
  """A function key -> slates i32[B * G, K], prompt included."""
  policy, params, catalogue, request = problem

  # The request is an argument: a constant's trie would be built beforehand.
  @jax.jit
  def draw(params, request, key):
    game = sample.prepare(policy, params, catalogue, request)
    out = sample.chains(policy, params, game, key, group)
    return out.slate.reshape(-1, policy.slots)

  return lambda key: draw(params, request, key)


class Peer:
  """GPT-2 with random weights behind `generate`."""

  def __init__(self, setting: common.Setting, sids: np.ndarray):
    """sids i32[B, N, L]: the candidates' semantic IDs."""
    import torch
    import transformers

    data = setting.data
    self._torch, self._data, self._group = torch, data, setting.group
    self._prompt = data.history + data.candidates + 2
    words = data.levels * data.codes
    self._model = transformers.GPT2LMHeadModel(
      transformers.GPT2Config(
        vocab_size=words + 1,  # The last one is padding, never seen.
        n_positions=self._prompt + data.slots * data.levels,
        n_embd=setting.dim,
        n_layer=setting.layers,
        n_head=setting.heads,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=words,
      )
    ).eval()
    # A token of level l is l * V + code. Prefix -> next token -> items.
    tokens = sids + np.arange(data.levels) * data.codes
    self._tries = []
    for request in tokens.tolist():
      trie: dict = {}
      for item, path in enumerate(request):
        for i, token in enumerate(path):
          below = trie.setdefault(tuple(path[:i]), {})
          below.setdefault(token, set()).add(item)
      self._tries.append(trie)
    self._items = [
      {tuple(path): i for i, path in enumerate(r)} for r in tokens.tolist()
    ]
    shape = (setting.requests, self._prompt)
    self._inputs = torch.randint(0, words, shape)

  def _allowed(self, row, sequence):
    """Next tokens under which an item is left."""
    request, L = row // self._group, self._data.levels
    tokens = sequence.tolist()[self._prompt :]
    done = len(tokens) // L * L
    items = self._items[request]
    used = {items[tuple(tokens[i : i + L])] for i in range(0, done, L)}
    below = self._tries[request][tuple(tokens[done:])]
    return [token for token, left in below.items() if not left <= used]

  def __call__(self) -> np.ndarray:
    """Slates i32[B * G, K]."""
    K, L = self._data.slots, self._data.levels
    out = self._model.generate(
      self._inputs,
      attention_mask=self._torch.ones_like(self._inputs),
      do_sample=True,
      top_k=0,
      num_return_sequences=self._group,
      min_new_tokens=K * L,
      max_new_tokens=K * L,
      prefix_allowed_tokens_fn=self._allowed,
    )
    paths = out[:, self._prompt :].reshape(-1, K, L).tolist()
    return np.array(
      [
        [self._items[row // self._group].get(tuple(p), -1) for p in slate]
        for row, slate in enumerate(paths)
      ]
    )


def needed_flops(problem: common.Problem, group: int) -> float:
  """FLOPs of one call: the prompt once, the G slates' tokens once.

  Teacher forcing has the sampler's matrix products without its loop, of
  which XLA would count one round.
  """
  policy, params, catalogue, request = problem
  B = request.candidates.shape[0]
  ranks = np.zeros((B, group, policy.slots), np.int32)

  def forward(params):
    game = sample.prepare(policy, params, catalogue, request)
    return policy.score(params, game.prompt, ranks)

  return common.flops(forward, params)


def run(setting: common.Setting, pairs: int) -> float | None:
  """Prints the table; returns our slates/s over the peer's."""
  problem = common.problem(setting)
  count = setting.requests * setting.group
  keys = iter(jax.random.split(jax.random.key(0), pairs + 2))
  draw = ours(problem, setting.group)
  systems = {"rerank_rl": lambda: draw(next(keys))}
  try:
    sids = np.asarray(problem.policy.codes(problem.catalogue, problem.request))
    systems["transformers generate"] = Peer(setting, sids)
    missing = False
  except ImportError:
    missing = True
  for name, system in systems.items():
    if not legal(np.asarray(system()), setting.data.candidates):
      raise ValueError(f"{name} made an illegal slate; nothing was timed.")
  times = common.paired(*systems.values(), pairs=pairs)
  limit = common.peak() / (needed_flops(problem, setting.group) / count)
  rates = count / times
  rows = [
    (
      name,
      f"{np.median(rate):,.0f}",
      f"{common.ratio(rates[:, 0], rate):.1f}",
      f"{np.median(rate) / limit:.1%}",
    )
    for name, rate in zip(systems, rates.T)
  ]
  rows.append(("f32 matrix peak", f"{limit:,.0f}", "", "100.0%"))
  columns = ("system", "slates/s", "rerank_rl is x times", "of the peak")
  common.show(f"Group rollouts ({setting})", columns, rows)
  if missing:
    sys.exit(_MISSING)
  return common.ratio(rates[:, 0], rates[:, 1])


if __name__ == "__main__":
  errors.run(app, lambda: common.main(run))
