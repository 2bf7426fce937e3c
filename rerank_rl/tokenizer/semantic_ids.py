"""Semantic IDs (SIDs): one distinct string of L codes for each item.

`encode` is pure and lets items collide; `assign` walks through
the items in order and gives each a SID of its own, so that SID -> item can be
inverted. An item keeps its encoded SID if that is free. Otherwise it takes,
under the same prefix, the free last-level code that is nearest to what the
prefix left over. If the prefix is full, the same is tried under the next
nearest code one level above, then the next, and so on up to the root. A SID,
once given, never changes: later items get theirs from the same codebook with
the SIDs so far in `taken`, and

    assign(codebook, a_then_b)
      == [assign(codebook, a), assign(codebook, b, taken=assign(codebook, a))]

    sids = semantic_ids.assign(codebook, vectors)              # i32[M, L]
    more = semantic_ids.assign(codebook, new_vectors, taken=sids)
    index = semantic_ids.SidIndex(np.concatenate([sids, more]))
    rows = index.rows(generated)                               # -1: no item
    semantic_ids.save("tokenizer.npz", codebook, sids)
"""

import contextlib
import hashlib
import heapq
import os
import pathlib
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from rerank_rl.tokenizer import nearest, placement
from rerank_rl.tokenizer.residual_kmeans import Codebook
from rerank_rl.types import PAD, Array

_CHUNK = 8192  # Vectors encoded at once on the host's behalf.


def encode(codebook: Codebook, vectors: Array) -> jax.Array:
  """Codes of vectors: the nearest code for what each level has left.

  Pure, row by row: the same integers under jit, vmap, pmap and any sharding
  of the leading dimensions (see `nearest`). Ties go to the lowest
  code. Holds 4 V bytes a vector; feed millions of vectors in parts.

  Args:
    codebook: L levels of V codes.
    vectors: f32[..., D]; compared in the codebook's dtype.

  Returns:
    i32[..., L], codes in [0, V).
  """
  centroids = jnp.asarray(codebook.centroids)

  def descend(residual, level):
    code = nearest.code(level, residual)
    return residual - level[code], code

  residual = jnp.asarray(vectors, centroids.dtype)
  _, codes = lax.scan(descend, residual, centroids)
  return jnp.moveaxis(codes, 0, -1)


_encode = jax.jit(encode)


def encode_all(codebook: Codebook, vectors: Array) -> np.ndarray:
  """`encode` for any number of items: f32[M, D] -> i32[M, L] on the host.

  Raises:
    ValueError: a shape that does not fit the codebook, a value not finite.
  """
  width = codebook.centroids.shape[-1]
  vectors = nearest.checked_vectors(vectors, width)
  size = min(_CHUNK, 1 << len(vectors).bit_length())  # Few shapes to compile.
  padded = np.pad(vectors, [(0, -len(vectors) % size), (0, 0)])
  parts = [
    np.asarray(_encode(codebook, padded[start : start + size]))
    for start in range(0, len(padded), size)
  ]
  empty = np.zeros((0, codebook.levels), np.int32)
  return np.concatenate([empty, *parts])[: len(vectors)]


def assign(
  codebook: Codebook, vectors: Array, taken: Array | None = None
) -> np.ndarray:
  """Distinct SIDs for items, in order; the rule is in the module docstring.

  Args:
    codebook: L levels of V codes.
    vectors: f32[M, D].
    taken: i32[T, L], SIDs already given away, distinct; None for none.

  Returns:
    i32[M, L], distinct, none of them in `taken`.

  Raises:
    ValueError: vectors or `taken` malformed, or more items than SIDs.
  """
  levels, codes = codebook.levels, codebook.codes
  encoded = encode_all(codebook, vectors)
  if taken is None:
    taken = np.zeros((0, levels), np.int32)
  taken_keys = _checked_keys(np.asarray(taken), levels, codes, "taken")
  _check_room(encoded, len(taken_keys), codes)
  keys = pack(encoded, codes)
  every = np.concatenate([taken_keys, keys])
  _, first = np.unique(every, return_index=True)
  collides = np.ones(len(every), bool)
  collides[first] = False
  walk = placement.Walk(
    np.asarray(codebook.centroids, np.float64),
    keys=every[first],
    holders=first - len(taken_keys),
  )
  # A later item loses its own SID to an earlier one that had to move there:
  # that is what keeps the result independent of what comes after.
  waiting = np.flatnonzero(collides[len(taken_keys) :]).tolist()
  sids = encoded.copy()
  while waiting:
    item = heapq.heappop(waiting)
    vector = np.asarray(vectors[item], np.float64)
    sids[item], loser = walk.place(item, vector, encoded[item])
    if loser is not None:
      heapq.heappush(waiting, loser)
  return sids


