"""launch.train: a mistake is one sentence, and leaves nothing behind."""

from absl import app

from launch import errors
from tests import programs

MAIN = "--config=configs/glorank_rl.py"
TIGER = "--config=configs/tiger.py"

# A world that is there at once: some mistakes are seen when it is.
WORLD = (
  "--config.quick_compile=True",
  "--config.world.num_items=60",
  "--config.world.num_candidates=6",
  "--config.world.num_train=64",
  "--config.world.num_valid=8",
  "--config.world.num_test=8",
)

# (flags, words of the message); --workdir is added.
MISTAKES = (
  ((), ("--config",)),
  ((MAIN, "--nosuch=1"), ("nosuch",)),
  ((MAIN, "extra"), ("'extra' is not a flag",)),
  (("--config=configs/nope.py",), ("configs/nope.py",)),
  (("--config=README.md",), ()),
  ((MAIN + ":nosuch",), ("'nosuch' is unknown", "smoke")),
  ((MAIN + ":smoke,nosuch",), ("'nosuch' is unknown",)),
  ((MAIN + ":kuairand_pure,movielens_1m",), ("kuairand_pure and movielens",)),
  ((MAIN + ":movielens_1m,oracle",), ("config.protocol='oracle'", "world")),
  *(
    ((MAIN, f"--config.{field}={value}"), (f"{field}={value}",))
    for field, value in (
      ("rl.group", "abc"),
      ("rl.group", "1"),
      ("rl.group", "0"),
      ("rl.group", "-3"),
      ("rl.clip", "0.0"),
      ("rl.clip", "-1.0"),
      ("rl.clip", "nan"),
      ("rl.kl", "-0.1"),
      ("rl.kl", "inf"),
      ("rl.entropy", "nan"),
      ("rl.temperature", "-1.0"),
      ("rl.temperature", "0.0"),
      ("rl.temperature", "0.0001"),
      ("rl.epochs", "0"),
      ("sft.steps", "0"),
      ("sft.steps", "-1"),
      ("sft.batch_size", "0"),
      ("sft.learning_rate", "nan"),
      ("sft.learning_rate", "-0.1"),
      ("sft.clip_norm", "0.0"),
      ("sft.weight_decay", "-1.0"),
      ("sft.ema", "1.0"),
      ("sft.accumulate", "0"),
      ("sft.eval_every", "0"),
      ("sft.checkpoint_every", "0"),
      ("sft.patience", "-1"),
      ("sft.warmup_steps", "9999"),
      ("rl_train.warmup_steps", "9999"),
      ("rl_train.steps", "0"),
      ("evaluators.dim", "0"),
      ("evaluators.max_epochs", "0"),
      ("evaluators.batch_size", "-8"),
      ("evaluators.dropout", "1.5"),
      ("evaluators.members", "0"),
      ("tokenizer.levels", "0"),
      ("tokenizer.codes", "1"),
      ("tokenizer.iterations", "0"),
      ("policy.dim", "0"),
      ("policy.dim", "1"),
      ("policy.dim", str(10**12)),
      ("world.num_items", str(10**30)),
      ("seed", str(2**63)),
      ("policy.dim", "63"),
      ("policy.layers", "-2"),
      ("policy.heads", "0"),
      ("world.seed", "-1"),
      ("world.num_items", "0"),
      ("world.num_train", "0"),
      ("world.num_test", "-5"),
      ("world.slate_size", "0"),
      ("world.slate_size", "51"),
      ("world.cold_share", "1.0"),
      ("world.ranker_noise", "-1.0"),
      ("world.fatigue", "nan"),
      ("world.num_topics", "1"),
      ("world.latent_dim", "0"),
      ("world.history_size", "0"),
      ("demo.samples", "0"),
      ("seed", "-1"),
      ("seed", "1.5"),
    )
  ),
  *(
    ((MAIN, f"--config.{field}={value}"), (f"{field}='{value}'", "choose"))
    for field, value in (
      ("policy.head", "foo"),
      ("policy.dtype", "float99"),
      ("policy.dtype", "bfloat16"),
      ("data.name", "foo"),
      ("data.feedback", "foo"),
      ("demo.rule", "zzz"),
      ("protocol", "foo"),
      ("rl.explore", "foo"),
      ("rl.credit", "foo"),
      ("rl.credit", "group+group"),
      ("rl.objective", "foo"),
      ("rl.reward", "foo"),
    )
  ),
  *(
    ((MAIN, f"--config.{field}=1"), (f"{field}=1: there is no such field",))
    for field in ("nosuch", "rl.nosuch", "nosuch.group", "rl.group.nosuch")
  ),
  ((MAIN, "--config.data.weights=('a',)"), ("data.weights[0]='a'", "float")),
  ((MAIN, "--config.data.weights=(1e999,)"), ("(inf,) must be", "finite")),
  ((MAIN, "--config.rl.branching=(2.5,)"), ("branching[0]=2.5", "int")),
  ((MAIN, "--config.rl.branching=(2,0)"), ("branching=(2, 0)", ">= 1")),
  ((MAIN, "--config.stages=('rl',)"), ("'rl' without 'sft'",)),
  ((MAIN, "--config.stages=('tokenizer','sft')"), ("'evaluators'",)),
  ((MAIN, "--config.stages=('sft','tokenizer')"), ("order",)),
  ((MAIN, "--config.stages=('tokenizer','magic')"), ("'magic'",)),
  ((MAIN, "--config.stages=('evaluators','sft')"), ("'tokenizer'",)),
  ((MAIN, "--config.rl.explore=beam"), ("biased",)),
  ((MAIN, "--config.rl.temperature=0.5"), ("biased",)),
  (
    ("--config=configs/rover.py", "--config.rl_train.accumulate=8"),
    ("accumulate=8", "epochs=8"),
  ),
  (
    ("--config=configs/vstar.py", "--config.policy.head=hpn"),
    ("head='hpn'", "critic"),
  ),
  ((MAIN, "--config.data.name=imported"), ("config.data.path",)),
  (
    (MAIN, "--config.data.name=imported", "--config.data.path=/nonexistent"),
    ("/nonexistent",),
  ),
  (
    (MAIN + ":kuairand_pure", "--config.data.path=/nonexistent"),
    ("/nonexistent",),
  ),
  (
    (MAIN + ":movielens_1m", "--config.data.path=/nonexistent"),
    ("/nonexistent",),
  ),
  ((MAIN + ":kuairand_pure", "--config.rl.reward=world"), ("reward='world'",)),
  ((MAIN, *WORLD, "--config.data.weights=(1.0,2.0)"), ("weights",)),
  (
    (
      MAIN,
      *WORLD,
      "--config.rl.explore=fixed_tree",
      "--config.rl.credit=sibling",
      "--config.policy.head=pointer",
      "--config.world.slate_size=3",
    ),
    ("branching=(4, 1, 1, 2)", "3 tokens"),
  ),
  ((MAIN + ":amazon_beauty",), ("'amazon_beauty'", "choose")),
  ((TIGER + ":movielens_1m",), ("'movielens_1m'", "amazon_beauty")),
  ((TIGER, "--config.next_item.history=0"), ("next_item.history=0",)),
  ((TIGER, "--config.next_item.dropout=1.0"), ("next_item.dropout=1.0",)),
  ((TIGER, "--config.stages=('sft',)"), ("'sft'", "tokenizer")),
  (
    (TIGER + ":amazon_beauty", "--config.data.path=/nonexistent"),
    ("/nonexistent",),
  ),
  ((MAIN, "--num_processes=2"), ("coordinator",)),
  *(
    (
      (MAIN, f"--coordinator={at}", "--num_processes=1", "--process_id=0"),
      (at, "port"),
    )
    for at in ("localhost:abc", "localhost:99999", "no host:1234")
  ),
  ((MAIN, "--config.rl.grup=8"), ("rl.grup=8", "did you mean", "group")),
  ((MAIN, "--config.rl.learning-rate=8"), ("rl.learning-rate=8",)),
  ((MAIN, "--config.rl=abc"), ("--config.rl=abc", "FIELD=VALUE")),
  ((MAIN, "--config.name=optimum"), ("config.name='optimum'", "another")),
  ((MAIN, "--config.protocol=recovery"), ("'recovery'", "real data")),
  ((MAIN, "--artifacts=README.md/x"), ("--artifacts=README.md/x", "folder")),
  ((MAIN, f"--artifacts={'x' * 300}"), ("--artifacts=xxx", "folder")),
)


