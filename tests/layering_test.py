"""The house keeps its plan: who may import whom, and what no file may hold.

Each rule is a function from a file's path and text to complaints, so that it
is tried on a wrong example as well as on the tree.
"""

import ast
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
FLOORS = (
  ("types", "config", "files"),
  ("world",),
  ("data",),
  ("tokenizer",),
  ("models",),
  ("decoding",),
  ("simulation",),
  ("rl",),
  ("evaluation",),
  ("training",),
  ("export",),
  ("launch",),
)
HEIGHT = {name: i for i, floor in enumerate(FLOORS) for name in floor}
LAUNCHER_LINES = 100


def _imports(path: str, text: str) -> list[tuple[int, str]]:
  """Line and dotted name of everything imported, however deeply nested."""
  found = []
  for node in ast.walk(ast.parse(text, path)):
    if isinstance(node, ast.Import):
      found += [(node.lineno, alias.name) for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      if node.level:  # Ruff forbids relative imports; here they'd hide arrows.
        found.append((node.lineno, "." * node.level + (node.module or "")))
      else:
        found += [
          (node.lineno, f"{node.module}.{alias.name}") for alias in node.names
        ]
  return found


def _floor(dotted: str) -> str | None:
  """`rerank_rl.data.schema` -> `data`; None outside the house."""
  parts = dotted.split(".")
  if parts[0] == "rerank_rl":
    return parts[1] if len(parts) > 1 else "rerank_rl"
  return parts[0] if parts[0] == "launch" else None


def _home(path: str) -> str:
  """The floor of a file; config files see no more than `config` does."""
  if path.startswith("configs/"):
    return "config"
  return _floor(path.removesuffix(".py").replace("/", ".")) or ""


def arrows(path: str, text: str) -> list[str]:
  """Imports that point up, or to no known floor."""
  wrong, home = [], _home(path)
  for line, name in _imports(path, text):
    floor = "relative" if name.startswith(".") else _floor(name)
    if floor is None:
      continue
    if floor not in HEIGHT:
      wrong.append(f"{path}:{line} imports {name}, which is on no floor")
    elif HEIGHT[floor] > HEIGHT.get(home, -1):
      wrong.append(f"{path}:{line} ({home}) imports {name} from above")
  return wrong


def confined(path: str, text: str) -> list[str]:
  """Libraries outside the folders that they are confined to."""
  wrong, home = [], _home(path)
  for line, name in _imports(path, text):
    if f"{name}.".startswith("tensorflow."):
      wrong.append(f"{path}:{line} imports TensorFlow")
    if f"{name}.".startswith("flax.linen.") and home != "models":
      wrong.append(f"{path}:{line} imports Linen outside models/")
    if name.split(".")[0] == "orbax" and home not in ("training", "export"):
      wrong.append(f"{path}:{line} imports Orbax outside training/, export/")
  return wrong


def asserts(path: str, text: str) -> list[str]:
  """Bare asserts: users get a ValueError, shapes get chex."""
  return [
    f"{path}:{node.lineno} has a bare assert"
    for node in ast.walk(ast.parse(text, path))
    if isinstance(node, ast.Assert)
  ]


def promises(path: str, text: str) -> list[str]:
  """Unfinished work that is called done."""
  word = re.compile(r"TODO|FIXME|XXX|NotImplemented")
  return [
    f"{path}:{i} says {match.group()}"
    for i, line in enumerate(text.splitlines(), 1)
    if (match := word.search(line))
  ]


def branches(path: str, text: str) -> list[str]:
  """Branches on a method's name: a method is a composition of parts."""
  word = re.compile(r"\bif .*(method|algo(rithm)?|config\.name) *==")
  return [
    f"{path}:{i} branches on a method's name"
    for i, line in enumerate(text.splitlines(), 1)
    if word.search(line)
  ]


def launchers(path: str, text: str) -> list[str]:
  """Launchers hold flags only."""
  lines = len(text.splitlines())
  if _home(path) == "launch" and lines > LAUNCHER_LINES:
    return [f"{path} has {lines} lines; a launcher holds flags only"]
  return []


RULES = (arrows, confined, asserts, promises, branches, launchers)


def _files() -> list[pathlib.Path]:
  folders = ("rerank_rl", "launch", "configs")
  return [p for f in folders for p in sorted((ROOT / f).rglob("*.py"))]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_tree_keeps_rule(rule):
  files = _files()
  assert len(files) > 10, f"{ROOT} does not look like the house"
  wrong = []
  for file in files:
    path = file.relative_to(ROOT).as_posix()
    wrong += rule(path, file.read_text())
  assert not wrong, "\n".join(wrong)


def test_every_folder_is_a_floor():
  folders = {p.parent.name for p in (ROOT / "rerank_rl").glob("*/__init__.py")}
  assert folders
  assert folders <= set(HEIGHT), folders - set(HEIGHT)


@pytest.mark.parametrize(
  "rule, path, text",
  [
    (arrows, "rerank_rl/decoding/a.py", "import rerank_rl.training.loop"),
    (arrows, "rerank_rl/data/a.py", "from rerank_rl import models"),
    (arrows, "rerank_rl/types.py", "from rerank_rl.world import world"),
    (arrows, "rerank_rl/rl/a.py", "def f():\n  from launch import train"),
    (arrows, "rerank_rl/rl/a.py", "from .. import training"),
    (arrows, "rerank_rl/rl/a.py", "import rerank_rl.utils"),
    (arrows, "configs/a.py", "import rerank_rl.rl.credit"),
    (confined, "rerank_rl/rl/a.py", "from flax import linen as nn"),
    (confined, "rerank_rl/rl/a.py", "import flax.linen as nn"),
    (confined, "rerank_rl/rl/a.py", "from flax.linen import Dense"),
    (confined, "rerank_rl/rl/a.py", "from orbax.checkpoint import v1 as ocp"),
    (confined, "rerank_rl/data/a.py", "import tensorflow as tf"),
    (confined, "rerank_rl/data/a.py", "from tensorflow import io"),
    (asserts, "rerank_rl/rl/a.py", "assert 1 + 1 == 2"),
    (promises, "rerank_rl/rl/a.py", "x = 1  # TODO: more"),
    (promises, "rerank_rl/rl/a.py", "raise NotImplementedError"),
    (branches, "rerank_rl/rl/a.py", 'if config.method == "vstar":'),
    (launchers, "launch/a.py", "\n" * (LAUNCHER_LINES + 1)),
  ],
)
def test_rule_can_fail(rule, path, text):
  assert rule(path, text)


@pytest.mark.parametrize(
  "rule, path, text",
  [
    (arrows, "rerank_rl/training/a.py", "from rerank_rl.rl import credit"),
    (arrows, "rerank_rl/rl/a.py", "from rerank_rl.rl import kl\nimport jax"),
    (arrows, "launch/a.py", "from rerank_rl import training"),
    (arrows, "configs/a.py", "from rerank_rl import config"),
    (confined, "rerank_rl/models/a.py", "from flax import linen as nn"),
    (confined, "rerank_rl/rl/a.py", "from flax import struct"),
    (confined, "rerank_rl/training/a.py", "import orbax.checkpoint"),
    (confined, "rerank_rl/data/a.py", "import tensorflow_datasets as tfds"),
    (launchers, "launch/a.py", "\n" * LAUNCHER_LINES),
  ],
)
def test_rule_lets_pass(rule, path, text):
  assert not rule(path, text)
