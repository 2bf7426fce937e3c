"""One clear sentence and a non-zero status for a user's mistakes."""

import sys

from absl import flags, logging


def run(app, main) -> None:
  """Runs `main` under absl's `app`; a ValueError or OSError is the user's.

  Raises:
    SystemExit: with status 2 and one line on stderr.
  """

  def guarded(argv):
    try:
      main(argv)
    except (ValueError, OSError) as error:
      logging.debug("traceback", exc_info=True)
      _leave(str(error))

  # Orbax narrates every save; its warnings are enough.
  logging.get_absl_handler().addFilter(
    lambda record: record.levelno > 20 or "orbax" not in record.pathname
  )
  app.run(guarded, flags_parser=_parse)


def _parse(argv: list[str]) -> list[str]:
  """Parses the flags; a config file may fail in any way while it is read."""
  try:
    rest = flags.FLAGS(argv)
  except Exception as error:
    # A traceback inside the message ends with what went wrong.
    _leave(str(error).strip().split("\n")[-1])
  if flags.FLAGS.help:
    print(flags.FLAGS.main_module_help())
    sys.exit(0)
  return rest


def _leave(text: str):
  print(f"error: {' '.join(text.split())}", file=sys.stderr)
  sys.exit(2)
