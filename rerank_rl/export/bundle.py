"""A trained policy as a folder that serves without this package.

    manifest.json     versions, sizes, shapes and types, checksums
    README.md         how to load the folder with JAX and numpy alone
    config.json       the run's configuration
    rerank.stablehlo  greedy reranking, any batch size (`jax.export`)
    arrays.npz        its parameters and the catalogue, by path
    golden.npz        a request and the slates that it must give
    item_ids.npy      the owner's identifiers, by catalogue row
    codebook.npz      the tokenizer, to give new items semantic IDs
    params/           the same parameters as an Orbax checkpoint

The program takes parameters and catalogue as arguments, so that new ones of
the same shapes serve without another export.
"""

import dataclasses
import hashlib
from importlib import metadata
import json
import os
import pathlib
import shutil
from typing import Any

from absl import logging
from flax import traverse_util
import jax
from jax import export
import jax.numpy as jnp
import numpy as np
from orbax.checkpoint import v1 as ocp

from rerank_rl.config import Config, fingerprint
from rerank_rl.decoding import sample
from rerank_rl.files import check_object, read_object, standing
from rerank_rl.models.policy import Policy
from rerank_rl.tokenizer import semantic_ids
from rerank_rl.tokenizer.residual_kmeans import Codebook
from rerank_rl.types import Array, Catalogue, Request

MANIFEST = "manifest.json"
PLATFORMS = ("cpu", "cuda", "tpu")
_PROGRAM, _ARRAYS, _GOLDEN = "rerank.stablehlo", "arrays.npz", "golden.npz"
_PACKAGES = (
  "jax",
  "jaxlib",
  "flax",
  "orbax-checkpoint",
  "numpy",
  "rerank_rl",
)
_README = """\
# {name}

Greedy reranking: `rerank(params, catalogue, request)["slate"]`, as below, is
i32[b, {slots}], positions in `request["candidates"]`, best first, -1 behind the
last. `request` holds the arrays that `manifest.json` lists under "request", of
just these widths; b is any batch size.

- `history`: catalogue rows (`item_ids.npy` gives each row's identifier), oldest
  first, filled up with -1 in front.
- `candidates`: catalogue rows, filled up with -1 behind.
- `scores`: the upstream ranker's, as they are, 0 where there is no candidate.
- `user`: the user's features, in the order and on the scale of the training
  data's columns.
- `size`: how many items to show, at most {slots}.

It needs jax, numpy and flatbuffers; run this in this folder:

```python
import json
import pathlib

import jax
from jax import export
import numpy as np

folder = pathlib.Path(".")
manifest = json.loads((folder / "manifest.json").read_text())


def read(name):
  tree = {{}}
  with np.load(folder / name) as file:
    for path, value in file.items():
      *parents, leaf = path.split("/")
      node = tree
      for part in parents:
        node = node.setdefault(part, {{}})
      dtype = manifest["arrays"][name][path]["dtype"]
      node[leaf] = value.view(jax.numpy.dtype(dtype))
  return tree


blob = (folder / "rerank.stablehlo").read_bytes()
rerank = jax.jit(export.deserialize(bytearray(blob)).call)
arrays, golden = read("arrays.npz"), read("golden.npz")
out = rerank(arrays["params"], arrays["catalogue"], golden["request"])
print("golden:", np.array_equal(out["slate"], golden["slate"]))
```

`params/` holds the same parameters as an Orbax checkpoint
(`orbax.checkpoint.v1.load("params")`), `codebook.npz` the tokenizer
(`centroids`, `sids`).
"""


def check_absent(out: str | os.PathLike) -> None:
  """Refuses to write over something.

  Raises:
    ValueError: `out` is a file, a link or a folder that is not empty, or
      something above it is no folder.
  """
  out = pathlib.Path(out)
  empty = out.is_dir() and not any(out.iterdir())
  # A folder cannot be moved onto a link.
  if out.is_symlink() or (out.exists() and not empty):
    raise ValueError(f"{out} is not an empty folder; give another --out.")
  above = standing(out.absolute().parent)
  if not above.is_dir():
    raise ValueError(f"{above} is not a folder; give another --out.")


