import json
import re
import shutil
import types

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rerank_rl.config import ConfigError
from rerank_rl.training import checkpoint, fitting, mesh
from tests.training import toy


def place(tree, count=8):
  data = mesh.make(jax.devices()[:count])
  return jax.device_put(tree, mesh.shardings(data, tree))


def tree(seed=0):
  """Leaves of every kind that a state may hold."""
  rng = np.random.default_rng(seed)
  return place(
    {
      "state": toy.init(),
      "noise": jnp.asarray(rng.normal(size=(32, 3)), jnp.float32),
      "half": jnp.asarray(rng.normal(size=5), jnp.bfloat16),
      "flags": jnp.asarray([True, False]),
      "count": jnp.asarray(3 + seed, jnp.int32),
    }
  )


def save(folder, *steps):
  with checkpoint.Checkpoints(folder) as saved:
    for step in steps:
      saved.save(step, tree(step), {"step": step})


def restore(folder, like=None):
  with checkpoint.Checkpoints(folder) as saved:
    return saved.restore(tree() if like is None else like)


def test_round_trip_keeps_the_latest(tmp_path):
  save(tmp_path, 1, 2, 5)
  read, progress = restore(tmp_path)
  chex.assert_trees_all_equal(read, tree(5))
  assert progress == {"step": 5}
  assert sorted(p.name for p in tmp_path.iterdir()) == ["2", "5"]


def test_saving_where_it_was_loaded_from(tmp_path):
  save(tmp_path, 1)
  with checkpoint.Checkpoints(tmp_path) as saved:
    read, _ = saved.restore(tree())
    saved.save(1, read, {"step": "again"})  # There already: left alone.
    saved.save(2, read, {"step": 2})
  again, progress = restore(tmp_path)
  chex.assert_trees_all_equal(again, tree(1))
  assert progress == {"step": 2}


def test_saved_values_survive_donation(tmp_path):
  consume = jax.jit(
    lambda t: jax.tree.map(lambda x: x * 0, t), donate_argnums=0
  )
  big = {"x": place(jnp.arange(200_000, dtype=jnp.float32))}
  with checkpoint.Checkpoints(tmp_path) as saved:
    for step in range(5):
      saved.save(step, big, {})
      big = jax.tree.map(
        lambda x, z, s=step: x + z + s + 1,
        place({"x": jnp.arange(200_000, dtype=jnp.float32)}),
        consume(big),
      )
    read, _ = saved.restore(big)
  expected = np.arange(200_000, dtype=np.float32) + 4
  np.testing.assert_array_equal(read["x"], expected)


