"""Sessions with learnt users, in user-steps a second.

python -m benchmarks.simulator. A step: a user is offered candidates, gets the
ranker's best six, answers as a response model says (d = 64, two layers, 50
clicks, 5,000 items), and his clicks are read. rerank_rl reads on, its users
spread over the devices, of which each core is one; the peer is what one would
write in PyTorch: batched over all cores, and the last 50 clicks read anew in
every turn. Both have the same parameters, users and offers, and answer the
first slates alike, which is checked.
"""

import os
import sys
from typing import NamedTuple

from absl import app, flags
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import common
from launch import errors
from rerank_rl.config import SessionConfig
from rerank_rl.data import sessions
from rerank_rl.models.response import ResponseModel
from rerank_rl.rl.agents import top
from rerank_rl.simulation import learnt, session
from rerank_rl.training import mesh as mesh_lib
from rerank_rl.types import Impression, Request

_USERS = flags.DEFINE_integer("users", 512, "Users who are met at a time.")

_MISSING = (
  "torch is not installed, so there is nothing to compare with: "
  "pip install -e '.[bench]'."
)


class Sizes(NamedTuple):
  """Of users, catalogue and model; letters as in `rerank_rl.types`."""

  users: int = 512
  turns: int = 20
  dim: int = 64
  history: int = 50
  slots: int = 6
  candidates: int = 50
  items: int = 5000
  features: int = 32


def users(sizes: Sizes, seed: int = 0) -> tuple[learnt.Learnt, Impression]:
  """A response model with random parameters, and users with full histories."""
  random = np.random.default_rng(seed)
  B, K, N = sizes.users, sizes.slots, sizes.candidates
  draw = lambda *shape: jnp.asarray(random.normal(size=shape), jnp.float32)
  request = Request(
    user=draw(B, 16),
    history=jnp.asarray(
      random.integers(0, sizes.items, (B, sizes.history)), jnp.int32
    ),
    candidates=jnp.zeros((B, N), jnp.int32),
    scores=jnp.zeros((B, N)),
    size=jnp.full(B, K, jnp.int32),
  )
  slate = jnp.zeros((B, K), jnp.int32)
  start = Impression(
    request, slate, jnp.zeros((B, K, 1)), jnp.ones((B, K)), jnp.zeros((B, 0))
  )
  features = draw(sizes.items, sizes.features)
  model = ResponseModel(K, 1, sizes.history, sizes.dim)
  few = jax.tree.map(lambda x: x[:2], request)
  params = model.init(jax.random.key(seed), features, few, slate[:2, None])[
    "params"
  ]
  offers = sessions.offered(np.ones(sizes.items), sizes.turns, N)
  law = learnt.law_of(
    model,
    params,
    features,
    draw(sizes.items, 32),
    scale=jnp.ones(1),
    shift=jnp.zeros(1),
    offers=jnp.asarray(offers),
    ranker=None,
    topics=None,
    config=SessionConfig(turns=sizes.turns),
    weights=(1.0,),
  )
  return law, start


def ours(law: learnt.Learnt, start: Impression, sizes: Sizes):
  """A function key -> the sessions' rewards f32[turns, B]."""
  act = lambda request, key: (top(request, request.scores, sizes.slots), ())

  @jax.jit
  def play(law, start, key):
    environment = learnt.learnt(law)
    played = session.play(environment, act, start, key, sizes.turns)
    return played.per_item.sum(-1)

  return lambda key: play(law, start, key)


