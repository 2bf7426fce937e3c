"""Cells of users' tables as typed Arrow columns: ids, numbers, text, lists.

Rows are counted from 1. Whatever is wrong is said in one sentence that names
the file, the row and the field.
"""

import json
import pathlib
import re
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rerank_rl.config import ConfigError

ID, IDS, INTEGER, NUMBER, NUMBERS, TEXT = (
  "an id (64-bit integer or text)",
  "a list of ids (integers or text)",
  "a 64-bit integer",
  "a number",
  "a list of numbers",
  "text or an integer",
)
SURROGATE = re.compile("[\ud800-\udfff]")  # No character of UTF-8.
_LISTS = (IDS, NUMBERS)
_EMPTY = (None, "")
_REMEDIES = {
  INTEGER: "convert it or drop the row",
  NUMBER: "convert it or drop the column",
}


def fail(path: Any, row: int | None, field: str | None, text: str):
  """Raises ConfigError: 'PATH, row R, field 'F': TEXT.' in one sentence."""
  where = [str(path)]
  where += [f"row {row}"] if row is not None else []
  where += [f"field {field!r}"] if field is not None else []
  raise ConfigError(f"{', '.join(where)}: {text}.")


def joined(parts: list[pa.Array]) -> pa.Array:
  """One array; text if any part is."""
  if len({part.type for part in parts}) > 1:
    parts = [part.cast(pa.string()) for part in parts]
  return pa.concat_arrays(parts)


def check_unique(path: pathlib.Path, field: str, ids: pa.Array) -> None:
  """Fails at the first of `ids` that an earlier row has too."""
  if len(ids.unique()) == len(ids):
    return
  values = np.array(ids.to_pylist())
  order = np.argsort(values, kind="stable")
  again = np.flatnonzero(values[order][1:] == values[order][:-1])
  second = order[again + 1].min()
  first = int(np.argmax(values == values[second]))
  fail(
    path,
    int(second) + 1,
    field,
    f"{ids[int(second)].as_py()!r} is in row {first + 1} too; keep one of them",
  )


def looks_listed(cell: Any) -> bool:
  """Whether a cell of text holds a list, as `from_python` reads one."""
  if isinstance(cell, str):
    return "|" in cell or cell.strip().startswith("[")
  return isinstance(cell, list)


def is_list(kind: pa.DataType) -> bool:
  """Whether an Arrow column of this type holds lists."""
  return (
    pa.types.is_list(kind)
    or pa.types.is_large_list(kind)
    or pa.types.is_fixed_size_list(kind)
    or pa.types.is_list_view(kind)
  )


def from_arrow(path, number, name, column: pa.Array, kind: str) -> pa.Array:
  """A parquet column in the canonical type of its kind.

  Args:
    path: the file, for messages.
    number: the number of the column's first row.
    name: the column's.
    column: its values.
    kind: ID | IDS | INTEGER | NUMBER | NUMBERS | TEXT.

  Returns:
    Without nulls: ids int64 or string, integers int64, numbers double, lists
    the same.

  Raises:
    ConfigError: a value is missing or is not of its kind.
  """
  if pa.types.is_dictionary(column.type):
    column = column.dictionary_decode()
  time = pa.types.is_timestamp(column.type) and kind == INTEGER
  if not time and not _is_plain(_leaves(column).type):
    # Python may have no such values, so none is shown.
    text = f"the column's type is {column.type}, so it is not {kind}"
    fail(path, None, name, f"{text}; convert it or, if optional, drop it")
  if column.null_count:
    row = number + int(np.argmax(column.is_null().to_numpy(False)))
    fail(path, row, name, "the value is missing; fill it or drop the row")
  if time:
    return column.cast(pa.int64())
  if not _is_valid(column):
    row = next(
      r for r in range(len(column)) if not _is_valid(column[r : r + 1])
    )
    text = "the text is not UTF-8; correct it or drop the row"
    fail(path, number + row, name, text)
  if kind in _LISTS and is_list(column.type):
    column = column.cast(pa.list_(column.type.value_type))
    inner = _leaves(column)
    wanted = _arrow_type(inner.type, kind)
    if wanted is not None and not inner.null_count and _is_filled(inner):
      offsets = column.offsets.cast(pa.int32())
      base = offsets[0].as_py()
      if base:
        offsets = pa.array(offsets.to_numpy() - base, pa.int32())
      # A number may be rounded; an id fits or is not `wanted`.
      return pa.ListArray.from_arrays(offsets, inner.cast(wanted, safe=False))
  elif kind not in _LISTS and not is_list(column.type):
    wanted = _arrow_type(column.type, kind)
    if wanted is not None and _is_filled(column):
      return column.cast(wanted, safe=False)
  # Text, or a type that does not fit: value by value, to name the row.
  return from_python(path, number, name, column.to_pylist(), kind)


