"""Where an item goes whose semantic ID another item already has."""

import collections
from collections.abc import Iterator

import numpy as np


class Walk:
  """The tree of SIDs while items that collided look for a free leaf.

  Items are placed in rising order. `keys` (sorted) are SIDs wanted or taken
  at the start and `holders` who holds each: negative for taken, else the item
  that will come to it; a holder above the item at hand has not come yet.
  """

  def __init__(
    self, centroids: np.ndarray, keys: np.ndarray, holders: np.ndarray
  ):
    self._centroids = centroids
    self._levels, self._codes = centroids.shape[:2]
    self._keys, self._holders = keys, holders
    self._extra: set[int] = set()  # Keys given that nobody wanted.
    self._extra_under: collections.Counter = collections.Counter()
    self._full: set[tuple[int, int]] = set()  # (depth, prefix key).

  def place(
    self, item: int, vector: np.ndarray, encoded: np.ndarray
  ) -> tuple[np.ndarray, int | None]:
    """The SID for `item`, and the later item that wanted it, if any."""
    for sid in self._prefixes(item, vector, encoded, ()):
      prefix = self._key(sid)
      order = self._order(vector, sid, encoded)
      keys = prefix * self._codes + order
      at = np.searchsorted(self._keys, keys)
      at = np.minimum(at, len(self._keys) - 1)
      known = self._keys[at] == keys
      free = np.flatnonzero(~known | (self._holders[at] > item))
      for i in free:
        key = int(keys[i])
        if key in self._extra:
          continue
        loser = None
        if known[i]:
          loser = int(self._holders[at[i]])
          self._holders[at[i]] = item
        else:
          self._add_extra(key)
        return np.asarray([*sid, order[i]], np.int32), loser
    raise ValueError(f"Item {item} finds no free semantic ID; none is left.")

  def _prefixes(
    self,
    item: int,
    vector: np.ndarray,
    encoded: np.ndarray,
    sid: tuple[int, ...],
  ) -> Iterator[tuple[int, ...]]:
    """Prefixes of L - 1 codes that have room, the encoded one first."""
    if self._is_full(item, sid):
      return
    if len(sid) == self._levels - 1:
      yield sid
      return
    for code in self._order(vector, sid, encoded):
      yield from self._prefixes(item, vector, encoded, (*sid, int(code)))

  def _order(
    self, vector: np.ndarray, sid: tuple[int, ...], encoded: np.ndarray
  ) -> np.ndarray:
    """Codes after prefix `sid`, nearest first; on the encoded path its own."""
    level = len(sid)
    chosen = self._centroids[np.arange(level), list(sid)]
    residual = vector - chosen.sum(axis=0)
    gap = np.square(self._centroids[level] - residual[None]).sum(axis=1)
    if np.array_equal(sid, encoded[:level]):
      gap[encoded[level]] = -1.0
    return np.argsort(gap, kind="stable")

  def _is_full(self, item: int, sid: tuple[int, ...]) -> bool:
    """Whether every leaf under `sid` is held; once full, always full."""
    depth, prefix = len(sid), self._key(sid)
    if (depth, prefix) in self._full:
      return True
    leaves = self._codes ** (self._levels - depth)
    bounds = [prefix * leaves, (prefix + 1) * leaves - 1]
    low = np.searchsorted(self._keys, bounds[0], side="left")
    high = np.searchsorted(self._keys, bounds[1], side="right")
    extra = self._extra_under[depth, prefix]
    if high - low + extra < leaves:  # The bound that settles most cases.
      return False
    held = int((self._holders[low:high] <= item).sum()) + extra
    if held == leaves:
      self._full.add((depth, prefix))
    return held == leaves

  def _add_extra(self, key: int) -> None:
    self._extra.add(key)
    for depth in range(self._levels - 1, -1, -1):
      key //= self._codes
      self._extra_under[depth, key] += 1

  def _key(self, sid: tuple[int, ...]) -> int:
    key = 0
    for code in sid:
      key = key * self._codes + int(code)
    return key
