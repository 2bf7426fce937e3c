"""Turns your own impressions and items into a data set for training.

python -m launch.import_logs --impressions=FILE --items=FILE --out=DIR

docs/data.md says what the files hold. Train on the result with
--config.data.name=imported --config.data.path=DIR.
"""

import sys

from absl import app, flags, logging

from launch import errors
from rerank_rl.data import importer

_IMPRESSIONS = flags.DEFINE_string(
  "impressions", None, "Impressions: a .parquet, .csv or .jsonl file."
)
_ITEMS = flags.DEFINE_string(
  "items", None, "Items: a .parquet, .csv or .jsonl file."
)
_OUT = flags.DEFINE_string("out", None, "The folder to make.")
_SIGNALS = flags.DEFINE_list(
  "signals", ["click"], "Columns of feedback, the click first."
)
_WEIGHTS = flags.DEFINE_list(
  "weights", [], "Each signal's part in a slate's utility; 1 each if empty."
)
_SLATE_SIZE = flags.DEFINE_integer(
  "slate_size", 0, "Most items of a slate; 0 = the longest slate shown."
)
_HISTORY_SIZE = flags.DEFINE_integer(
  "history_size", 50, "Most items of a history; the latest are kept."
)
_OVERWRITE = flags.DEFINE_bool(
  "overwrite", False, "Whether --out may hold an earlier import."
)


def main() -> None:
  """Runs the import and prints what was made."""
  options = importer.ImportOptions(
    impressions=_IMPRESSIONS.value or "",
    items=_ITEMS.value or "",
    out=_OUT.value or "",
    signals=tuple(_SIGNALS.value),
    weights=importer.parse_weights(_WEIGHTS.value),
    slate_size=_SLATE_SIZE.value,
    history_size=_HISTORY_SIZE.value,
    overwrite=_OVERWRITE.value,
  )
  logging.set_verbosity(logging.WARNING)  # TFDS tells every step.
  summary = importer.import_logs(options)
  # Columns may have names that the console has no letters for.
  encoding = sys.stdout.encoding or "utf-8"
  print(summary.encode(encoding, "backslashreplace").decode(encoding))


if __name__ == "__main__":
  flags.mark_flags_as_required(["impressions", "items", "out"])
  errors.run(app, main)
