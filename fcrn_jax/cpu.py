"""What makes JAX quick on a CPU, beside the programs themselves."""

import ctypes
import importlib.metadata
import importlib.util
import os
import sys

import jax

# Minor versions of JAX 0.x whose XLA has the flag: an unknown one ends the
# process.
_VERSIONS = range(10, 13)
_FLAG = "xla_cpu_experimental_ynn_fusion_type"

# Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8

# Whether `prepare` was called: programs traced afterwards take the quickest
# form, whose sums agree with the exact one's to rounding.
prepared = False


def prepare() -> None:
  """Makes this process quick on a CPU; to be called before JAX's first use.

  Convolutions by Eigen instead of YNNPACK, which takes up to twice its time
  for 64 and 128 channels; those of many channels by models.winograd; and
  memory that is kept from one call to the next instead of being mapped anew
  (glibc only; not where JAX has an accelerator's plugin, whose compiler's
  threads would wait for each other). What each gives: BUILD.md, "Measuring".
  What XLA_FLAGS says already is left as it is.
  """
  global prepared
  prepared = True
  flags = os.environ.get("XLA_FLAGS", "")
  major, minor = jax.__version_info__[:2]
  if major == 0 and minor in _VERSIONS and _FLAG not in flags:
    os.environ["XLA_FLAGS"] = f"{flags} --{_FLAG}=".strip()
  if sys.platform == "linux" and not _has_accelerator_plugin():
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
      mallopt(_M_MMAP_MAX, 0)
      mallopt(_M_ARENA_MAX, 1)
      mallopt(_M_TRIM_THRESHOLD, -1)


def _has_accelerator_plugin() -> bool:
  plugins = importlib.metadata.entry_points(group="jax_plugins")
  return bool(plugins) or importlib.util.find_spec("libtpu") is not None
