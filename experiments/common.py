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


def load_split(config, split: str | None, path: str | None):
  """The config's validation data, or another split or folder of its kind."""
  from fcrn_jax.data import check
  from fcrn_jax.training import loop

  config = config.copy_and_resolve_references().unlock()
  config.data.val_split = split or config.data.val_split
  if path:
    config.data.path = path
    if config.data.name == "shapes":
      config.data.name, config.data.num_val = check.guess_name(path), 0
  return loop.load_split(config, "val")
