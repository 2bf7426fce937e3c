"""Benchmarks of speed beside what else would do: python -m benchmarks.

Each is a process of its own, as by `python -m benchmarks.NAME`: how many
devices JAX has is settled once. Flags go to all of them.
"""

import subprocess
import sys

# Peers may be missing: what needs none comes first.
NAMES = ("learner", "tree", "decode", "simulator")


def main() -> int:
  """Prints their tables, until one fails; its status."""
  for name in NAMES:
    command = [sys.executable, "-m", f"benchmarks.{name}", *sys.argv[1:]]
    status = subprocess.run(command, check=False).returncode
    if status:
      return status
  return 0


if __name__ == "__main__":
  sys.exit(main())
