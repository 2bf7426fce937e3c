"""From a log of single exposures to slates among candidates.

A public log says what was shown, not what might have been: six consecutive
exposures make the slate, and items that the user never met stand in for the
candidates that were not chosen.
"""

import numpy as np

from rerank_rl.types import PAD


def cut(
  user: np.ndarray, width: int, from_end: bool
) -> tuple[np.ndarray, np.ndarray]:
  """Cuts each user's events into consecutive blocks of `width`.

  Args:
    user: i64[E], sorted; the events of a user are contiguous, in time order.
    width: events of a block, K.
    from_end: whether the events that fill no block are the user's first
      (the last block ends with the last event) or the last.

  Returns:
    index: i64[n, K], events of each block.
    first: i64[n], the user's first event.
  """
  start = np.flatnonzero(np.r_[True, user[1:] != user[:-1]])
  count = np.diff(np.r_[start, user.size])
  blocks = count // width
  first = np.repeat(start, blocks)
  number = np.arange(first.size) - np.repeat(np.cumsum(blocks) - blocks, blocks)
  begin = first + number * width
  if from_end:
    begin = begin + np.repeat(count % width, blocks)
  return begin[:, None] + np.arange(width)[None], first


def windows(
  items: np.ndarray, first: np.ndarray, stop: np.ndarray, width: int
) -> np.ndarray:
  """The last `width` of items[first:stop] of each row, PAD before them.

  Args:
    items: i64[E].
    first: i64[n], where each row's items begin.
    stop: i64[n], where they end (exclusive), >= first.
    width: H.

  Returns:
    i32[n, H], oldest first.
  """
  index = stop[:, None] + np.arange(-width, 0)[None]
  real = index >= first[:, None]
  return np.where(real, items[np.where(real, index, 0)], PAD).astype(np.int32)


def draw_unmet(
  random: np.random.Generator,
  owner: np.ndarray,
  met: np.ndarray,
  mass: np.ndarray,
  count: int,
) -> np.ndarray:
  """Items that the row's user never met, without replacement.

  Draws one item after the other with probability proportional to `mass`
  among those that are neither met nor drawn (Plackett-Luce), by rejection.

  Args:
    random: the source of randomness.
    owner: i64[n], the row of `met` that belongs to each request.
    met: bool[users, M].
    mass: f64[M], positive.
    count: items a row.

  Returns:
    i32[n, count], distinct within a row, in the order of drawing.

  Raises:
    ValueError: a user met all but fewer than `count` items.
  """
  left = int(met.shape[1] - met.sum(1).max(initial=0))
  if left < count:
    raise ValueError(
      f"a user met all but {left} of {met.shape[1]} items, too few to draw "
      f"{count} unmet candidates; use a larger catalogue."
    )
  bounds = np.cumsum(mass) / np.sum(mass)
  bounds[-1] = 1.0
  result = np.empty((owner.size, count), np.int32)
  todo = np.arange(owner.size)
  drawn = np.empty((owner.size, 0), np.int32)
  while todo.size:
    more = random.random((todo.size, max(2 * count, drawn.shape[1])))
    fresh = np.searchsorted(bounds, more, side="right").astype(np.int32)
    fresh[met[owner[todo][:, None], fresh]] = PAD
    drawn = np.concatenate([drawn, fresh], 1)
    keep = _first_time(drawn)
    done = keep.sum(1) >= count
    chosen = keep[done] & (np.cumsum(keep[done], 1) <= count)
    result[todo[done]] = drawn[done][chosen].reshape(-1, count)
    todo, drawn = todo[~done], drawn[~done]
  return result


def _first_time(drawn: np.ndarray) -> np.ndarray:
  """bool[n, W]: entries that are no PAD and no repeat of an earlier one."""
  width = drawn.shape[1]
  key = drawn.astype(np.int64) * width + np.arange(width)[None]
  key.sort(1)
  item, place = key // width, key % width
  first = item != PAD
  first[:, 1:] &= item[:, 1:] != item[:, :-1]
  keep = np.zeros(drawn.shape, bool)
  np.put_along_axis(keep, place, first, 1)
  return keep


def mix(
  random: np.random.Generator, logged: np.ndarray, unmet: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Candidates in random order, and where the logged items went.

  Args:
    random: the source of randomness.
    logged: i32[n, K], distinct within a row.
    unmet: i32[n, R], distinct and none of them logged.

  Returns:
    candidates: i32[n, K + R].
    slate: i32[n, K], the positions of `logged` in `candidates`.
  """
  both = np.concatenate([logged, unmet], 1)
  order = np.argsort(random.random(both.shape), 1)
  candidates = np.take_along_axis(both, order, 1).astype(np.int32)
  slate = np.argsort(order, 1)[:, : logged.shape[1]].astype(np.int32)
  return candidates, slate
