"""Eight devices on any machine; silent mistakes raise."""

import itertools
import os
import tempfile

# Before JAX meets a device: it reads its flags once.
os.environ["XLA_FLAGS"] = " ".join(
  (
    os.environ.get("XLA_FLAGS", ""),
    "--xla_force_host_platform_device_count=8",
    # One core compiles: a program's parts are not made at the same time.
    "--xla_cpu_parallel_codegen_split_count=1",
  )
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Tests compile a thousand programs and run each a few times; processes that
# they start must compute the same bits, hence inherit this.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
# What one process has compiled the others load: workers and what they start
# inherit the folder of whoever comes first.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
  _programs = tempfile.TemporaryDirectory(prefix="programs-")
  os.environ["JAX_COMPILATION_CACHE_DIR"] = _programs.name
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

import jax
import pytest

from launch import devices

devices.quick_compile()
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_debug_key_reuse", True)

_MODULES = itertools.count(1)


@pytest.fixture(scope="module", autouse=True)
def few_programs():
  """Now and then, a process forgets what it has compiled.

  A program takes several pieces of memory, of which Linux grants a process
  65,530 unless told otherwise; the next one is a segmentation fault.
  """
  yield
  if next(_MODULES) % 10 == 0:
    jax.clear_caches()
