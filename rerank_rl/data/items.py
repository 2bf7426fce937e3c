"""A user's items file: ids, features and categories."""

import pathlib

import numpy as np
import pyarrow as pa

from rerank_rl.data import cells, rows, tables


def read(
  path: pathlib.Path,
) -> tuple[pa.Array, np.ndarray, np.ndarray]:
  """Reads and checks an items file.

  Args:
    path: a .parquet, .csv or .jsonl file with `item_id`, columns of numbers
      or of equally long lists of numbers, and perhaps a `category`.

  Returns:
    ids: Arrow array [M], int64 or string, in the file's order.
    features: f32[M, F0], raw.
    groups: i32[M], the category's number, 0 without categories.

  Raises:
    ConfigError: the first mistake found, in one sentence.
  """
  names = tables.field_names(path)
  tables.require(path, names, "item_id")
  columns = [n for n in names if n not in ("item_id", "category")]
  kinds = {"item_id": cells.ID}
  for name, listed in tables.sample_kinds(path, columns).items():
    kinds[name] = cells.NUMBERS if listed else cells.NUMBER
  if "category" in names:
    kinds["category"] = cells.TEXT
  parts, features, groups, widths = [], [], [], {}
  for number, batch in tables.batches(path, kinds):

    def reject(row: int, field: str, text: str, number=number):
      cells.fail(path, number + int(row), field, text)

    count = len(batch["item_id"])
    parts.append(batch["item_id"])
    features.append(rows.numbers_of(batch, columns, widths, count, reject))
    if "category" in kinds:
      groups.append(batch["category"])
  if not parts:
    cells.fail(path, None, None, "the file has no rows; give at least one")
  ids = cells.joined(parts)
  cells.check_unique(path, "item_id", ids)
  group = np.zeros(len(ids), np.int64)
  if groups:
    names = np.array(cells.joined(groups).to_pylist())
    _, group = np.unique(names, return_inverse=True)
  values = np.concatenate(features).astype(np.float32)
  return ids, values, group.astype(np.int32)