def save(
  out: str | os.PathLike,
  policy: Policy,
  params: Any,
  catalogue: Catalogue,
  item_ids: np.ndarray,
  codebook: Codebook,
  config: Config,
  request: Request,
) -> dict[str, Any]:
  """Writes a bundle and tries it; whole or not at all.

  Args:
    out: a folder that is absent or empty.
    policy: pure functions.
    params: its parameters, nested dicts.
    catalogue: M items.
    item_ids: [M], integers or strings.
    codebook: what gave the items their semantic IDs.
    config: the run's.
    request: the golden input, B >= 1.

  Returns:
    The manifest.

  Raises:
    ValueError: `out` is taken, or the bundle does not give back what
      `sample.greedy` gives.
  """
  check_absent(out)
  out = pathlib.Path(out).absolute()
  arrays = _host({"params": params, "catalogue": _fields(catalogue)})
  example = _host(_fields(request))
  rank = _ranker(policy)
  slate = jax.jit(rank)(arrays["params"], arrays["catalogue"], example)
  golden = {"request": example, **_host(slate)}
  part = out.with_name(f".{out.name}.{os.getpid()}.part")
  part.mkdir(parents=True)
  try:
    (part / _PROGRAM).write_bytes(_program(rank, arrays, example))
    _save_tree(part / _ARRAYS, arrays)
    _save_tree(part / _GOLDEN, golden)
    np.save(part / "item_ids.npy", item_ids, allow_pickle=False)
    semantic_ids.save(part / "codebook.npz", codebook, catalogue.sids)
    ocp.save(part / "params", arrays["params"])
    _write(part / "config.json", dataclasses.asdict(config))
    readme = _README.format(name=config.name, slots=policy.slots)
    (part / "README.md").write_text(readme, encoding="utf-8")
    manifest = {
      "name": config.name,
      "versions": _versions(),
      "sizes": _sizes(policy, codebook, arrays, example),
      "request": {
        k: {"shape": ["b", *x.shape[1:]], "dtype": str(x.dtype)}
        for k, x in example.items()
      },
      "platforms": list(PLATFORMS),
      "golden_platform": jax.default_backend(),
      "arrays": {_ARRAYS: _specs(arrays), _GOLDEN: _specs(golden)},
      "sha256": _digests(part),
    }
    _write(part / MANIFEST, manifest | {"checksum": fingerprint(manifest)})
    verify(part)
    part.rename(out)
  finally:
    shutil.rmtree(part, ignore_errors=True)
  return manifest


def verify(path: str | os.PathLike) -> dict[str, Any]:
  """Checks every file of a bundle and repeats its golden output.

  Args:
    path: the bundle. Other versions than it was made with are a warning.

  Returns:
    The manifest.

  Raises:
    ValueError: a file is missing or damaged, jax here cannot read the
      program, or the slates differ.
  """
  folder = pathlib.Path(path)
  manifest = _manifest(folder)
  for name, digest in manifest["sha256"].items():
    if not (folder / name).is_file():
      raise ValueError(f"{folder / name} is missing; export the run again.")
    if _digest(folder / name) != digest:
      raise ValueError(
        f"{folder / name} is damaged (it does not match the sha256 in "
        f"{MANIFEST}); export the run again."
      )
  here, versions = _versions(), manifest["versions"]
  for package, version in versions.items():
    if here.get(package) != version:
      logging.warning(
        "The bundle was made with %s %s; here is %s.",
        package,
        version,
        here.get(package),
      )
  arrays, golden = (
    _load_tree(folder / name, manifest["arrays"][name])
    for name in (_ARRAYS, _GOLDEN)
  )
  blob = (folder / _PROGRAM).read_bytes()
  try:
    program = export.deserialize(bytearray(blob))
  # The bytes are what was exported: another jax reads them as it may, and
  # fails as flatbuffers does, in a dozen ways.
  except Exception as error:
    raise ValueError(
      f"{folder / _PROGRAM}, made with jax {versions.get('jax')}, cannot be "
      f"read by jax {here['jax']}; install that version or export the run "
      "again here."
    ) from error
  out = jax.jit(program.call)(
    arrays["params"], arrays["catalogue"], golden["request"]
  )
  if not np.array_equal(out["slate"], golden["slate"]):
    raise ValueError(
      f"{folder / _PROGRAM} on {jax.default_backend()} does not give the "
      f"slates in {_GOLDEN}, made on {manifest['golden_platform']} with jax "
      f"{versions.get('jax')}; export the run again here."
    )
  return manifest


