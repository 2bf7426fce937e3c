import dataclasses
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import jax
from jax import export
import jax.numpy as jnp
import numpy as np
from orbax.checkpoint import v1 as ocp
import pytest

from rerank_rl.config import Config, PolicyConfig, fingerprint
from rerank_rl.decoding import sample
from rerank_rl.export import bundle
from rerank_rl.models.policy import make_policy
from rerank_rl.models.prefix_lm import Sizes
from rerank_rl.tokenizer import semantic_ids
from rerank_rl.tokenizer.residual_kmeans import Codebook
from tests import toys

# Two levels and slots: every test compiles, and that is all its time.
SIZES = Sizes(codes=5, levels=2, slots=2, history=4, candidates=5)
CATALOGUE = toys.catalogue(sizes=SIZES)
CODEBOOK = Codebook(np.arange(20, dtype=np.float32).reshape(2, 5, 2))
IDS = np.array([f"item-{k}" for k in range(20)])
POLICY = make_policy(PolicyConfig(dim=16, layers=1), SIZES)


@pytest.fixture(scope="module")
def params():
  # Shapes alone: compiling the initialisation would take longer than all else.
  like = jax.eval_shape(
    POLICY.init, jax.random.key(0), CATALOGUE, toys.request(sizes=SIZES)
  )
  random = np.random.default_rng(0)
  return jax.tree.map(
    lambda x: (random.normal(size=x.shape) * 0.4).astype(x.dtype), like
  )


def _save(out, params):
  return bundle.save(
    out,
    POLICY,
    params,
    CATALOGUE,
    IDS,
    CODEBOOK,
    Config(),
    toys.request(sizes=SIZES),
  )


@pytest.fixture(scope="module")
def saved(tmp_path_factory, params):
  out = tmp_path_factory.mktemp("export") / "deep" / "bundle"
  _save(out, params)
  return out


@pytest.fixture
def copy(saved, tmp_path):
  return shutil.copytree(saved, tmp_path / "copy")


def test_any_batch_gives_what_the_policy_gives(saved, params):
  blob = (saved / "rerank.stablehlo").read_bytes()
  program = export.deserialize(bytearray(blob))
  assert set(program.platforms) == {"cpu", "cuda", "tpu"}
  request = toys.request(seed=5, batch=7, sizes=SIZES)
  want = jax.jit(lambda p, r: sample.greedy(POLICY, p, CATALOGUE, r))(
    params, request
  )
  assert len(np.unique(np.asarray(want), axis=0)) > 3
  fields = {
    f.name: getattr(request, f.name) for f in dataclasses.fields(request)
  }
  plain = {name: x for name, x in fields.items() if x is not None}
  catalogue = {"features": CATALOGUE.features, "sids": CATALOGUE.sids}
  for batch in (1, 7):
    part = {name: x[:batch] for name, x in plain.items()}
    out = program.call(params, catalogue, part)
    assert set(out) == {"slate"}
    assert out["slate"].dtype == jnp.int32
    np.testing.assert_array_equal(out["slate"], want[:batch])


