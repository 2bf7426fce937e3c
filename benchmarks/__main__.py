"""All benchmarks of speed, one after the other: python -m benchmarks."""

from absl import app

from benchmarks import common, decode, learner, simulator, tree


def main(argv: list[str]) -> None:
  """Prints their tables."""
  del argv
  # Peers may be missing: what needs none comes first.
  for benchmark in (learner, tree, decode):
    common.main(benchmark.run)
  simulator.run(simulator.Sizes(), common.pairs())


if __name__ == "__main__":
  app.run(main)
