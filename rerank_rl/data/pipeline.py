"""Batches of numpy columns, shuffled, sharded by process, resumable.

Grain orders the indices; the rows are gathered a batch at a time, so no
Python runs for each row but the few microseconds of its index.
"""

from typing import Any

import grain
import numpy as np

from rerank_rl.data.schema import num_rows, take
from rerank_rl.types import PAD, Impression


def batches(
  columns: Any,
  batch_size: int,
  seed: int,
  process_index: int = 0,
  process_count: int = 1,
  repeat: bool = True,
) -> grain.DatasetIterator:
  """An iterator over shuffled batches; every epoch has its own order.

  The order of the global batches depends on `seed` alone. Process p of P
  gets rows [p b / P, (p + 1) b / P) of every global batch of b rows, so the
  processes together see what one process would.

  Args:
    columns: numpy columns of n rows, such as an Impression.
    batch_size: rows of a global batch, B.
    seed: of the shuffle, >= 0.
    process_index: p.
    process_count: P; divides B.
    repeat: for ever, in full batches that run over the ends of epochs; or
      one pass, whose last batch holds the rows that are left.

  Returns:
    A grain iterator of such columns with leading size B / P; `get_state()`
    returns a small dict and `set_state(state)` resumes exactly after it.

  Raises:
    ValueError: no rows, a batch size below 1 or that P does not divide, or
      a process index outside [0, P).
  """
  count = num_rows(columns)
  if count < 1:
    raise ValueError("columns hold no rows; a batch needs at least one.")
  if batch_size < 1 or batch_size % process_count:
    raise ValueError(
      f"batch_size={batch_size} should be a positive multiple of the "
      f"{process_count} processes."
    )
  if not 0 <= process_index < process_count:
    raise ValueError(
      f"process_index={process_index} is outside [0, {process_count})."
    )

  def local(rows: np.ndarray) -> Any:
    start = rows.size * process_index // process_count
    stop = rows.size * (process_index + 1) // process_count
    return take(columns, rows[start:stop])

  order = grain.MapDataset.range(count).seed(seed).shuffle()
  if repeat:
    order = order.repeat()
  stream = order.batch(batch_size, batch_fn=np.asarray).map(local)
  # Gathering takes about a millisecond: threads would only cost memory.
  options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
  return iter(stream.to_iter_dataset(options))


FEEDBACK = ("logged", "shuffled", "constant")


def feedback_control(columns: Impression, mode: str, seed: int) -> Impression:
  """Training columns whose feedback is real, shuffled or constant.

  What a system learns from shuffled or constant feedback it did not learn
  from feedback; its score is the floor that a claim must clear.

  Args:
    columns: numpy columns of n impressions.
    mode: "logged" leaves them; "shuffled" permutes whole feedback vectors
      between requests whose slates have the same length; "constant" gives
      each position its mean over the requests that fill it.
    seed: of the permutation.

  Returns:
    `columns` with another feedback f32[n, K, S]; 0 at padding as before.

  Raises:
    ValueError: another mode.
  """
  if mode == "logged":
    return columns
  feedback, placed = columns.feedback, columns.slate != PAD
  if mode == "constant":
    total = np.maximum(placed.sum(0), 1)[:, None]
    mean = feedback.sum(0, dtype=np.float64) / total
    constant = np.where(placed[..., None], mean[None], 0)
    return columns.replace(feedback=constant.astype(feedback.dtype))
  if mode == "shuffled":
    random = np.random.default_rng(seed)
    lengths, source = placed.sum(1), np.arange(num_rows(columns))
    for length in np.unique(lengths):
      rows = np.flatnonzero(lengths == length)
      source[rows] = random.permutation(rows)
    return columns.replace(feedback=feedback[source])
  raise ValueError(f"feedback is {mode!r}, not one of {FEEDBACK}.")
