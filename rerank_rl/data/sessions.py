"""Users with whom sessions begin, and the catalogue that they meet."""

from collections.abc import Callable, Mapping
import dataclasses
from types import MappingProxyType
from typing import Any

import numpy as np

from rerank_rl.config import Config
from rerank_rl.data import synthetic
from rerank_rl.data.schema import SPLITS
from rerank_rl.world import trust


@dataclasses.dataclass(frozen=True)
class Sessions:
  """A catalogue, and the users of each split.

  Attributes:
    name: what reports call it.
    item_ids: [M], distinct.
    features: f32[M, F], observed item features.
    vectors: f32[M, E], what the tokenizer quantises.
    splits: "train", "valid", "test" -> rows that sessions begin with; what
      they are is the environment's to know.
    warm: bool[M], whether training may see the item.
    history: H of a request.
    candidates: N of a request.
    slate_size: K.
  """

  name: str
  item_ids: np.ndarray
  features: np.ndarray
  vectors: np.ndarray
  splits: Mapping[str, Any]
  warm: np.ndarray
  history: int
  candidates: int
  slate_size: int


def of_world(config: Config) -> Sessions:
  """Users of the synthetic world: the rows of its log, who liked what."""
  data = synthetic.load(config)
  sizes = config.world
  return Sessions(
    name="world",
    item_ids=data.item_ids,
    features=data.features,
    vectors=data.vectors,
    splits=data.splits,
    warm=data.warm,
    history=sizes.history_size,
    candidates=sizes.num_candidates,
    slate_size=sizes.slate_size,
  )


def of_trust(config: Config) -> Sessions:
  """Users of the world of trust: as many start at each of its levels."""
  features = trust.features(trust.build(synthetic.seed_of(config)))
  sizes = config.world
  counts = (sizes.num_train, sizes.num_valid, sizes.num_test)
  level = lambda count: np.arange(count, dtype=np.int32) % trust.LEVELS
  return Sessions(
    name="trust",
    item_ids=np.arange(trust.ITEMS),
    features=features,
    vectors=features,
    splits=dict(zip(SPLITS, map(level, counts), strict=True)),
    warm=np.ones(trust.ITEMS, bool),
    history=1,
    candidates=trust.ITEMS,
    slate_size=trust.SLOTS,
  )


SESSIONS: Mapping[str, Callable[[Config], Sessions]] = MappingProxyType(
  {"world": of_world, "trust": of_trust}
)
