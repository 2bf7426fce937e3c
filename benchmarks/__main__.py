"""All benchmarks of speed, one after the other: python -m benchmarks."""

from absl import app

from benchmarks import common, decode, learner, simulator, tree
from launch import errors


def main() -> None:
  """Prints their tables."""
  # Peers may be missing: what needs none comes first.
  for benchmark in (learner, tree, decode):
    common.main(benchmark.run)
  simulator.run(simulator.Sizes(), common.pairs())


if __name__ == "__main__":
  errors.run(app, main)
