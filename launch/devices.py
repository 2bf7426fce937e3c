"""The devices of a run, and how XLA is asked to work on them."""

import gc
import os

import jax

from rerank_rl.config import ConfigError


def check() -> None:
  """Meets the devices; call once the run's processes know each other.

  Raises:
    ConfigError: JAX cannot use those that it is told to.
  """
  try:
    jax.devices()
  except (RuntimeError, AssertionError) as error:
    reason = str(error).strip().split("\n")[0] or "JAX found none"
    asked = os.environ.get("JAX_PLATFORMS", "")
    raise ConfigError(
      f"no device for JAX_PLATFORMS={asked!r}: {reason}; install what it "
      "needs, or choose another."
    ) from error


def quick_compile() -> None:
  """Compiles two to four times as fast, to programs that run slower.

  Call before JAX meets a device.

  The CPU's newer kernel emitters take longer than those they replaced, which
  jaxlib still has before 0.11; later ones refuse the flag.

  Tracing makes many small objects, and Python looks for garbage whenever 700
  are new: a tenth of what a run of seconds takes. It is asked to do so seldom,
  and never among the modules' own.
  """
  gc.freeze()
  gc.set_threshold(200_000, 20)
  jax.config.update("jax_disable_most_optimizations", True)
  if jax.__version_info__ < (0, 11):
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_use_fusion_emitters=false"
