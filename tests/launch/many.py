"""Runs launch.train once for every line of arguments, each in a fork.

python -m tests.launch.many FOLDER < cases.json

Imports are paid for once. For case i, FOLDER/i.txt gets what was printed; the
exit statuses are printed as JSON.
"""

import json
import os
import pathlib
import sys
import traceback

from absl import app

from launch import errors, train


def _one(argv: list[str], out: pathlib.Path) -> int:
  child = os.fork()
  if child:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
  with out.open("w") as file:
    os.dup2(file.fileno(), 1)
    os.dup2(file.fileno(), 2)
  sys.argv = ["train", *argv]
  status = 99  # Neither an end nor a refusal.
  try:
    errors.run(app, train.main)
  except SystemExit as end:
    status = end.code or 0
  except BaseException:  # The fork must not go on as its parent.
    traceback.print_exc()
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(status)


if __name__ == "__main__":
  folder = pathlib.Path(sys.argv[1])
  cases = json.load(sys.stdin)
  print(json.dumps([_one(c, folder / f"{i}.txt") for i, c in enumerate(cases)]))