def from_python(path, number, name, cells: list[Any], kind: str) -> pa.Array:
  """As `from_arrow`, of Python's values: of csv, jsonl or columns of text."""
  values = []
  for row, cell in enumerate(cells, number):
    if kind in _LISTS:
      cell = _listed(cell)
      if not isinstance(cell, list):
        text = f"{short(cell)} is not {kind}; correct it or drop the row"
        fail(path, row, name, text)
      values.append(_entries(path, row, name, cell, kind))
    else:
      values.append(_value(path, row, name, cell, kind, kind))
  if kind in (ID, IDS, TEXT):
    flat = [v for line in values for v in line] if kind == IDS else values
    inner = pa.int64()
    if any(isinstance(v, str) for v in flat):
      inner = pa.string()
      values = [
        [str(v) for v in line] if kind == IDS else str(line) for line in values
      ]
  else:
    inner = pa.int64() if kind == INTEGER else pa.float64()
  try:
    return pa.array(values, pa.list_(inner) if kind in _LISTS else inner)
  except UnicodeEncodeError:
    row, found = next(
      (row, found)
      for row, value in enumerate(values, number)
      if (found := SURROGATE.search("".join(value)))
    )
    text = f"{found[0]!r} is half a character (a lone surrogate)"
    fail(path, row, name, f"{text}; correct it or drop the row")


def _is_text(kind: pa.DataType) -> bool:
  return (
    pa.types.is_string(kind)
    or pa.types.is_large_string(kind)
    or pa.types.is_string_view(kind)
  )


def _leaves(column: pa.Array) -> pa.Array:
  """A column's values, or the entries of its lists."""
  if is_list(column.type):
    column = column.flatten()
  if pa.types.is_dictionary(column.type):
    column = column.dictionary_decode()
  return column


def _is_plain(kind: pa.DataType) -> bool:
  """Whether values of this type can be ids, numbers or text."""
  plain = pa.types.is_integer(kind) or pa.types.is_floating(kind)
  plain = plain or pa.types.is_boolean(kind) or pa.types.is_null(kind)
  return plain or _is_text(kind)


def _is_valid(column: pa.Array) -> bool:
  """Whether all text in a column is UTF-8."""
  try:
    _leaves(column).validate(full=True)
  except pa.ArrowInvalid:
    return False
  return True


def _is_filled(column: pa.Array) -> bool:
  """Whether no text in a column is empty or holds a NUL."""
  if not _is_text(column.type):
    return True
  text = column.cast(pa.large_string())
  wrong = pc.or_(pc.equal(text, ""), pc.match_substring(text, "\0"))
  return not pc.any(wrong).as_py()


def _arrow_type(found: pa.DataType, kind: str) -> pa.DataType | None:
  """What to cast `found` to without loss, or None."""
  whole, real = pa.types.is_integer(found), pa.types.is_floating(found)
  if kind in (ID, IDS, TEXT):
    if whole and found != pa.uint64():
      return pa.int64()
    return pa.string() if _is_text(found) else None
  if kind in (NUMBER, NUMBERS):
    fits = whole or real or pa.types.is_boolean(found)
    return pa.float64() if fits else None
  return pa.int64() if whole and found != pa.uint64() else None


def _entries(path, row, name, cell: list[Any], kind: str) -> list[Any]:
  """The entries of a list; checked one by one only if they may be wrong."""
  types = set(map(type, cell))
  if kind == NUMBERS and types <= {float}:
    return cell
  if kind == NUMBERS and types <= {str}:
    try:
      return list(map(float, cell))
    except ValueError:
      pass  # Which one is said below.
  if kind == IDS and types <= {str} and "" not in cell:
    if "\0" not in "".join(cell):
      return cell
  single = ID if kind == IDS else NUMBER
  return [_value(path, row, name, v, single, kind) for v in cell]


def _listed(cell: Any) -> Any:
  """The list in a cell: a list, '[1, 2]', '1|2' or '' (none at all)."""
  if not isinstance(cell, str):
    return cell
  text = cell.strip()
  if not text.startswith("["):
    return text.split("|") if text else []
  try:
    return json.loads(text)
  except (ValueError, RecursionError):
    return cell


def _value(path, row, name, cell: Any, single: str, kind: str) -> Any:
  """One cell, or one entry of a list, as int, float or str."""
  if cell in _EMPTY:
    where = "an entry" if kind in _LISTS else "the value"
    fail(path, row, name, f"{where} is missing; fill it or drop the row")
  good = isinstance(cell, (int, str, float))
  try:
    if single == NUMBER and good:
      return float(cell)
    if single == INTEGER and good and not isinstance(cell, bool):
      return _integer(cell)
    if single in (ID, TEXT) and isinstance(cell, (int, str)):
      if isinstance(cell, str) and "\0" not in cell:
        return cell
      if type(cell) is int and abs(cell) < 2**63:
        return cell
  except (ValueError, OverflowError):
    pass
  text = f"{short(cell)} is not {single}"
  text = f"entry {text}" if kind in _LISTS else text
  remedy = _REMEDIES.get(kind, "correct it or drop the row")
  fail(path, row, name, f"{text}; {remedy}")


def _integer(cell: int | str | float) -> int:
  """`cell` if it is a whole number of 64 bits, else ValueError."""
  value = int(cell)
  if value != (float(cell) if isinstance(cell, float) else value):
    raise ValueError(cell)
  if abs(value) >= 2**63:
    raise ValueError(cell)
  return value


def short(cell: Any) -> str:
  """A value as messages show it."""
  text = repr(cell)
  return text if len(text) <= 60 else text[:57] + "..."
