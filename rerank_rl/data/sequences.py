"""Sequences of items: what the next-item task learns from, leave-one-out.

A user's last item is test, the one before validation, the others train.
"""

from collections.abc import Mapping
import dataclasses
from typing import NamedTuple

from flax import struct
import numpy as np

from rerank_rl.config import Config, ConfigError
from rerank_rl.data import slates
from rerank_rl.data.schema import SPLITS
from rerank_rl.types import PAD, Array

LEAST = 3  # Items of a user: one to read, one to validate, one to test.


class Windows(struct.PyTreeNode):
  """Rows of at most H items, each with the item that followed it.

  A row may hold several sequences, one after the other; a new one begins
  wherever `place` is 0.

  Attributes:
    item: i32[n, H], catalogue rows; PAD before or after the sequences.
    place: i32[n, H], each item's number in its sequence, from 0; PAD.
    target: i32[n, H], the item that followed; PAD where it is not asked.
  """

  item: Array
  place: Array
  target: Array


class Events(NamedTuple):
  """What each user met.

  Attributes:
    item: i32[events], catalogue rows, user by user, oldest first.
    first: i64[users + 1], where each user's events begin; the last is where
      all end.
  """

  item: np.ndarray
  first: np.ndarray


@dataclasses.dataclass(frozen=True)
class Sequences:
  """A catalogue, and leave-one-out splits of what users met.

  Attributes:
    name: what reports call it.
    item_ids: [M], the owner's item identifiers, distinct.
    features: f32[M, F], observed item features; F may be 0.
    vectors: f32[M, E], what the tokenizer quantises; E = 0 where `sids` are
      published.
    sids: i32[M, L], published semantic IDs, distinct, or None.
    splits: "train" -> packed Windows; "valid", "test" -> one row a user.
  """

  name: str
  item_ids: np.ndarray
  features: np.ndarray
  vectors: np.ndarray
  sids: np.ndarray | None
  splits: Mapping[str, Windows]

  @property
  def warm(self) -> np.ndarray:
    """bool[M]: the items that training may see."""
    train = self.splits["train"]
    warm = np.zeros(len(self.item_ids), bool)
    for column in (train.item, train.target):
      warm[column[column != PAD]] = True
    return warm


def assemble(
  config: Config,
  events: Events,
  item_ids: np.ndarray,
  *,
  features: np.ndarray,
  vectors: np.ndarray,
  sids: np.ndarray | None = None,
) -> Sequences:
  """Checks an adapter's events and splits them.

  Args:
    config: `data.name`, `data.max_rows` (users) and `next_item.history`.
    events: of all users.
    item_ids: [M].
    features: f32[M, F].
    vectors: f32[M, E].
    sids: i32[M, L] or None.

  Returns:
    Sequences.

  Raises:
    ConfigError: a user with fewer than three items, an item that is not in
      the catalogue, nothing to train on.
  """
  name, counts = config.data.name, np.diff(events.first)
  if not counts.size or counts.min() < LEAST:
    user = int(np.argmin(counts)) if counts.size else 0
    raise ConfigError(
      f"config.data.name={name!r}: user number {user} has fewer than {LEAST} "
      "items; drop such users, leave-one-out needs as many."
    )
  if events.item.min() < 0 or events.item.max() >= len(item_ids):
    raise ConfigError(
      f"config.data.name={name!r}: an item lies outside the catalogue of "
      f"{len(item_ids)}; get the set's files anew, together."
    )
  if config.data.max_rows:
    events = thinned(events, config.data.max_rows)
  width = config.next_item.history
  splits = {"train": training(events, width)}
  splits |= {split: held_out(events, split, width) for split in SPLITS[1:]}
  return Sequences(name, item_ids, features, vectors, sids, splits)


def thinned(events: Events, most: int) -> Events:
  """Events of at most `most` users, evenly spaced."""
  counts = np.diff(events.first)
  keep = np.zeros(counts.size, bool)
  keep[np.linspace(0, counts.size - 1, min(counts.size, most)).astype(int)] = 1
  item = events.item[np.repeat(keep, counts)]
  return Events(item, np.r_[0, np.cumsum(counts[keep])])


def held_out(events: Events, split: str, width: int) -> Windows:
  """Each user's history and the held-out item, one row a user.

  Args:
    events: of all users.
    split: "valid" or "test".
    width: H, the latest items that are read.

  Returns:
    Windows i32[users, H], PAD before the oldest; the only target stands in
    the last column.
  """
  stop = events.first[1:] - (len(SPLITS) - SPLITS.index(split))
  item = slates.windows(events.item, events.first[:-1], stop, width)
  real = item != PAD
  place = np.where(real, np.cumsum(real, 1) - 1, PAD).astype(np.int32)
  target = np.full_like(item, PAD)
  target[:, -1] = events.item[stop]
  return Windows(item, place, target)


def training(events: Events, width: int) -> Windows:
  """All next items of the training part, packed into full rows.

  A user's training items are cut into pieces of at most H from the last one
  back; every item but a user's last has its successor as target. Pieces
  share rows, longest first, so that hardly any place is padding.

  Args:
    events: of all users.
    width: H.

  Returns:
    Windows i32[n, H], PAD after the last.

  Raises:
    ConfigError: no user has two training items.
  """
  begin, size = _pieces(events, width)
  row, column = _packed(size, width)
  place = _ranges(size)
  source = np.repeat(begin, size) + place
  at = (np.repeat(row, size), np.repeat(column, size) + place)
  shape = (int(row.max()) + 1, width)

  def laid(values):
    out = np.full(shape, PAD, np.int32)
    out[at] = values
    return out

  item = events.item
  return Windows(laid(item[source]), laid(place), laid(item[source + 1]))


def _pieces(events: Events, width: int) -> tuple[np.ndarray, np.ndarray]:
  """First event and number of targets of each piece, i64[pieces]."""
  pairs = np.diff(events.first) - LEAST  # Training items that have a successor.
  count = -(-pairs // width)
  if not count.sum():
    raise ConfigError(
      "No user has two items to train on; leave-one-out needs sequences of "
      "four items or more."
    )
  number = _ranges(count)
  begin = np.repeat(events.first[:-1], count)
  rest = np.repeat(pairs - (count - 1) * width, count)  # The first piece's.
  size = np.where(number == 0, rest, width)
  begin = begin + np.where(number == 0, 0, rest + (number - 1) * width)
  return begin, size


def _ranges(sizes: np.ndarray) -> np.ndarray:
  """0 .. size - 1 of each size, one after the other."""
  ends = np.cumsum(sizes)
  return np.arange(ends[-1]) - np.repeat(ends - sizes, sizes)


def _packed(size: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
  """Row and column of each piece: the fullest row that has room, if any."""
  row, column = np.empty_like(size), np.empty_like(size)
  rows = 0
  open_rows = [[] for _ in range(width + 1)]  # By the room that is left.
  for piece in np.argsort(-size, kind="stable"):
    need = int(size[piece])
    room = next((r for r in range(need, width) if open_rows[r]), width)
    if room == width:
      row[piece], rows = rows, rows + 1
    else:
      row[piece] = open_rows[room].pop()
    column[piece] = width - room
    open_rows[room - need].append(row[piece])
  return row, column