@pytest.mark.parametrize("how", ["remove", "cut", "flip"])
def test_damage_is_named_or_harmless(tmp_path, how):
  """Any one file of the latest checkpoint: exact values or a clear error."""
  whole, broken = tmp_path / "whole", tmp_path / "broken"
  save(whole, 1, 2)
  like, found = tree(), 0
  paths = [p for p in sorted((whole / "2").rglob("*")) if p.is_file()]
  for path in paths:
    shutil.copytree(whole, broken)
    victim = broken / path.relative_to(whole)
    data = bytearray(victim.read_bytes())
    if how == "remove":
      victim.unlink()
    elif how == "cut":
      victim.write_bytes(data[: len(data) // 2])
    else:
      data[len(data) // 2] ^= 1
      victim.write_bytes(data)
    try:
      read, progress = restore(broken, like)
    except ValueError as error:
      found += 1
      assert str(broken / "2") in str(error), (path, error)
      assert "damaged" in str(error) and "resume from step 1" in str(error)
    else:
      chex.assert_trees_all_equal(read, tree(2))
      assert progress == {"step": 2}
    shutil.rmtree(broken)
  assert found >= (len(paths) // 3)


def test_damaged_progress_is_named(tmp_path):
  like = {"x": place(jnp.arange(2.0))}
  with checkpoint.Checkpoints(tmp_path) as saved:
    for step in (1, 2):
      saved.save(step, like, {})
  path = tmp_path / "2" / "progress" / "data.json"
  whole = json.loads(path.read_text())
  parts = [{**whole, name: None} for name in whole]
  with checkpoint.Checkpoints(tmp_path) as saved:
    for content in ["", "[]", "null", "5", *map(json.dumps, parts)]:
      path.write_text(content)
      with pytest.raises(ConfigError, match=r"/2.* is damaged") as raised:
        saved.restore(like)
      text = str(raised.value)
      assert text.endswith(f"; remove {tmp_path / '2'} to resume from step 1.")
      assert "orbax" not in text and "progress" in text


def test_a_file_in_place_of_the_checkpoints_is_named(tmp_path):
  (tmp_path / "checkpoints").write_text("")
  with pytest.raises(ConfigError, match=r"checkpoints is damaged .*remove it"):
    checkpoint.Checkpoints(tmp_path / "checkpoints")


def test_a_flipped_bit_in_weights_is_seen(tmp_path):
  base = tree()
  sums = checkpoint._checksums(base)
  names = [
    jax.tree_util.keystr(p)
    for p, _ in jax.tree_util.tree_leaves_with_path(base)
  ]
  at = names.index("['noise']")
  data = np.asarray(base["noise"]).copy()
  for byte in range(0, data.nbytes, 7):
    changed = data.copy()
    changed.view(np.uint8).reshape(-1)[byte] ^= 1 << byte % 8
    other = checkpoint._checksums({"noise": changed})
    assert other[0] != sums[at]
  # And it does not depend on the devices.
  alone = jax.device_put(base, jax.devices()[0])
  assert checkpoint._checksums(alone) == sums


def test_the_remedy_works(tmp_path):
  save(tmp_path, 1, 2)
  for file in (tmp_path / "2" / "arrays").rglob("*"):
    if file.is_file():
      file.write_bytes(b"")
  with pytest.raises(ValueError, match="damaged"):
    restore(tmp_path)
  shutil.rmtree(tmp_path / "2")
  chex.assert_trees_all_equal(restore(tmp_path)[0], tree(1))


def test_another_model_is_named(tmp_path):
  save(tmp_path, 1)
  other = tree()
  other["noise"] = place(jnp.zeros((31, 3)))
  with pytest.raises(ValueError, match=r"1 holds arrays of other.*workdir"):
    restore(tmp_path, other)
  with pytest.raises(ValueError, match="holds no checkpoint"):
    restore(tmp_path / "none")


ARTIFACT = {
  "params": {"kernel": np.arange(6.0).reshape(2, 3)},
  "ids": np.asarray([2**40 + 1, 3], np.int64),
  "levels": [np.zeros(2, np.float32), np.ones((1, 2), np.int32)],
}


def test_artifact_round_trip(tmp_path):
  data = {**ARTIFACT, "jax": place(jnp.arange(4))}
  checkpoint.save_artifact(tmp_path / "a", data, {"fingerprint": "x", "n": 1})
  read, meta = checkpoint.load_artifact(tmp_path / "a")
  chex.assert_trees_all_equal(read, jax.tree.map(np.asarray, data))
  assert read["ids"].dtype == np.int64
  assert all(isinstance(x, np.ndarray) for x in jax.tree.leaves(read))
  assert meta == {"fingerprint": "x", "n": 1}
  assert checkpoint.artifact_ready(tmp_path / "a", "x")
  assert not checkpoint.artifact_ready(tmp_path / "a", "y")
  assert not checkpoint.artifact_ready(tmp_path / "b", "x")


def test_artifact_replaces_itself_or_stays(tmp_path, monkeypatch):
  checkpoint.save_artifact(tmp_path, ARTIFACT, {"fingerprint": "1"})
  read, _ = checkpoint.load_artifact(tmp_path)
  read["ids"] = read["ids"] + 1
  checkpoint.save_artifact(tmp_path, read, {"fingerprint": "2"})
  chex.assert_trees_all_equal(checkpoint.load_artifact(tmp_path)[0], read)
  assert len(list(tmp_path.iterdir())) == 2

  # A kill between the arrays and meta.json changes nothing.
  def kill(*_):
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(json, "dumps", kill)
    with pytest.raises(KeyboardInterrupt):
      checkpoint.save_artifact(tmp_path, ARTIFACT, {"fingerprint": "3"})
  assert checkpoint.artifact_ready(tmp_path, "2")
  chex.assert_trees_all_equal(checkpoint.load_artifact(tmp_path)[0], read)
  checkpoint.save_artifact(tmp_path, ARTIFACT, {"fingerprint": "3"})
  chex.assert_trees_all_equal(checkpoint.load_artifact(tmp_path)[0], ARTIFACT)


def test_artifact_damage_is_named(tmp_path):
  checkpoint.save_artifact(tmp_path / "a", ARTIFACT, {"fingerprint": "1"})
  for file in (tmp_path / "a" / "arrays-1").rglob("*"):
    if file.is_file() and file.parent.name == "d":
      file.unlink()
  with pytest.raises(ConfigError, match=r"/a/arrays-1 is damaged") as raised:
    checkpoint.load_artifact(tmp_path / "a")
  remedy = f"; remove {tmp_path / 'a'} and run the stage again."
  assert str(raised.value).endswith(remedy)
  with pytest.raises(ValueError, match="holds no artifact; run its stage"):
    checkpoint.load_artifact(tmp_path / "b")


@pytest.mark.parametrize(
  ("text", "reason"),
  [
    ("", "it is no JSON in UTF-8"),
    ("garbage", "it is no JSON in UTF-8"),
    ("[" * 9_999, "it is no JSON in UTF-8"),
    ("[]", "it is no JSON object"),
    ("null", "it is no JSON object"),
    ("5", "it is no JSON object"),
    ('{"meta": []}', "its 'meta' is missing or of another type"),
    ('{"meta": null}', "its 'meta' is missing or of another type"),
    ('{"meta": {}, "arrays": 7}', "its 'arrays' is missing or of another type"),
    (
      '{"meta": {}, "arrays": "a"}',
      "its 'checksums' is missing or of another type",
    ),
    (
      '{"meta": {}, "arrays": "arrays-x", "checksums": []}',
      "it names 'arrays-x' for its arrays",
    ),
  ],
)
def test_a_damaged_index_is_named(tmp_path, text, reason):
  path = tmp_path / "meta.json"
  path.write_text(text)
  words = f"{path} is damaged ({reason}); remove {tmp_path} and run the stage"
  with pytest.raises(ConfigError, match=re.escape(words)):
    checkpoint.artifact_ready(tmp_path, "x")
  with pytest.raises(ConfigError, match=re.escape(words)):
    checkpoint.load_artifact(tmp_path)


def test_what_is_no_file_or_folder_is_named(tmp_path):
  (tmp_path / "file").write_text("")
  (tmp_path / "folder" / "meta.json").mkdir(parents=True)
  with pytest.raises(ConfigError, match=r"\(Not a directory\); remove .*file "):
    checkpoint.artifact_ready(tmp_path / "file", "x")
  with pytest.raises(
    ConfigError, match=r"\(Is a directory\); remove .*folder "
  ):
    checkpoint.artifact_ready(tmp_path / "folder", "x")


def test_an_artifact_without_its_history_is_named(tmp_path, monkeypatch):
  setting = types.SimpleNamespace(folder=lambda stage: tmp_path)
  setting.identified = lambda stage: setting
  monkeypatch.setattr(fitting, "ready", lambda setting, stage: True)
  monkeypatch.setattr(fitting, "load_artifact", lambda folder: ({}, {"n": 1}))
  words = f"{tmp_path}/meta.json is damaged (its 'history' is missing"
  with pytest.raises(ConfigError, match=re.escape(words)):
    fitting.run(setting, "rl", "policy", None)
