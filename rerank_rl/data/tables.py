"""Users' tables (parquet, csv, jsonl) as typed Arrow columns, in batches.

Rows are counted from 1; a csv's header is not counted. Whatever is wrong is
said in one sentence that names the file, the row and the field.
"""

import collections
from collections.abc import Iterable, Iterator, Mapping
import csv
import json
import pathlib
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rerank_rl.config import ConfigError
from rerank_rl.data import cells

_ROWS = 8192  # A batch; bounds memory, whatever the file's size.

Batch = tuple[int, dict[str, pa.Array]]


def field_names(path: pathlib.Path) -> list[str]:
  """The columns of a table; of a jsonl, the fields of its first row.

  Raises:
    ConfigError: the file is missing, empty, of unknown kind or broken, or
      names a column twice or with blanks around it.
  """
  suffix = path.suffix.lower()
  if suffix not in _READERS:
    cells.fail(
      path, None, None, "unknown kind; give a .parquet, .csv or .jsonl file"
    )
  if not path.exists():
    cells.fail(path, None, None, "there is no such file; check the path")
  if not path.is_file():
    cells.fail(
      path, None, None, "this is no regular file; name the file itself"
    )
  try:
    if suffix == ".parquet":
      names = pq.read_schema(path).names
    else:
      names = list(next(_READERS[suffix](path))[1])
  except StopIteration:
    cells.fail(path, None, None, "the file has no rows; give at least one")
  except (pa.ArrowException, OSError) as error:
    cells.fail(
      path, None, None, f"no readable {suffix[1:]} file ({_line(error)})"
    )
  twice = _twice(names)
  if twice:
    cells.fail(path, None, twice[0], "the column occurs twice; rename one")
  for place, name in enumerate(names, 1):
    if not name:
      text = f"column {place} has no name; name it or drop it"
      cells.fail(path, None, None, text)
    if name != name.strip():
      cells.fail(
        path, None, name, "the name begins or ends with a blank; rename it"
      )
  return names


def require(
  path: pathlib.Path, names: list[str], name: str, what: str = "column"
) -> None:
  """Fails, listing `names`, if `name` is not among them."""
  if name not in names:
    found = ", ".join(map(cells.short, names[:10])) or "none"
    found += f" and {len(names) - 10} more" if len(names) > 10 else ""
    text = f"there is no such {what} among {found}; rename or add it"
    cells.fail(path, None, name, f"{text}, as docs/data.md says")


def sample_kinds(path: pathlib.Path, names: list[str]) -> dict[str, bool]:
  """Whether the first row of each column holds a list."""
  suffix = path.suffix.lower()
  if suffix == ".parquet":
    schema = pq.read_schema(path)
    return {n: cells.is_list(schema.field(n).type) for n in names}
  _, first = next(_READERS[suffix](path))
  return {name: cells.looks_listed(first[name]) for name in names}


def batches(path: pathlib.Path, kinds: Mapping[str, str]) -> Iterator[Batch]:
  """Streams some columns of a table.

  Args:
    path: a file that `field_names` accepted.
    kinds: column -> cells.ID | IDS | INTEGER | NUMBER | NUMBERS | TEXT.

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
  number, values = 1, {name: [] for name in kinds}
  for row, record in _READERS[suffix](path):
    for name in kinds:
      if name not in record:
        cells.fail(
          path, row, name, "the field is missing; add it or drop the row"
        )
      values[name].append(record[name])
    if row - number + 1 == _ROWS:
      yield number, _typed(path, number, values, kinds)
      number, values = row + 1, {name: [] for name in kinds}
  if any(values.values()):
    yield number, _typed(path, number, values, kinds)


def _typed(path, number, values, kinds) -> dict[str, pa.Array]:
  return {
    name: cells.from_python(path, number, name, values[name], kind)
    for name, kind in kinds.items()
  }


def _parquet_batches(path, kinds) -> Iterator[Batch]:
  try:
    number, source = 1, pq.ParquetFile(path)
    for part in source.iter_batches(_ROWS, columns=list(kinds)):
      yield (
        number,
        {
          name: cells.from_arrow(path, number, name, part.column(name), kind)
          for name, kind in kinds.items()
        },
      )
      number += part.num_rows
  except (pa.ArrowException, OSError) as error:
    cells.fail(path, None, None, f"no readable parquet file ({_line(error)})")


def _decoded(lines: Iterable[str]) -> Iterator[str]:
  """Lines read with surrogateescape, up to the first byte that is not UTF-8.

  Strict decoding would fail a whole buffer before that byte's row.
  """
  for line in lines:
    bad = cells.SURROGATE.search(line)
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
      lines = filter(None, lines)
      header = next(lines, [])
      number = 0
      twice = _twice(header)
      if twice:
        cells.fail(path, None, twice[0], "the column occurs twice; rename one")
      for line in lines:
        number += 1
        if len(line) != len(header):
          cells.fail(
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
    cells.fail(
      path, row, None, f"{text}; correct the row or the file's encoding"
    )


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
          cells.fail(
            path, number, None, "the line is no JSON object; give {...}"
          )
        known = known or record
        for name in record.keys() - known.keys():
          cells.fail(
            path, number, name, "row 1 has no such field; add it there"
          )
        yield number, record
  except (ValueError, RecursionError) as error:
    if isinstance(error, ConfigError):
      raise
    row = number + isinstance(error, UnicodeError)
    text = f"no readable JSON in UTF-8 ({_line(error)})"
    cells.fail(
      path, row, None, f"{text}; correct the row or the file's encoding"
    )


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
