"""Files that a run left or a user names: what they may be, in one place."""

import errno
import json
import pathlib
from typing import Any

from rerank_rl.config import ConfigError


def standing(path: pathlib.Path) -> pathlib.Path:
  """The nearest of a path and what is above it that is there.

  A link to nowhere is there, too.

  Raises:
    OSError: a name is longer than any may be.
  """
  try:
    path.lstat()
  except OSError as error:  # Not there, below a file or in a loop of links.
    if error.errno == errno.ENAMETOOLONG:
      raise
    return standing(path.absolute().parent)
  return path


def read_object(
  path: pathlib.Path, remedy: str, **fields: type
) -> dict[str, Any]:
  """The JSON object in a file.

  Args:
    path: the file.
    remedy: what to do about a damaged one.
    **fields: the types of those that it must have.

  Raises:
    FileNotFoundError: it is not there.
    ConfigError: it is damaged.
  """
  try:
    text = path.read_bytes()
  except FileNotFoundError:
    raise
  except OSError as error:
    raise damaged(path, str(error.strerror), remedy) from error
  return parse_object(text, path, remedy, **fields)


def parse_object(
  text: str | bytes, name: Any, remedy: str, **fields: type
) -> dict[str, Any]:
  """As `read_object`, of the text of what is called `name`."""
  try:
    value = json.loads(text)
  # RecursionError: nested too deeply.
  except (ValueError, RecursionError) as error:
    raise damaged(name, "it is no JSON in UTF-8", remedy) from error
  return check_object(value, name, remedy, **fields)


def check_object(
  value: Any, name: Any, remedy: str, **fields: type
) -> dict[str, Any]:
  """As `read_object`, of what was parsed already."""
  if not isinstance(value, dict):
    raise damaged(name, "it is no JSON object", remedy)
  for field, kind in fields.items():
    if not isinstance(value.get(field), kind):
      reason = f"its {field!r} is missing or of another type"
      raise damaged(name, reason, remedy)
  return value


def damaged(name: Any, reason: str, remedy: str) -> ConfigError:
  """What to raise of a damaged file, or folder, and what to do about it."""
  return ConfigError(f"{name} is damaged ({reason}); {remedy}.")
