"""Sequences: leave-one-out, and every training pair exactly once."""

import collections
import dataclasses
import itertools
import json

import numpy as np
import pytest

from rerank_rl.config import Config, ConfigError, DataConfig, NextItemConfig
from rerank_rl.data import amazon, load, public, sequences
from rerank_rl.types import PAD

ITEMS = 40


def _users(seed=0, count=30, longest=17):
  random = np.random.default_rng(seed)
  lengths = random.integers(sequences.LEAST, longest, count)
  return [random.permutation(ITEMS)[:n] for n in lengths]


def _events(users):
  first = np.r_[0, np.cumsum([len(user) for user in users])]
  return sequences.Events(np.concatenate(users).astype(np.int32), first)


def _pairs(windows):
  """How often each (item, target) is there."""
  real = windows.target != PAD
  pairs = zip(windows.item[real].tolist(), windows.target[real].tolist())
  return collections.Counter(pairs)


@pytest.mark.parametrize("width", (1, 4, 50))
def test_every_training_pair_is_there_once(width):
  users = _users()
  windows = sequences.training(_events(users), width)
  want = collections.Counter(
    pair for user in users for pair in itertools.pairwise(user[:-2].tolist())
  )
  assert _pairs(windows) == want
  real = windows.item != PAD
  np.testing.assert_array_equal(real, windows.place != PAD)
  np.testing.assert_array_equal(real, windows.target != PAD)
  # Within a sequence what follows is the target; places count from 0.
  goes_on = windows.place[:, 1:] > 0
  np.testing.assert_array_equal(
    windows.item[:, 1:][goes_on], windows.target[:, :-1][goes_on]
  )
  steps = windows.place[:, 1:] - windows.place[:, :-1]
  assert (steps[goes_on] == 1).all()
  assert (windows.place[:, 0] == 0).all()


def test_rows_are_nearly_full():
  windows = sequences.training(_events(_users(count=400)), 12)
  assert (windows.item != PAD).mean() > 0.97


@pytest.mark.parametrize("split, back", (("valid", 2), ("test", 1)))
def test_the_last_two_items_are_held_out(split, back):
  users = _users()
  windows = sequences.held_out(_events(users), split, 5)
  assert len(windows.item) == len(users)
  for row, user in enumerate(users):
    past = user[:-back][-5:]
    assert windows.target[row, -1] == user[-back]
    assert windows.item[row, 5 - len(past) :].tolist() == past.tolist()
    assert windows.place[row, 5 - len(past) :].tolist() == [*range(len(past))]
    assert (windows.item[row, : 5 - len(past)] == PAD).all()
  assert (windows.target[:, :-1] == PAD).all()


def test_held_out_items_are_in_no_training_row():
  user = np.arange(9)
  data = _events([user])
  windows = sequences.training(data, 4)
  assert not {7, 8} & set(np.r_[windows.item, windows.target].ravel().tolist())


def test_fewer_users_are_whole_users():
  users = _users()
  few = sequences.thinned(_events(users), 7)
  known = {tuple(user) for user in users}
  cut = np.split(few.item, few.first[1:-1])
  assert len(cut) == 7 and all(tuple(user) in known for user in cut)


def test_mistakes_are_one_sentence():
  none = np.zeros((ITEMS, 0), np.float32)
  make = lambda users: sequences.assemble(
    Config(), _events(users), np.arange(ITEMS), features=none, vectors=none
  )
  with pytest.raises(ConfigError, match="user number 1 has fewer than 3"):
    make([np.arange(5), np.arange(2)])
  with pytest.raises(ConfigError, match="outside the catalogue of 40"):
    make([np.arange(38, 42)])
  with pytest.raises(ConfigError, match="four items"):
    make([np.arange(3)])


def test_the_world_gives_sequences_without_repeats():
  config = Config()
  world = dataclasses.replace(
    config.world, num_items=60, num_train=50, history_size=8
  )
  config = dataclasses.replace(config, world=world)
  data = load.SEQUENCES["world"](config)
  test = data.splits["test"]
  assert data.sids is None and len(data.vectors) == len(data.item_ids) == 60
  for row in np.c_[test.item, test.target[:, -1:]]:
    row = row[row != PAD]
    assert len(set(row.tolist())) == len(row) >= sequences.LEAST


