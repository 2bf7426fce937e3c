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
    _leave(_reason(error, argv))
  if flags.FLAGS.help:
    print(flags.FLAGS.main_module_help())
    sys.exit(0)
  return rest


def _reason(error: Exception, argv: list[str]) -> str:
  """What went wrong while flags were parsed."""
  if isinstance(error, (AttributeError, KeyError)):
    # ml_collections names no more than the end of the field's path.
    path = str(error).rpartition(": ")[2].strip("\"'")
    for flag in argv:
      if f".{path}" in flag.partition("=")[0]:
        return f"{flag}: there is no such field; rerank_rl/config.py has all."
  # A traceback inside the message ends with what went wrong.
  return str(error).strip().split("\n")[-1]


def _leave(text: str):
  print(f"error: {' '.join(text.split())}", file=sys.stderr)
  sys.exit(2)
