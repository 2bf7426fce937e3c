"""Users' tables (parquet, csv, jsonl) as typed Arrow columns, in batches.

Rows are counted from 1; a csv's header is not counted. Whatever is wrong is
said in one sentence that names the file, the row and the field.
"""

import collections
from collections.abc import Iterable, Iterator, Mapping
import csv
import json
import pathlib
import re
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rerank_rl.config import ConfigError

ID, IDS, INTEGER, NUMBER, NUMBERS, TEXT = (
  "an id (64-bit integer or text)",
  "a list of ids (integers or text)",
  "a 64-bit integer",
  "a number",
  "a list of numbers",
  "text or an integer",
)
_LISTS = (IDS, NUMBERS)
_EMPTY = (None, "")
_REMEDIES = {
  INTEGER: "convert it or drop the row",
  NUMBER: "convert it or drop the column",
}
_SURROGATE = re.compile("[\ud800-\udfff]")  # No character of UTF-8.
_ROWS = 8192  # A batch; bounds memory, whatever the file's size.

Batch = tuple[int, dict[str, pa.Array]]


def fail(path: Any, row: int | None, field: str | None, text: str):
  """Raises ConfigError: 'PATH, row R, field 'F': TEXT.' in one sentence."""
  where = [str(path)]
  where += [f"row {row}"] if row is not None else []
  where += [f"field {field!r}"] if field is not None else []
  raise ConfigError(f"{', '.join(where)}: {text}.")


def field_names(path: pathlib.Path) -> list[str]:
  """The columns of a table; of a jsonl, the fields of its first row.

  Raises:
    ConfigError: the file is missing, empty, of unknown kind or broken, or
      names a column twice or with blanks around it.
  """
  suffix = path.suffix.lower()
  if suffix not in _READERS:
    fail(path, None, None, "unknown kind; give a .parquet, .csv or .jsonl file")
  if not path.exists():
    fail(path, None, None, "there is no such file; check the path")
  if not path.is_file():
    fail(path, None, None, "this is no regular file; name the file itself")
  try:
    if suffix == ".parquet":
      names = pq.read_schema(path).names
    else:
      names = list(next(_READERS[suffix](path))[1])
  except StopIteration:
    fail(path, None, None, "the file has no rows; give at least one")
  except (pa.ArrowException, OSError) as error:
    fail(path, None, None, f"no readable {suffix[1:]} file ({_line(error)})")
  twice = _twice(names)
  if twice:
    fail(path, None, twice[0], "the column occurs twice; rename one")
  for name in names:
    if name != name.strip():
      fail(path, None, name, "the name begins or ends with a blank; rename it")
  return names


def require(
  path: pathlib.Path, names: list[str], name: str, what: str = "column"
) -> None:
  """Fails, listing `names`, if `name` is not among them."""
  if name not in names:
    found = ", ".join(map(_short, names[:10])) or "none"
    found += f" and {len(names) - 10} more" if len(names) > 10 else ""
    text = f"there is no such {what} among {found}; rename or add it"
    fail(path, None, name, f"{text}, as docs/data.md says")


def sample_kinds(path: pathlib.Path, names: list[str]) -> dict[str, bool]:
  """Whether the first row of each column holds a list."""
  suffix = path.suffix.lower()
  if suffix == ".parquet":
    schema = pq.read_schema(path)
    return {n: _is_list(schema.field(n).type) for n in names}
  _, first = next(_READERS[suffix](path))
  return {name: _looks_listed(first[name]) for name in names}


def batches(path: pathlib.Path, kinds: Mapping[str, str]) -> Iterator[Batch]:
  """Streams some columns of a table.

  Args:
    path: a file that `field_names` accepted.
    kinds: column -> ID | IDS | INTEGER | NUMBER | NUMBERS | TEXT.

  Yields:
    (row, columns): the first row's number and Arrow arrays without nulls;
    ids are int64 or string, integers int64, numbers double, lists the same.

  Raises:
    ConfigError: a value is missing or is not of its kind.
  """
  suffix = path.suffix.lower()
  if suffix == ".parquet":
    yield from _parquet_batches(path, kinds)
    return
  number, cells = 1, {name: [] for name in kinds}
  for row, record in _READERS[suffix](path):
    for name in kinds:
      if name not in record:
        fail(path, row, name, "the field is missing; add it or drop the row")
      cells[name].append(record[name])
    if row - number + 1 == _ROWS:
      yield number, _typed(path, number, cells, kinds)
      number, cells = row + 1, {name: [] for name in kinds}
  if any(cells.values()):
    yield number, _typed(path, number, cells, kinds)


def _typed(path, number, cells, kinds) -> dict[str, pa.Array]:
  return {
    name: _from_cells(path, number, name, cells[name], kind)
    for name, kind in kinds.items()
  }


def _parquet_batches(path, kinds) -> Iterator[Batch]:
  try:
    number, source = 1, pq.ParquetFile(path)
    for part in source.iter_batches(_ROWS, columns=list(kinds)):
      yield (
        number,
        {
          name: _from_arrow(path, number, name, part.column(name), kind)
          for name, kind in kinds.items()
        },
      )
      number += part.num_rows
  except (pa.ArrowException, OSError) as error:
    fail(path, None, None, f"no readable parquet file ({_line(error)})")


def _decoded(lines: Iterable[str]) -> Iterator[str]:
  """Lines read with surrogateescape, up to the first byte that is not UTF-8.

  Strict decoding would fail a whole buffer before that byte's row.
  """
  for line in lines:
    bad = _SURROGATE.search(line)
    if bad:
      raise UnicodeError(f"byte 0x{ord(bad[0]) - 0xDC00:02x} is not UTF-8")
    yield line


