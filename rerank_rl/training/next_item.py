"""What the next-item task's stages share: the data, the policy, its lists."""

from collections.abc import Callable
import dataclasses
import functools
import pathlib
from typing import Any

import jax
import numpy as np

from rerank_rl.config import Config
from rerank_rl.data import load, schema
from rerank_rl.data.sequences import Sequences, Windows
from rerank_rl.decoding import catalogue as catalogues
from rerank_rl.decoding import next_item as decoding
from rerank_rl.evaluation import next_item as judges
from rerank_rl.models import item_to_item
from rerank_rl.models import next_item as models
from rerank_rl.training.setting import CHUNK, Run, by_chunks, local, opened
from rerank_rl.types import PAD, Array

WATCHED = 5000  # Validation users whom selection asks.


@dataclasses.dataclass(frozen=True, kw_only=True)
class NextItem(Run):
  """A run on sequences.

  Attributes:
    dataset: the data.
    catalogue: its `sids` are published or the tokenizer's.
    follows: f32[M, M], the evaluator (`models.item_to_item`), after
      `evaluators`.
  """

  dataset: Sequences
  follows: Array | None = None

  @functools.cached_property
  def tree(self) -> catalogues.Tree:
    """The catalogue as a tree, after its semantic IDs are known."""
    return catalogues.build(self.catalogue.sids)

  @property
  def member(self) -> models.NextItemPolicy:
    """One of those that the policy consists of."""
    sids = self.catalogue.sids
    sizes = models.Sizes(
      self.tree.code.size, sids.shape[1], int(sids.max()) + 1
    )
    config = self.config
    return models.make_member(config.policy, config.next_item, sizes)

  @property
  def policy(self) -> models.NextItemPolicy:
    """The configured policy."""
    return models.ensemble(self.member, self.config.next_item.members)


def start(config: Config, root: pathlib.Path, mesh=None) -> NextItem:
  """Loads the sequences and opens a run.

  Args:
    config: the run's.
    root: folder of the stages' artifacts.
    mesh: devices; None = all.

  Returns:
    A NextItem without artifacts.
  """
  loader = load.SEQUENCES[config.data.name]
  setting = opened(NextItem, loader, config, root, mesh, lambda data: data.sids)
  # Sequences are cut to the history's length when they are loaded.
  data = setting.identity["data"], config.protocol, config.next_item.history
  return setting.identified("data", *data)


# Jitted once a module, or every stage would compile anew.
@functools.partial(jax.jit, static_argnums=0)
def _listed(policy, params, tree, windows, key):
  state = policy.encode(params, tree, windows.item, windows.place)[:, -1]
  args = (policy, params, tree, state, judges.LISTED, key)
  return decoding.beam(*args)[0]


def ranker(setting: NextItem) -> Callable[[Any, Windows], np.ndarray]:
  """(params, windows) -> i32[n, LISTED], items by constrained beam search.

  Equal scores are put in an order drawn from the run's seed.
  """
  policy, key = setting.policy, setting.key("ties")

  def rank(params: Any, windows: Windows) -> np.ndarray:
    params = local(params)
    return by_chunks(
      lambda w: _listed(policy, params, setting.tree, w, key),
      CHUNK,
      windows,
    )

  return rank


@functools.partial(jax.jit, static_argnames="decay")
def _following(matrix, windows, decay):
  score = item_to_item.scores(matrix, windows, decay)
  return jax.lax.top_k(score, min(judges.LISTED, score.shape[1]))[1]


def following(setting: NextItem, windows: Windows) -> np.ndarray:
  """The evaluator's own lists, i32[n, LISTED], PAD where there are fewer."""
  matrix, decay = setting.follows, setting.config.item_to_item.decay
  top = by_chunks(lambda w: _following(matrix, w, decay), CHUNK, windows)
  short = ((0, 0), (0, judges.LISTED - top.shape[1]))
  return np.pad(top, short, constant_values=PAD)


def popularity(setting: NextItem, windows: Windows) -> np.ndarray:
  """The items that most often came next in training, the same for all users.

  Returns:
    i32[n, LISTED], ties in random order, PAD where there are fewer items.
  """
  target = setting.dataset.splits["train"].target
  count = np.bincount(
    target[target != PAD], minlength=len(setting.dataset.item_ids)
  )
  mixed = np.random.default_rng(setting.config.seed).permutation(count.size)
  top = mixed[np.argsort(-count[mixed], kind="stable")][: judges.LISTED]
  row = np.pad(top, (0, judges.LISTED - top.size), constant_values=PAD)
  return np.tile(row.astype(np.int32), (schema.num_rows(windows), 1))


def selection(setting: NextItem) -> tuple[Callable, tuple[str, bool]]:
  """(evaluate, select) for `loop.fit`: NDCG@10 on validation.

  Of at most `WATCHED` users, evenly spaced.
  """
  valid, rank = setting.dataset.splits["valid"], ranker(setting)
  count = schema.num_rows(valid)
  rows = np.linspace(0, count - 1, min(count, WATCHED)).astype(np.int64)
  valid = schema.take(valid, rows)

  def evaluate(params: Any) -> dict[str, float]:
    worth = judges.worth(rank(params, valid), valid.target[:, -1])
    return {name: float(value.mean()) for name, value in worth.items()}

  return evaluate, (judges.SELECT, True)
