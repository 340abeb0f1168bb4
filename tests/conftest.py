"""Four simulated devices for every test, set before JAX starts."""

import os
import pathlib

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = (
  os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
)

import pytest

REPOSITORY = pathlib.Path(__file__).parent.parent


@pytest.fixture(scope="session")
def real_data() -> pathlib.Path:
  """The folder of real samples; tests that need it skip where it is absent."""
  path = pathlib.Path(
    os.environ.get("FCRN_DATA", REPOSITORY.parent / "shared" / "data")
  )
  if not path.is_dir():
    pytest.skip(f"no real data at {path}; set FCRN_DATA to its folder")
  return path
