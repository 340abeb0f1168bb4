"""What every command does before its work."""

import math
import os
import pathlib
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from absl import flags, logging

from fcrn_jax import cpu

_PACKAGES = pathlib.Path(jax.__file__).parents[1]
_QUIET = f"{_PACKAGES}/orbax/", f"{_PACKAGES}/jax/"


def start() -> None:
  """Quiet logs, a quick CPU, and compiled programs kept for the next start.

  The cache lies in $JAX_COMPILATION_CACHE_DIR or ~/.cache/fcrn_jax.
  """
  cpu.prepare()
  if not flags.FLAGS["verbosity"].present:
    logging.set_verbosity(logging.INFO)
  logging.get_absl_handler().addFilter(_is_worth_showing)
  # A grouping program compiles in less than JAX's default of a second.
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
  if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    cache = pathlib.Path("~/.cache/fcrn_jax").expanduser()
    jax.config.update("jax_compilation_cache_dir", str(cache))


def _is_worth_showing(record):
  """What orbax and JAX report of their own doings is not."""
  inner = record.pathname.startswith(_QUIET)
  return record.levelno >= logging.converter.STANDARD_ERROR or not inner


def load_split(config, split: str | None, path: str | None):
  """The config's validation data, or another split or folder of its kind."""
  from fcrn_jax.data import check
  from fcrn_jax.training import loop

  config = config.copy_and_resolve_references().unlock()
  config.data.val_split = split or config.data.val_split
  if path:
    config.data.path = path
    if config.data.name in ("shapes", "functions"):
      config.data.name, config.data.num_val = check.guess_name(path), 0
  if config.data.name == "functions":
    raise ValueError(
      "the network was trained on a program's own data (data.Functions), which"
      " commands do not know; pass --data=DIR, or call in that program"
      " fcrn_jax.evaluation.evaluate or experiments.tune.search."
    )
  place = pathlib.Path(config.data.path).expanduser().resolve()
  if not place.exists():
    raise ValueError(
      f"the data {place}"
      + ("" if path else ", which the network was trained on,")
      + " do not exist; pass --data=DIR."
    )
  return loop.load_split(config, "val")


def network_cost(name: str, size: int) -> tuple[int, int]:
  """(parameters, floating-point operations) of one image's forward pass.

  The operations are the convolutions' as the network is written, a product and
  a sum counted as two, whatever form computes them here.
  """
  from fcrn_jax import models

  model = models.create(name, {"semantic": 21})
  images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
  flops = 0

  def count(call, args, kwargs, context):
    nonlocal flops
    out, module = call(*args, **kwargs), context.module
    if module.has_variable("params", "kernel"):
      kernel = module.get_variable("params", "kernel")
      flops += 2 * kernel.size * math.prod(out.shape[:3])
    return out

  with nn.intercept_methods(count):  # nothing is allocated or run
    variables = jax.eval_shape(
      lambda x: model.init(jax.random.key(0), x, train=False), images
    )
  return sum(x.size for x in jax.tree.leaves(variables["params"])), flops


def cells(rows: list[dict]) -> list[list[str]]:
  """Rows as text, names first, columns in the order of first appearance."""
  names = list(dict.fromkeys(name for row in rows for name in row))
  return [names] + [
    [_text(row.get(name, "")) for name in names] for row in rows
  ]


def columns(lines: Sequence[Sequence[str]]) -> str:
  """Lines of cells, lined up."""
  widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
  return "\n".join(
    "  ".join(
      cell.ljust(width) for cell, width in zip(line, widths, strict=True)
    ).rstrip()
    for line in lines
  )


def _text(value):
  if value is None or value != value:
    return ""
  return f"{value:.4g}" if isinstance(value, float) else str(value)
