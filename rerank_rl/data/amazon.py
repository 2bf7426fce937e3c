"""Amazon reviews as sequences of items, with published semantic IDs.

J. McAuley et al., "Image-based Recommendations on Styles and Substitutes",
SIGIR 2015; the 5-core of 2014.
"""

import pathlib
import re

import numpy as np

from rerank_rl.config import Config, ConfigError
from rerank_rl.data import public, sequences
from rerank_rl.files import parse_object

_TOKEN = re.compile(r"<([a-z])_(\d{1,9})>")


def load(config: Config) -> sequences.Sequences:
  """Sequences and semantic IDs from `public.folder(config)`.

  `sequences.txt` has a user a line, `user item item ...` in time order, items
  numbered from 1; `semantic_ids_4x256.json` maps item - 1 to its tokens.
  Items that share an ID are told apart, see `distinct`.

  Raises:
    ConfigError: a file is missing, or a line or an entry is wrong.
  """
  path = public.folder(config)
  sids = distinct(_sids(path / "semantic_ids_4x256.json"))
  none = np.zeros((len(sids), 0), np.float32)
  return sequences.assemble(
    config,
    _events(path / "sequences.txt"),
    np.arange(1, len(sids) + 1),
    features=none,
    vectors=none,
    sids=sids,
  )


def _text(path: pathlib.Path) -> str:
  if not path.is_file():
    raise ConfigError(f"{path} is missing; docs/data.md says where it is from.")
  try:
    return path.read_text(encoding="utf-8")
  except UnicodeDecodeError as error:
    raise ConfigError(f"{path} is no text in UTF-8; get it again.") from error


def _events(path: pathlib.Path) -> sequences.Events:
  """All items, as catalogue rows."""
  rows = []
  for number, line in enumerate(_text(path).splitlines(), 1):
    fields = line.split()
    whole = all(field.isdecimal() and len(field) < 10 for field in fields)
    if not fields or not whole or "0" in fields[1:]:
      raise ConfigError(
        f"{path}, line {number} should be a user and items, whole numbers "
        "from 1, separated by spaces."
      )
    rows.append(np.array(fields[1:], np.int64))
  if not rows:
    raise ConfigError(f"{path} is empty; get the file again.")
  counts = [row.size for row in rows]
  item = (np.concatenate(rows) - 1).astype(np.int32)
  return sequences.Events(item, np.r_[0, np.cumsum(counts)])


def _sids(path: pathlib.Path) -> np.ndarray:
  """i32[M, L] as published; rows may repeat."""
  table = parse_object(_text(path), path, "get the file again")
  rows = []
  for key in map(str, range(len(table))):
    tokens = table.get(key, ())
    tokens = tokens if isinstance(tokens, list) else ()
    found = [_TOKEN.fullmatch(str(token)) for token in tokens]
    levels = [match.group(1) for match in found if match]
    if not found or levels != [chr(97 + i) for i in range(len(found))]:
      raise ConfigError(
        f"{path}, item {key!r} should have tokens '<a_1>', '<b_2>', ...; get "
        "the file again."
      )
    rows.append([int(match.group(2)) for match in found if match])
    if len(rows[-1]) != len(rows[0]):
      raise ConfigError(
        f"{path}, item {key!r} has {len(rows[-1])} tokens, others "
        f"{len(rows[0])}; get the file again."
      )
  return np.array(rows, np.int32)


def distinct(sids: np.ndarray) -> np.ndarray:
  """Semantic IDs of which no two are equal.

  The first item with an ID keeps it; a later one gets the least last code
  that no item has after the same prefix.

  Args:
    sids: i32[M, L].

  Returns:
    i32[M, L].
  """
  out = sids.copy()
  _, first = np.unique(sids, axis=0, return_index=True)
  taken = set(map(tuple, sids.tolist()))
  for row in np.setdiff1d(np.arange(len(sids)), first):
    prefix, code = tuple(sids[row, :-1].tolist()), 0
    while (*prefix, code) in taken:
      code += 1
    out[row, -1] = code
    taken.add((*prefix, code))
  return out