class Peer:
  """The same environment and model, written straight down in PyTorch."""

  def __init__(self, law: learnt.Learnt, start: Impression, sizes: Sizes):
    import torch

    self._torch, self._sizes, self._config = torch, sizes, law.config
    tensor = lambda x: torch.from_numpy(np.array(x))
    self._params = jax.tree.map(tensor, law.params)
    self._table, self._vectors = tensor(law.table), tensor(law.vectors)
    self._offers = tensor(law.offers).long()
    self._user = tensor(start.request.user)
    self._history = tensor(start.request.history).long()
    place = torch.arange(sizes.history)
    ago = (place[:, None] - place[None]).float()
    slope = torch.nn.functional.softplus(self._params["slope"])
    bias = -slope[:, :, None, None] * ago
    self._bias = bias.masked_fill(ago < 0, -1e9)
    fade = learnt.FADING ** torch.arange(sizes.history - 1, -1, -1)
    self._fade = fade.float()

  def _dense(self, x, params):
    return x @ params["kernel"] + params["bias"]

  def _norm(self, x, params):
    function = self._torch.nn.functional.layer_norm
    return function(x, x.shape[-1:], params["scale"], params["bias"], 1e-6)

  def _read(self, history):
    """The users' states after histories i64[B, H], read whole."""
    functional = self._torch.nn.functional
    x = self._table[history]
    B, H, d = x.shape
    for i, bias in enumerate(self._bias):
      own = self._params[f"block_{i}"]
      parts = self._dense(self._norm(x, own["norm_attention"]), own["qkv"])
      heads = bias.shape[0]
      parts = parts.view(B, H, 3, heads, d // heads).permute(2, 0, 3, 1, 4)
      mixed = functional.scaled_dot_product_attention(*parts, attn_mask=bias)
      mixed = mixed.transpose(1, 2).reshape(B, H, d)
      x = x + self._dense(mixed, own["out"])
      up = self._dense(self._norm(x, own["norm_mlp"]), own["up"])
      up = functional.gelu(up, approximate="tanh")
      x = x + self._dense(up, own["down"])
    return self._norm(x[:, -1], self._params["norm"])

  def chances(self, history, shown):
    """P(click) f32[B, K] of the items shown i64[B, K]."""
    torch, answer = self._torch, self._params["answer"]
    user = self._dense(self._user, self._params["profile"])
    both = (self._read(history) + user)[:, None] + self._params["place"]
    items = self._table[shown]
    number = torch.arange(items.shape[1])[:, None].clamp(min=1)
    above = (items.cumsum(1) - items) / number
    last = torch.nn.functional.pad(items, (0, 0, 1, 0))[:, :-1]
    parts = [both, items, both * items, above, items * above, items * last]
    x = torch.cat(parts, -1)
    x = self._dense(x, answer["Dense_0"])
    x = torch.nn.functional.gelu(x, approximate="tanh")
    return torch.sigmoid(self._dense(x, answer["Dense_1"])[..., 0])

  def __call__(self):
    """The sessions' rewards f32[turns, B]."""
    torch, sizes, config = self._torch, self._sizes, self._config
    B, K = sizes.users, sizes.slots
    history = self._history
    patience = torch.full((B,), config.patience)
    way = torch.randint(len(self._offers), (B,))
    turn = torch.zeros(B, dtype=torch.long)
    pleasure = torch.zeros(B)
    rewards = []
    with torch.inference_mode():
      for _ in range(sizes.turns):
        offered = self._offers[way, turn]
        taste = (self._vectors[history] * self._fade[:, None]).sum(1)
        scores = (self._vectors[offered] @ taste[..., None])[..., 0]
        shown = offered.gather(1, scores.topk(K).indices)
        chance = self.chances(history, shown)
        clicked = torch.rand(B, K) < chance
        rewards.append((clicked.float() - config.cost * ~clicked).mean(1))
        both = torch.cat([history, shown.masked_fill(~clicked, -1)], 1)
        order = torch.argsort((both >= 0).int(), dim=1, stable=True)
        after = both.gather(1, order)[:, K:]
        lost = config.impatience * (1 - clicked.float().mean(1))
        patience = patience - 1 - lost
        pleasure += (clicked.float().mean(1) - pleasure) / (turn + 1)
        chance = config.habit + (1 - config.habit) * config.fondness * pleasure
        days = (torch.rand(B).log() / torch.log1p(-chance)).ceil()
        left = torch.where(patience < 1, days, 0) > 0
        history = torch.where(left[:, None], self._history, after)
        patience = patience.masked_fill(left, config.patience)
        pleasure = pleasure.masked_fill(left, 0)
        way = torch.where(left, torch.randint(len(self._offers), (B,)), way)
        turn = (turn + 1).masked_fill(left, 0)
    return torch.stack(rewards).numpy()


def disagreement(law: learnt.Learnt, start: Impression, peer: Peer) -> float:
  """The largest gap of P(click) of the two, for the first slates."""
  request, K = start.request, law.model.slots
  shown = np.array(request.history[:, :K])  # Any items will do.
  memory = law.ask(
    "extend",
    law.ask("blank", len(shown)),
    law.table[request.history],
    request.history >= 0,
  )
  logits = law.ask(
    "respond",
    memory.state,
    law.ask("who", request.user),
    law.table[shown][:, None],
  )[:, 0]
  torch = peer._torch
  own = peer.chances(peer._history, torch.from_numpy(shown).long())
  return float(np.abs(jax.nn.sigmoid(logits[..., 0]) - own.numpy()).max())


def run(sizes: Sizes, pairs: int) -> float:
  """Prints the table; returns our user-steps a second over the peer's."""
  law, start = users(sizes)
  keys = iter(jax.random.split(jax.random.key(0), pairs + 1))
  mesh = mesh_lib.make()
  play = ours(
    jax.device_put(law, mesh_lib.replicated(mesh)),
    mesh_lib.put_batch(mesh, start),
    sizes,
  )
  systems = {"rerank_rl": lambda: play(next(keys))}
  try:
    peer = Peer(law, start, sizes)
    gap = disagreement(law, start, peer)
    if not gap < 1e-4:
      raise ValueError(f"the two differ by {gap} in P(click); nothing timed.")
    systems["PyTorch"] = peer
    missing = False
  except ImportError:
    missing = True
  times = common.paired(*systems.values(), pairs=pairs)
  rates = sizes.users * sizes.turns / times
  rows = [
    (name, f"{np.median(rate):,.0f}", f"{common.ratio(rates[:, 0], rate):.1f}")
    for name, rate in zip(systems, rates.T, strict=True)
  ]
  columns = ("system", "user-steps/s", "rerank_rl is x times")
  common.show(f"Sessions with learnt users ({sizes})", columns, rows)
  if missing:
    sys.exit(_MISSING)
  return common.ratio(rates[:, 0], rates[:, 1])


def main() -> None:
  """A device for each core: operations alone leave cores idle."""
  jax.config.update("jax_num_cpu_devices", os.cpu_count() or 1)
  run(Sizes(users=_USERS.value), common.pairs())


if __name__ == "__main__":
  errors.run(app, main)
