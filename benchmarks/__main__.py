"""Runs every benchmark: python -m benchmarks."""

from absl import app

from benchmarks import common, decode, learner, tree

if __name__ == "__main__":
  # Peers may be missing: what needs none comes first.
  app.run(lambda argv: [common.main(b.run) for b in (learner, tree, decode)])