def _train(argv: list[str]) -> None:
  # Its flags are those of this process alone.
  from launch import train

  errors.run(app, train.main)  # It reads sys.argv.


def _run(*argv: object, devices: int = 1) -> tuple[int | None, str]:
  """The status of launch.train, and what it printed."""
  return programs.Program(_train, argv, devices).end()


def _complaint(text: str) -> str:
  """The only line that is not a log line."""
  (line,) = [x for x in text.splitlines() if x.startswith("error: ")]
  return line


def test_every_mistake_is_one_sentence_and_leaves_nothing(tmp_path):
  work = tmp_path / "work"
  for flags, words in MISTAKES:
    code, text = _run(*flags, f"--workdir={work}")
    assert code == 2, (flags, code, text[-2000:])
    assert "Traceback" not in text, (flags, text)
    line = _complaint(text)
    assert len(line) < 500, line
    assert all(word in line for word in words), (flags, line)
    assert not work.exists(), (flags, list(work.rglob("*")))


def test_a_batch_that_devices_do_not_divide_is_refused_at_once(tmp_path):
  work = tmp_path / "work"
  flags = *WORLD, "--config.evaluators.batch_size=9", f"--workdir={work}"
  code, text = _run(MAIN, *flags, devices=3)
  assert code == 2 and "Traceback" not in text, text[-2000:]
  words = "config.sft.batch_size=64 cannot be split over 3 devices"
  assert words in _complaint(text)
  assert not work.exists()


