"""All benchmarks of speed, one after the other: python -m benchmarks."""

from absl import app

from benchmarks import common, decode, learner, tree


def main(argv: list[str]) -> None:
  """Prints their tables."""
  del argv
  # Peers may be missing: what needs none comes first.
  for benchmark in (learner, tree, decode):
    common.main(benchmark.run)


if __name__ == "__main__":
  app.run(main)