def _csv_rows(path: pathlib.Path) -> Iterator[tuple[int, dict[str, Any]]]:
  """(row number, fields) of a csv with a header."""
  csv.field_size_limit(1 << 30)
  number = -1  # The header.
  try:
    with path.open(
      newline="", encoding="utf-8-sig", errors="surrogateescape"
    ) as source:
      lines = csv.reader(_decoded(source), strict=True)
      header = next(lines, [])
      number = 0
      twice = _twice(header)
      if twice:
        fail(path, None, twice[0], "the column occurs twice; rename one")
      for line in filter(None, lines):
        number += 1
        if len(line) != len(header):
          fail(
            path,
            number,
            None,
            f"{len(line)} fields, but the header has {len(header)}; "
            "quote fields that hold commas",
          )
        yield number, dict(zip(header, line, strict=True))
  except (UnicodeError, csv.Error) as error:
    text = f"no readable csv in UTF-8 ({_line(error)})"
    row = number + 1 or None
    fail(path, row, None, f"{text}; correct the row or the file's encoding")


def _record(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  """A JSON object's fields, of which json itself would keep the last ones."""
  twice = _twice(name for name, _ in pairs)
  if twice:
    raise ValueError(f"field {twice[0]!r} occurs twice; drop one")
  return dict(pairs)


def _jsonl_rows(path: pathlib.Path) -> Iterator[tuple[int, dict[str, Any]]]:
  """(row number, fields) of a file with one JSON object a line."""
  number, known = 0, {}
  try:
    with path.open(encoding="utf-8-sig", errors="surrogateescape") as source:
      for line in _decoded(source):
        if not line.strip():
          continue
        number += 1
        record = json.loads(line, object_pairs_hook=_record)
        if not isinstance(record, dict):
          fail(path, number, None, "the line is no JSON object; give {...}")
        known = known or record
        for name in record.keys() - known.keys():
          fail(path, number, name, "row 1 has no such field; add it there")
        yield number, record
  except (ValueError, RecursionError) as error:
    if isinstance(error, ConfigError):
      raise
    row = number + isinstance(error, UnicodeError)
    text = f"no readable JSON in UTF-8 ({_line(error)})"
    fail(path, row, None, f"{text}; correct the row or the file's encoding")


_READERS: dict[str, Any] = {
  ".parquet": None,
  ".csv": _csv_rows,
  ".jsonl": _jsonl_rows,
}


def _twice(names: Iterable[str]) -> list[str]:
  """The names that are given more than once."""
  return [name for name, n in collections.Counter(names).items() if n > 1]


def _line(error: BaseException) -> str:
  """An exception's text on one line, short."""
  return " ".join(str(error).split())[:160].rstrip(".") or type(error).__name__


def _is_list(kind: pa.DataType) -> bool:
  return (
    pa.types.is_list(kind)
    or pa.types.is_large_list(kind)
    or pa.types.is_fixed_size_list(kind)
    or pa.types.is_list_view(kind)
  )


def _is_text(kind: pa.DataType) -> bool:
  return (
    pa.types.is_string(kind)
    or pa.types.is_large_string(kind)
    or pa.types.is_string_view(kind)
  )


def _from_arrow(path, number, name, column: pa.Array, kind: str) -> pa.Array:
  """A parquet column in the canonical type of its kind."""
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
  if kind in _LISTS and _is_list(column.type):
    column = column.cast(pa.list_(column.type.value_type))
    inner = _leaves(column)
    wanted = _arrow_type(inner.type, kind)
    if wanted is not None and not inner.null_count:
      offsets = column.offsets.cast(pa.int32())
      base = offsets[0].as_py()
      if base:
        offsets = pa.array(offsets.to_numpy() - base, pa.int32())
      return pa.ListArray.from_arrays(offsets, inner.cast(wanted))
  elif kind not in _LISTS and not _is_list(column.type):
    wanted = _arrow_type(column.type, kind)
    if wanted is not None:
      return column.cast(wanted)
  # Text, or a type that does not fit: value by value, to name the row.
  return _from_cells(path, number, name, column.to_pylist(), kind)


def _leaves(column: pa.Array) -> pa.Array:
  """A column's values, or the entries of its lists."""
  if _is_list(column.type):
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


def _from_cells(path, number, name, cells: list[Any], kind: str) -> pa.Array:
  """Python values (of csv, jsonl or text columns) as an Arrow array."""
  values = []
  for row, cell in enumerate(cells, number):
    if kind in _LISTS:
      cell = _listed(cell)
      if not isinstance(cell, list):
        text = f"{_short(cell)} is not {kind}; correct it or drop the row"
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
      if (found := _SURROGATE.search("".join(value)))
    )
    text = f"{found[0]!r} is half a character (a lone surrogate)"
    fail(path, row, name, f"{text}; correct it or drop the row")


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
    return cell
  single = ID if kind == IDS else NUMBER
  return [_value(path, row, name, v, single, kind) for v in cell]


def _looks_listed(cell: Any) -> bool:
  if isinstance(cell, str):
    return "|" in cell or cell.strip().startswith("[")
  return isinstance(cell, list)


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
      if isinstance(cell, str):
        return cell
      if not isinstance(cell, bool) and abs(cell) < 2**63:
        return cell
  except (ValueError, OverflowError):
    pass
  text = f"{_short(cell)} is not {single}"
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


def _short(cell: Any) -> str:
  text = repr(cell)
  return text if len(text) <= 60 else text[:57] + "..."


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
