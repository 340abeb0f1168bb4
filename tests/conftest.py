"""Four simulated devices and a cache of programs, set before JAX starts."""

import os
import pathlib

from tests import QUICKLY

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = " ".join([
  os.environ.get("XLA_FLAGS", ""),
  "--xla_force_host_platform_device_count=4",
  QUICKLY,
])  # fmt: skip
# Many tests compile the same programs.
os.environ.setdefault(
  "JAX_COMPILATION_CACHE_DIR",
  str(pathlib.Path(__file__).parents[1] / ".pytest_cache" / "jax"),
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")

import pytest

REPOSITORY = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope="session")
def real_data() -> pathlib.Path:
  """The folder of real samples; tests that need it skip where it is absent."""
  path = pathlib.Path(
    os.environ.get("FCRN_DATA", REPOSITORY.parent / "shared" / "data")
  )
  if not path.is_dir():
    pytest.skip(f"no real data at {path}; set FCRN_DATA to its folder")
  return path


@pytest.fixture(scope="module", autouse=True)
def forget_programs():
  """Frees the programs of a module's tests, which are gigabytes by the end."""
  yield
  import jax

  jax.clear_caches()