def _check_room(encoded: np.ndarray, taken: int, codes: int) -> None:
  items, levels = encoded.shape
  if items + taken <= codes**levels:
    return
  first, counts = np.unique(encoded[:, 0], return_counts=True)
  raise ValueError(
    f"{items} new items and {taken} taken ones do not fit the"
    f" {codes**levels} semantic IDs of {levels} level(s) of {codes} codes"
    f" (prefix [{first[counts.argmax()]}] alone encodes {counts.max()} of"
    " the new ones); raise tokenizer.levels or tokenizer.codes."
  )


def pack(sids: np.ndarray, codes: int) -> np.ndarray:
  """SIDs as numbers of base `codes`: i32[..., L] -> i64[...], order kept.

  Args:
    sids: codes in [0, codes).
    codes: V, with V**L <= 2**63.

  Raises:
    ValueError: the numbers would not fit 64 bits.
  """
  levels = sids.shape[-1]
  if codes**levels > 2**63:
    raise ValueError(
      f"{levels} levels of {codes} codes are more than 2**63 semantic IDs;"
      " lower tokenizer.levels or tokenizer.codes."
    )
  key = np.zeros(sids.shape[:-1], np.int64)
  for level in range(levels):
    key = key * codes + sids[..., level]
  return key


def _checked_keys(
  sids: np.ndarray, levels: int, codes: int, name: str
) -> np.ndarray:
  """Packed SIDs [M, L], after checking shape, range and distinctness."""
  if sids.ndim != 2 or sids.shape[1] != levels:
    raise ValueError(f"{name} has shape {sids.shape}; give [items, {levels}].")
  if not np.issubdtype(sids.dtype, np.integer):
    raise ValueError(f"{name} has dtype {sids.dtype}; give integer codes.")
  wrong = ((sids < 0) | (sids >= codes)).any(axis=1)
  if wrong.any():
    row = int(wrong.argmax())
    raise ValueError(
      f"{name} row {row} is {sids[row].tolist()}; codes must be in"
      f" [0, {codes})."
    )
  keys = pack(sids, codes)
  order = np.argsort(keys, kind="stable")
  same = np.flatnonzero(keys[order][1:] == keys[order][:-1])
  if same.size:
    one, two = order[same[0]], order[same[0] + 1]
    raise ValueError(
      f"{name} rows {one} and {two} hold the same semantic ID"
      f" {sids[one].tolist()}; each item needs its own."
    )
  return keys


class SidIndex:
  """SID -> item row, by binary search in the sorted SIDs.

  Args:
    table: i32[M, L], one distinct SID an item.

  Raises:
    ValueError: malformed or repeated SIDs.
  """

  def __init__(self, table: Array):
    table = np.asarray(table)
    if table.ndim != 2 or table.shape[1] == 0:
      raise ValueError(f"table has shape {table.shape}; give [items, levels].")
    self._levels = table.shape[1]
    self._codes = int(table.max(initial=0)) + 1
    keys = _checked_keys(table, self._levels, self._codes, "table")
    self._rows = np.argsort(keys, kind="stable").astype(np.int32)
    self._keys = keys[self._rows]

  def rows(self, sids: Array) -> np.ndarray:
    """Item rows of SIDs: i32[..., L] -> i32[...], PAD where there is none."""
    sids = np.asarray(sids)
    if sids.ndim == 0 or sids.shape[-1] != self._levels:
      raise ValueError(
        f"sids has shape {sids.shape}; its last axis must hold"
        f" {self._levels} codes."
      )
    if not len(self._keys):
      return np.full(sids.shape[:-1], PAD, np.int32)
    legal = ((sids >= 0) & (sids < self._codes)).all(axis=-1)
    keys = pack(np.where(np.expand_dims(legal, -1), sids, 0), self._codes)
    at = np.searchsorted(self._keys, keys)
    at = np.minimum(at, len(self._keys) - 1)
    found = np.logical_and(legal, np.equal(np.take(self._keys, at), keys))
    return np.where(found, np.take(self._rows, at), np.int32(PAD))


def decode(table: Array, sids: Array) -> np.ndarray:
  """`SidIndex(table).rows(sids)`; keep the index to decode more than once."""
  return SidIndex(table).rows(sids)


def reconstruct(codebook: Codebook, sids: Array) -> jax.Array:
  """The vector that a SID stands for, the sum of its centroids; pure.

  Args:
    codebook: L levels.
    sids: i32[..., L]; PAD codes add nothing, so prefixes work too.

  Returns:
    f32[..., D].
  """
  sids = jnp.asarray(sids)
  total = jnp.zeros((), codebook.centroids.dtype)
  for level, centroids in enumerate(codebook.centroids):
    code = sids[..., level]
    part = jnp.asarray(centroids)[jnp.maximum(code, 0)]
    total = total + jnp.where((code >= 0)[..., None], part, 0)
  return total


