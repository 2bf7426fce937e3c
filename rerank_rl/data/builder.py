"""TFDS builders of imported logs: array_record files, no TensorFlow.

A record is a block of rows, each column one array with a leading dimension:
a record a row costs 0.4 ms to write and 0.6 ms to read, a block of 256 some
8 microseconds a row.
"""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import io

import numpy as np
import tensorflow_datasets as tfds

Block = Mapping[str, np.ndarray]


class TableBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """Writes a table of fixed-shape rows, in the order they come.

  An import makes two: `items` (split "items") and `impressions` ("train",
  "valid", "test"). Both are read, block by block, by
  `tfds.builder_from_directory(folder).as_data_source(split)`.
  """

  VERSION = tfds.core.Version("1.0.0")

  def __init__(
    self,
    *,
    table: str,
    columns: Mapping[str, tuple[tuple[int, ...], type]],
    splits: Mapping[str, Callable[[], Iterator[Block]]],
    data_dir: str,
  ):
    """Describes a table; `download_and_prepare()` writes it.

    Args:
      table: the builder's name.
      columns: name -> (shape of a row, numpy type; `str` for text). No
        dimension is 0: TFDS cannot read such a column back.
      splits: name -> a function that starts the split's blocks.
      data_dir: the folder that gets `table`/1.0.0/.
    """
    self.name = table
    self._columns = columns
    self._sources = splits
    super().__init__(file_format="array_record", data_dir=data_dir)

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self,
      description="Imported by launch/import_logs.py.",
      features=tfds.features.FeaturesDict(
        {
          name: _feature(shape, dtype)
          for name, (shape, dtype) in self._columns.items()
        }
      ),
      disable_shuffling=True,
    )

  def _split_generators(self, dl_manager):
    del dl_manager  # The rows come from the user's files.
    return {
      name: self._generate_examples(start())
      for name, start in self._sources.items()
    }

  def _generate_examples(self, blocks: Iterator[Block]):
    yield from enumerate(blocks)


def _feature(shape: tuple[int, ...], dtype: type):
  if dtype is str:
    return tfds.features.Sequence(tfds.features.Text())
  return tfds.features.Tensor(
    shape=(None, *shape), dtype=dtype, encoding=tfds.features.Encoding.BYTES
  )


def write(
  table: str,
  columns: Mapping[str, tuple[tuple[int, ...], type]],
  splits: Mapping[str, Callable[[], Iterator[Block]]],
  data_dir: str,
) -> None:
  """Writes `table` quietly; arguments as in `TableBuilder`.

  Raises:
    OSError: the disk refused.
  """
  tfds.disable_progress_bar()
  try:
    with contextlib.redirect_stdout(io.StringIO()):  # TFDS's own messages.
      TableBuilder(
        table=table, columns=columns, splits=splits, data_dir=data_dir
      ).download_and_prepare()
  except RuntimeError as error:  # What array_record makes of a full disk.
    reason = str(error).partition(";")[0]
    raise OSError(
      f"{data_dir} could not be written ({reason}); free space on its disk or "
      "choose another folder."
    ) from error


def source(data_dir: str, table: str, split: str):
  """The blocks of a split in their order, read when asked for by number."""
  folder = f"{data_dir}/{table}/{TableBuilder.VERSION}"
  return tfds.builder_from_directory(folder).as_data_source(split)


def read(data_dir: str, table: str, split: str) -> dict[str, np.ndarray]:
  """All rows of a split, column by column, text as numpy str.

  Args:
    data_dir: the folder given to `write`.
    table: the builder's name.
    split: the split's name.

  Returns:
    name -> [rows, *shape].
  """
  found = source(data_dir, table, split)
  blocks = [found[index] for index in range(len(found))]
  result = {}
  for name in blocks[0]:
    column = np.concatenate([np.asarray(block[name]) for block in blocks])
    if column.dtype.kind in "SO":
      column = np.char.decode(column.astype(bytes), "utf-8")
    result[name] = column
  return result