SIDS = {
  "0": ["<a_1>", "<b_2>"],
  "1": ["<a_1>", "<b_0>"],
  "2": ["<a_1>", "<b_2>"],
  "3": ["<a_0>", "<b_2>"],
  "4": ["<a_1>", "<b_2>"],
}
LINES = "1 1 2 3 4 5\n2 5 4 3\n"


def _config(folder):
  return Config(
    data=DataConfig(name="amazon_beauty", path=str(folder)),
    next_item=NextItemConfig(history=4),
  )


def _write(folder, lines=LINES, sids=SIDS):
  folder.mkdir(exist_ok=True)
  (folder / "sequences.txt").write_text(lines, errors="surrogateescape")
  (folder / "semantic_ids_4x256.json").write_text(json.dumps(sids))
  return _config(folder)


def test_amazon_files_become_sequences(tmp_path):
  data = amazon.load(_write(tmp_path / "a"))
  assert data.item_ids.tolist() == [1, 2, 3, 4, 5]
  assert data.splits["test"].target[:, -1].tolist() == [4, 2]
  # The first holder keeps its ID; others get a last code that is free.
  assert data.sids[[0, 1, 3]].tolist() == [[1, 2], [1, 0], [0, 2]]
  assert data.sids[[2, 4]].tolist() == [[1, 1], [1, 3]]


@pytest.mark.parametrize(
  "lines, sids, words",
  (
    ("", SIDS, "is empty"),
    (LINES + "3 1 x 2\n", SIDS, "line 3"),
    ("1 0 2 3\n", SIDS, "line 1"),
    (LINES + "\n3 1 2 4\n", SIDS, "line 3"),
    (f"1 2 3 {2**32 + 1}\n", SIDS, "line 1"),
    (f"1 2 3 {10**29}\n", SIDS, "line 1"),
    ("1 2 3 \udce9\n", SIDS, "UTF-8"),
    (LINES, SIDS | {"1": 5}, "item '1'"),
    (LINES, SIDS | {"1": [1, 2]}, "item '1'"),
    (LINES, SIDS | {"1": [f"<a_{10**29}>", "<b_1>"]}, "item '1'"),
    ("1 2 3 4 6\n", SIDS, "outside the catalogue of 5"),
    (LINES, SIDS | {"1": ["<a_1>"]}, "item '1' has 1 tokens"),
    (LINES, SIDS | {"1": ["<b_1>", "<a_1>"]}, "item '1'"),
    (LINES, SIDS | {"1": ["1", "2"]}, "item '1'"),
    (LINES, SIDS | {"6": ["<a_9>", "<b_9>"]}, "item '5'"),
  ),
)
def test_damaged_amazon_files_are_named(tmp_path, lines, sids, words):
  with pytest.raises(ConfigError, match=words):
    amazon.load(_write(tmp_path / "a", lines, sids))


def test_missing_amazon_files_are_named(tmp_path):
  config = _write(tmp_path / "a")
  (tmp_path / "a" / "sequences.txt").unlink()
  with pytest.raises(ConfigError, match=r"sequences\.txt is missing"):
    amazon.load(config)
  (tmp_path / "a" / "semantic_ids_4x256.json").write_text("{")
  with pytest.raises(ConfigError, match="no JSON"):
    amazon.load(config)


def test_amazon_beauty_is_as_published():
  config = Config(data=DataConfig(name="amazon_beauty"))
  try:
    public.folder(config)
  except ConfigError:
    pytest.skip("Amazon Beauty is not at hand")
  data = amazon.load(config)
  test = data.splits["test"]
  assert len(data.item_ids) == 12_101 and len(test.item) == 22_363
  pairs = (data.splits["train"].target != PAD).sum()
  # Of each user the first item has no predecessor, the last two are held out.
  assert pairs == 198_502 - 3 * 22_363
  assert len(np.unique(data.sids, axis=0)) == 12_101