def test_the_readme_needs_jax_and_numpy_alone(saved):
  readme = (saved / "README.md").read_text()
  code = re.search(r"```python\n(.*?)```", readme, re.DOTALL).group(1)
  code += "import sys\n"
  code += "print({'flax', 'orbax', 'rerank_rl'} & set(sys.modules))\n"
  env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
  done = subprocess.run(
    [sys.executable, "-I", "-c", code],
    cwd=saved,
    env=env | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  assert done.stdout == "golden: True\nset()\n"


def test_the_parts_are_what_was_given(saved, params):
  loaded = ocp.load(saved / "params")
  jax.tree.map(np.testing.assert_array_equal, loaded, params)
  codebook, sids = semantic_ids.load(saved / "codebook.npz")
  np.testing.assert_array_equal(codebook.centroids, CODEBOOK.centroids)
  np.testing.assert_array_equal(sids, CATALOGUE.sids)
  np.testing.assert_array_equal(np.load(saved / "item_ids.npy"), IDS)
  manifest = json.loads((saved / "manifest.json").read_text())
  sizes = {k: manifest["sizes"][k] for k in SIZES._fields}
  assert sizes == SIZES._asdict()
  files = {
    p.relative_to(saved).as_posix() for p in saved.rglob("*") if p.is_file()
  }
  assert set(manifest["sha256"]) == files - {"manifest.json"}


def test_every_damaged_file_is_named(copy):
  files = sorted(p for p in copy.rglob("*") if p.is_file())
  for path in files:
    whole = path.read_bytes()
    changed = bytearray(whole or b"\0")  # Some markers are empty.
    changed[len(changed) // 2] ^= 1
    short = [whole[:-2]] if whole else []
    for content in (bytes(changed), *short, None):
      if content is None:
        path.unlink()
      else:
        path.write_bytes(content)
      with pytest.raises(ValueError, match=re.escape(str(path))):
        bundle.verify(copy)
    path.write_bytes(whole)


def _forge(folder: pathlib.Path, **changes):
  """Rewrites the manifest so that all its checksums hold."""
  path = folder / "manifest.json"
  manifest = json.loads(path.read_text()) | changes
  del manifest["checksum"]
  path.write_text(json.dumps(manifest | {"checksum": fingerprint(manifest)}))


def test_what_checksums_miss_is_found_and_versions_are_a_warning(
  copy, monkeypatch
):
  said = []
  monkeypatch.setattr(bundle.logging, "warning", lambda *x: said.append(x))
  with np.load(copy / "golden.npz") as file:
    golden = dict(file)
  golden["slate"] = golden["slate"][:, ::-1]
  np.savez(copy / "golden.npz", **golden)
  manifest = json.loads((copy / "manifest.json").read_text())
  digest = bundle._digest(copy / "golden.npz")
  _forge(
    copy,
    sha256=manifest["sha256"] | {"golden.npz": digest},
    versions=manifest["versions"] | {"jax": "0.0.1"},
  )
  with pytest.raises(ValueError, match="does not give the slates"):
    bundle.verify(copy)
  assert [x[1:3] for x in said] == [("jax", "0.0.1")]


@pytest.mark.parametrize("field", ["sha256", "arrays", "versions"])
def test_a_manifest_of_something_else_is_named(tmp_path, field):
  fields = {"sha256": {}, "arrays": {}, "versions": {}, "golden_platform": ""}
  path = tmp_path / "manifest.json"
  path.write_text(json.dumps({**fields, "checksum": ""}))
  _forge(tmp_path, **{field: None})
  words = (
    rf"{path} is damaged \(its '{field}' is missing .*export the run again"
  )
  with pytest.raises(ValueError, match=words):
    bundle.verify(tmp_path)
  path.write_text("[" * 100_000)
  with pytest.raises(ValueError, match=rf"{path} is damaged .*run again"):
    bundle.verify(tmp_path)


@pytest.mark.parametrize("blob", [b"made by another jax", b""])
def test_a_program_that_jax_cannot_read_is_named(copy, blob):
  path = copy / "rerank.stablehlo"
  path.write_bytes(blob)
  manifest = json.loads((copy / "manifest.json").read_text())
  _forge(
    copy,
    sha256=manifest["sha256"] | {path.name: bundle._digest(path)},
    versions=manifest["versions"] | {"jax": "0.0.1"},
  )
  words = rf"{path}, made with jax 0.0.1, cannot be read by jax .*export"
  with pytest.raises(ValueError, match=words):
    bundle.verify(copy)


def test_an_out_that_cannot_be_made_is_refused_at_once(tmp_path):
  (tmp_path / "file").write_text("")
  (tmp_path / "loop").symlink_to("loop")
  (tmp_path / "empty").mkdir()
  (tmp_path / "link").symlink_to("empty")
  for out, words in [
    ("file/bundle", "file is not a folder"),
    ("file/deep/bundle", "file is not a folder"),
    ("loop/bundle", "loop is not a folder"),
    ("loop", "loop is not an empty folder"),
    ("link", "link is not an empty folder"),
  ]:
    with pytest.raises(ValueError, match=f"/{words}; give another --out"):
      bundle.check_absent(tmp_path / out)
  bundle.check_absent(tmp_path / "link" / "deep" / "bundle")


def test_a_folder_in_place_of_the_tokenizer_is_named(tmp_path):
  with pytest.raises(ValueError, match=r"not an intact tokenizer.*remove it"):
    semantic_ids.load(tmp_path)


def test_what_is_there_stays(copy, params):
  before = {p: p.stat().st_mtime_ns for p in copy.rglob("*")}
  with pytest.raises(ValueError, match="not an empty folder"):
    _save(copy, params)
  with pytest.raises(ValueError, match="not an empty folder"):
    _save(copy / "README.md", params)
  assert before == {p: p.stat().st_mtime_ns for p in copy.rglob("*")}


def test_a_bundle_that_fails_its_own_check_never_appears(
  tmp_path, params, monkeypatch
):
  def fail(path):
    assert (path / "manifest.json").exists()
    raise ValueError("broken")

  constant = lambda p, c, r: {"slate": r["candidates"][:, :2]}
  monkeypatch.setattr(bundle, "_ranker", lambda policy: constant)
  monkeypatch.setattr(bundle, "verify", fail)
  with pytest.raises(ValueError, match="broken"):
    _save(tmp_path / "out", params)
  assert not list(tmp_path.iterdir())


def test_arrays_keep_types_that_numpy_does_not_know(tmp_path):
  tree = {"a": {"b": np.asarray(jnp.arange(3, dtype=jnp.bfloat16))}}
  bundle._save_tree(tmp_path / "x.npz", tree)
  out = bundle._load_tree(tmp_path / "x.npz", bundle._specs(tree))
  assert out["a"]["b"].dtype == jnp.bfloat16
  np.testing.assert_array_equal(out["a"]["b"], tree["a"]["b"])