def report(codebook: Codebook, vectors: Array, sids: Array) -> dict[str, Any]:
  """How well a codebook describes items and what making SIDs distinct cost.

  Args:
    codebook: L levels of V codes.
    vectors: f32[M, D], M >= 1.
    sids: i32[M, L], from `assign`.

  Returns:
    used: [L], share of the V codes that some SID uses;
    perplexity: [L], exp(entropy) of the codes in use, at most V;
    collision_rate: share of items whose encoded SID an earlier item has;
    moved: share of items whose SID is not the encoded one;
    moved_prefix: share of items that left their prefix of L - 1 codes;
    reconstruction_error: [L], sum |x - x^_l|^2 / sum |x - mean|^2 of encoded
      codes after each level (0 where all items are alike and met);
    assigned_error: the same after the last level, for `sids`.
  """
  sids = np.asarray(sids)
  _checked_keys(sids, codebook.levels, codebook.codes, "sids")
  encoded = encode_all(codebook, vectors)
  if sids.shape != encoded.shape or not len(sids):
    raise ValueError(
      f"sids has {len(sids)} rows and vectors {len(encoded)}; give one SID"
      " an item, and at least one."
    )
  used, perplexity = [], []
  for level in range(codebook.levels):
    counts = np.bincount(sids[:, level], minlength=codebook.codes)
    share = counts[counts > 0] / len(sids)
    used.append(float((counts > 0).mean()))
    perplexity.append(float(np.exp(-(share * np.log(share)).sum())))
  moved = encoded != sids
  distinct = len(np.unique(pack(encoded, codebook.codes)))
  return {
    "used": used,
    "perplexity": perplexity,
    "collision_rate": 1 - distinct / len(sids),
    "moved": float(moved.any(axis=1).mean()),
    "moved_prefix": float(moved[:, :-1].any(axis=1).mean()),
    "reconstruction_error": _relative_errors(codebook, vectors, encoded),
    "assigned_error": _relative_errors(codebook, vectors, sids)[-1],
  }


def _relative_errors(
  codebook: Codebook, vectors: Array, sids: np.ndarray
) -> list[float]:
  vectors = np.asarray(vectors, np.float64)
  spread = np.square(vectors - vectors.mean(axis=0, keepdims=True)).sum()
  residual, errors = vectors, []
  for level, centroids in enumerate(np.asarray(codebook.centroids)):
    residual = residual - centroids[sids[:, level]]
    error = np.square(residual).sum()
    errors.append(float(error / max(spread, np.finfo(np.float64).tiny)))
  return errors


def save(path: str | os.PathLike, codebook: Codebook, sids: Array) -> None:
  """Writes codebook and SIDs [M, L] as one .npz, whole or not at all."""
  path = pathlib.Path(path)
  arrays = {
    "centroids": np.asarray(codebook.centroids),
    "sids": np.asarray(sids),
  }
  _checked_keys(arrays["sids"], codebook.levels, codebook.codes, "sids")
  arrays["checksum"] = np.asarray(_checksum(arrays))
  part = path.with_name(f".{path.name}.{os.getpid()}.part")
  try:
    with part.open("wb") as file:
      np.savez(file, **arrays)
      file.flush()
      os.fsync(file.fileno())
    part.replace(path)
  finally:
    part.unlink(missing_ok=True)


def load(path: str | os.PathLike) -> tuple[Codebook, np.ndarray]:
  """Reads what `save` wrote: (Codebook of host arrays, SIDs i32[M, L]).

  Raises:
    OSError: the file is not there or may not be read.
    ValueError: the file is damaged or something else, such as a folder.
  """
  arrays: dict[str, np.ndarray] = {}
  intact = False
  with contextlib.suppress(IsADirectoryError), open(path, "rb") as stream:
    try:
      with np.load(stream, allow_pickle=False) as file:
        arrays = {name: file[name] for name in ("centroids", "sids")}
        intact = str(file["checksum"]) == _checksum(arrays)
    except Exception:  # Damage shows as any of a dozen errors of zip and numpy.
      intact = False
  if not intact:
    raise ValueError(
      f"{path} is not an intact tokenizer artifact; remove it to fit"
      " the tokenizer again."
    )
  return Codebook(centroids=arrays["centroids"]), arrays["sids"]


def _checksum(arrays: dict[str, np.ndarray]) -> str:
  digest = hashlib.sha256()
  for name in ("centroids", "sids"):
    array = np.ascontiguousarray(arrays[name])
    digest.update(f"{name} {array.dtype.str} {array.shape} ".encode())
    digest.update(array.tobytes())
  return digest.hexdigest()