TINY = (
  MAIN,
  "--config.protocol=oracle",
  "--config.stages=('tokenizer',)",
  *WORLD,
  "--config.world.slate_size=2",
  "--config.tokenizer.codes=8",
  "--config.tokenizer.iterations=2",
)


def test_what_is_damaged_is_named_and_the_remedy_works(tmp_path):
  work = tmp_path / "work"
  argv = *TINY, f"--workdir={work}"
  code, text = _run(*argv)
  assert code == 0, text[-3000:]
  good = (work / "report.json").read_bytes()
  # What is refused late leaves the finished run as it was.
  noted = (work / "config.json").read_bytes()
  few = "--config.tokenizer.codes=2", "--config.tokenizer.levels=1"
  code, text = _run(*argv, *few)
  assert code == 2 and "Traceback" not in text, text[-2000:]
  assert (work / "config.json").read_bytes() == noted
  (tokenizer,) = work.glob("tokenizer-*/tokenizer.npz")
  (bounds,) = work.glob("bounds-*/meta.json")
  for victim in (tokenizer, bounds):
    data = victim.read_bytes()
    victim.write_bytes(data[: len(data) // 2])
    code, text = _run(*argv)
    assert code == 2, text[-3000:]
    assert "Traceback" not in text
    line = _complaint(text)
    assert str(victim.parent) in line and "remove" in line, line
    assert (work / "report.json").read_bytes() == good
    victim.unlink()
  code, text = _run(*argv)
  assert code == 0, text[-3000:]
  assert (work / "report.json").read_bytes() == good


def test_a_workdir_that_is_a_file(tmp_path):
  (tmp_path / "file").write_text("mine")
  for name in ("file", "file/below"):
    code, text = _run(*TINY, f"--workdir={tmp_path / name}")
    assert code == 2 and "Traceback" not in text, text[-2000:]
    assert str(tmp_path / "file") in _complaint(text)
  assert (tmp_path / "file").read_text() == "mine"


def test_a_config_file_that_cannot_be_read_is_named(tmp_path):
  """Whatever it does: it is the user's own code."""
  files = {
    "import sys\ndef get_config(): sys.exit(0)": "SystemExit",
    "def get_config(): return 1 / 0": "division by zero",
    "def get_config(): return {'seed': 1}": "gives dict",
    "import nosuchpackage": "nosuchpackage",
    "from ml_collections import ConfigDict\n"
    "def get_config(): return ConfigDict({'sft': 3})": "config.sft=3",
  }
  path = tmp_path / "config.py"
  for source, words in files.items():
    path.write_text(source)
    code, text = _run(f"--config={path}", f"--workdir={tmp_path / 'work'}")
    assert code == 2 and "Traceback" not in text, text
    assert words in _complaint(text), text
  assert not (tmp_path / "work").exists()