def _fields(node: Any) -> dict[str, Array]:
  """A Catalogue or Request as a dict of the fields that are there."""
  every = {f.name: getattr(node, f.name) for f in dataclasses.fields(node)}
  return {name: x for name, x in every.items() if x is not None}


def _host(tree: Any) -> Any:
  """Numpy leaves in the types that JAX computes in."""
  return jax.tree.map(lambda x: np.asarray(jnp.asarray(x)), tree)


def _ranker(policy: Policy):
  """Greedy reranking between builtin containers: all `jax.export` takes."""

  def rank(params, catalogue, request):
    slate = sample.greedy(
      policy, params, Catalogue(**catalogue), Request(**request)
    )
    return {"slate": slate}

  return rank


def _program(rank, arrays: dict, example: dict) -> bytes:
  """StableHLO of `rank` for one device and any batch size."""
  (batch,) = export.symbolic_shape("b")
  fixed = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype)
  free = lambda x: jax.ShapeDtypeStruct((batch, *x.shape[1:]), x.dtype)
  exported = export.export(jax.jit(rank), platforms=PLATFORMS)(
    jax.tree.map(fixed, arrays["params"]),
    jax.tree.map(fixed, arrays["catalogue"]),
    jax.tree.map(free, example),
  )
  return bytes(exported.serialize())


def _flat(tree: dict) -> dict[str, Any]:
  return traverse_util.flatten_dict(tree, sep="/")


def _specs(tree: dict) -> dict[str, Any]:
  return {
    path: {"shape": list(x.shape), "dtype": str(x.dtype)}
    for path, x in _flat(tree).items()
  }


def _save_tree(path: pathlib.Path, tree: dict) -> None:
  np.savez(path, **_flat(tree))


def _load_tree(path: pathlib.Path, specs: dict[str, Any]) -> dict:
  # Numpy's files forget the name of bfloat16; the manifest has it.
  with np.load(path, allow_pickle=False) as file:
    flat = {k: file[k].view(jnp.dtype(s["dtype"])) for k, s in specs.items()}
  return traverse_util.unflatten_dict(flat, sep="/")


def _sizes(policy, codebook, arrays, example) -> dict[str, int]:
  """The letters of types.py."""
  items, features = arrays["catalogue"]["features"].shape
  return {
    "codes": codebook.codes,
    "levels": codebook.levels,
    "tokens_per_item": policy.levels,
    "slots": policy.slots,
    "candidates": example["candidates"].shape[1],
    "history": example["history"].shape[1],
    "items": items,
    "features": features,
    "user": example["user"].shape[1],
  }


def _versions() -> dict[str, str]:
  """Installed versions; the package itself may run from its sources."""
  out = {}
  for package in _PACKAGES:
    try:
      out[package] = metadata.version(package)
    except metadata.PackageNotFoundError:
      out[package] = "not installed"
  return out


def _digest(path: pathlib.Path) -> str:
  with path.open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def _digests(folder: pathlib.Path) -> dict[str, str]:
  files = sorted(p for p in folder.rglob("*") if p.is_file())
  return {p.relative_to(folder).as_posix(): _digest(p) for p in files}


def _write(path: pathlib.Path, values: dict[str, Any]) -> None:
  path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def _manifest(folder: pathlib.Path) -> dict[str, Any]:
  """The manifest, its own checksum checked and taken off."""
  path = folder / MANIFEST
  if not path.is_file():
    raise ValueError(f"{path} is missing: {folder} is not an exported bundle.")
  remedy = "export the run again"
  manifest = read_object(
    path,
    remedy,
    checksum=str,
    golden_platform=str,
    versions=dict,
    arrays=dict,
    sha256=dict,
  )
  if manifest.pop("checksum") != fingerprint(manifest):
    raise ValueError(
      f"{path} is damaged (it does not match its own checksum); {remedy}."
    )
  arrays = dict.fromkeys((_ARRAYS, _GOLDEN), dict)
  check_object(manifest["arrays"], path, remedy, **arrays)
  return manifest
