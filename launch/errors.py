"""One clear sentence and a non-zero status for a user's mistakes."""

from collections.abc import Callable
import errno
import re
import sys

from absl import flags, logging

# What ml_collections says of a flag that is no --config.FIELD=VALUE.
_UNREADABLE = re.compile("malformed node|Could not parse|not a valid index")
# What jax says of a device, or a machine, that lacks the memory.
_FULL = re.compile("RESOURCE_EXHAUSTED|Out of memory")


def run(app, main: Callable[[], None]) -> None:
  """Runs `main` under absl's `app`; a ValueError or OSError is the user's.

  So is a machine that lacks the memory or the device that it is asked for.

  Raises:
    SystemExit: with status 2 and one line on stderr.
  """

  def guarded(argv):
    if len(argv) > 1:
      _leave(f"{argv[1]!r} is not a flag; use --flag=value.")
    try:
      main()
    except MemoryError as error:
      _leave(f"out of memory ({error}); ask for less, or use another machine.")
    except RuntimeError as error:  # Of jax, which has no type for it.
      if not _FULL.search(str(error)):
        raise
      first = str(error).strip().splitlines()[0]
      _leave(f"{first}; use a smaller batch_size, group or policy.dim.")
    except (ValueError, OSError) as error:
      logging.debug("traceback", exc_info=True)
      full = getattr(error, "errno", None) == errno.ENOSPC
      hint = "; free some, then give the same command again." if full else ""
      _leave(f"{error}{hint}")

  # They narrate every save, file and missing TPU; their warnings are enough.
  narrators = re.compile("orbax|tensorflow_datasets|xla_bridge")
  logging.get_absl_handler().addFilter(
    lambda record: record.levelno > 20 or not narrators.search(record.pathname)
  )
  app.run(guarded, flags_parser=_parse)


def _parse(argv: list[str]) -> list[str]:
  """Parses the flags; a config file may fail in any way while it is read."""
  try:
    rest = flags.FLAGS(argv)
  except (Exception, SystemExit) as error:
    if any(flag.lstrip("-").startswith("help") for flag in argv):
      raise
    _leave(_reason(error, argv))
  if flags.FLAGS.help:
    print(flags.FLAGS.main_module_help())
    sys.exit(0)
  return rest


def _reason(error: BaseException, argv: list[str]) -> str:
  """What went wrong while flags were parsed."""
  text = str(error).strip()
  fields = [flag for flag in argv if flag.startswith("--config.")]
  if isinstance(error, (AttributeError, KeyError)):
    # ml_collections names no more than the end of the field's path, and
    # perhaps another that it looks like.
    named, _, like = text.partition("Did you mean ")
    path = named.rpartition(": ")[2].replace("\\n", "").strip("\\\"' \n")
    for flag in fields:
      if f".{path}" in flag.partition("=")[0]:
        hint = f" (did you mean {like.split()[0]}?)" if like else ""
        return (
          f"{flag}: there is no such field{hint}; rerank_rl/config.py has all."
        )
  if _UNREADABLE.search(text):
    return (
      f"{' '.join(fields)} cannot be read; write --config.FIELD=VALUE with a "
      "field of rerank_rl/config.py."
    )
  # A traceback inside the message ends with what went wrong.
  text = text.split("\n")[-1]
  if isinstance(error, (ValueError, flags.Error)):
    return text
  given = [flag for flag in argv if flag.startswith("--config=")]
  return f"{' '.join(given)} cannot be read: {type(error).__name__}: {text}."


def _leave(text: str):
  print(f"error: {' '.join(text.split())}", file=sys.stderr)
  sys.exit(2)
