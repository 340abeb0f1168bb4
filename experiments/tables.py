"""Prints tables about the library.

  python -m experiments.tables --what=zoo
  python -m experiments.tables --what=zoo --size=1024

zoo: every named network with its field of view in pixels, its parameters and
its work (a product and a sum counted as two) for one image with 21 classes,
and the paper's figures for it.
"""

from absl import app, flags

_WHAT = flags.DEFINE_enum("what", "zoo", ["zoo"], "The table.")
_SIZE = flags.DEFINE_integer("size", 512, "zoo: side of the image, pixels.")


def zoo(size: int) -> list[tuple[str, ...]]:
  """Rows of text of the zoo's table, the header first."""
  from fcrn_jax import models

  rows = [
    ("name", "field of view", "Mparams", f"GFLOP at {size}", "paper (table)")
  ]
  for name in models.list_models():
    spec = models.spec(name)
    params, flops = _cost(name, size)
    paper = "; ".join(_figures(row) for row in spec.paper)
    rows.append(
      (name, str(spec.field_of_view), f"{params / 1e6:.2f}",
       f"{flops / 1e9:.1f}", paper or "-")
    )  # fmt: skip
  return rows


def _figures(row):
  """A row of the paper: mean IoU, or mAP^r at 0.5 and 0.7, and its table."""
  figures = row.mean_iou if row.ap_r_05 is None else (
    f"{row.ap_r_05}/{row.ap_r_07}"
  )  # fmt: skip
  setting = "" if row.setting == "vanilla" else f" {row.setting}"
  return f"{figures} ({row.table}{setting})"


def _cost(name, size):
  """(parameters, floating-point operations) of one image's forward pass.

  XLA counts the operations of the program; nothing is allocated or run.
  """
  import jax
  import jax.numpy as jnp

  from fcrn_jax import models

  model = models.create(name, {"semantic": 21})
  images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
  variables = jax.eval_shape(
    lambda x: model.init(jax.random.key(0), x, train=False), images
  )
  program = jax.jit(lambda v, x: model.apply(v, x, train=False))
  flops = program.lower(variables, images).cost_analysis()["flops"]
  return sum(x.size for x in jax.tree.leaves(variables["params"])), flops


def text(rows: list[tuple[str, ...]]) -> str:
  """Columns lined up."""
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  return "\n".join(
    "  ".join(
      cell.ljust(width) for cell, width in zip(row, widths, strict=True)
    ).rstrip()
    for row in rows
  )


def main(argv):
  """Prints the table of the flags."""
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments: {argv[1:]}")
  print(text({"zoo": zoo}[_WHAT.value](_SIZE.value)))


if __name__ == "__main__":
  app.run(main)
