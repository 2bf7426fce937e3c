"""One clear sentence and a non-zero status for a user's mistakes."""

import sys

from absl import logging


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
      text = " ".join(str(error).split())
      print(f"error: {text}", file=sys.stderr)
      sys.exit(2)

  # Orbax narrates every save; its warnings are enough.
  logging.get_absl_handler().addFilter(
    lambda record: record.levelno > 20 or "orbax" not in record.pathname
  )
  app.run(guarded)
