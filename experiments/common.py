"""What every command does before its work."""

import os
import pathlib

import jax
from absl import logging


def start() -> None:
  """Quiet logs, and programs compiled once kept for the next start.

  The cache lies in $JAX_COMPILATION_CACHE_DIR or ~/.cache/fcrn_jax.
  """
  logging.set_verbosity(logging.INFO)
  logging.get_absl_logger().getChild("orbax").setLevel(logging.WARNING)
  if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    cache = pathlib.Path("~/.cache/fcrn_jax").expanduser()
    jax.config.update("jax_compilation_cache_dir", str(cache))
