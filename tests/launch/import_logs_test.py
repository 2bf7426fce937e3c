"""The command itself, in a process of its own."""

import json
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]


def command(*arguments: str) -> subprocess.CompletedProcess:
  return subprocess.run(
    [sys.executable, "-m", "launch.import_logs", *arguments],
    capture_output=True,
    text=True,
    cwd=ROOT,
    timeout=120,
  )


def test_flags_that_are_wrong_or_missing_cost_no_traceback():
  for arguments in (["--fake=1"], []):
    done = command(*arguments)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_an_import_needs_no_tensorflow_and_says_what_it_made(tmp_path):
  items = [{"item_id": k, "price": k} for k in range(4)]
  rows = [
    {"request_id": k, "timestamp": k, "history": [], "candidates": [0, 1, 2, 3],
     "scores": [1, 2, 3, 4], "shown": [2, 0], "click": [1, 0],
     "café": 1}
    for k in range(10)
  ]  # fmt: skip
  for name, table in (("items", items), ("log", rows)):
    text = "".join(json.dumps(row) + "\n" for row in table)
    (tmp_path / f"{name}.jsonl").write_text(text)
  # A TensorFlow that fails when imported comes first on the path.
  (tmp_path / "tensorflow.py").write_text("raise SystemExit('tensorflow')")
  flags = [
    f"--impressions={tmp_path}/log.jsonl",
    f"--items={tmp_path}/items.jsonl",
    f"--out={tmp_path}/out",
  ]
  done = subprocess.run(
    [sys.executable, "-m", "launch.import_logs", *flags],
    capture_output=True,
    text=True,
    cwd=ROOT,
    env={
      "PYTHONPATH": str(tmp_path),
      "JAX_PLATFORMS": "cpu",
      "PYTHONIOENCODING": "ascii",
    },
    timeout=120,
  )
  assert done.returncode == 0, done.stderr
  assert "10 impressions (train 8, valid 1, test 1) of 4 items" in done.stdout
  assert r"columns not used: caf\xe9." in done.stdout
  assert (tmp_path / "out" / "manifest.json").is_file()
  again = command(*flags)
  assert again.returncode == 2
  assert again.stderr.count("\n") == 1
  assert "--overwrite" in again.stderr
