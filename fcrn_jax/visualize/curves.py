"""Training curves from metrics.jsonl."""

import os

import numpy as np

from fcrn_jax.files import read_lines, replacing


def save_curves(
  metrics_path: str | os.PathLike, path: str | os.PathLike
) -> None:
  """Draws a metrics.jsonl as curves over the steps, into a PNG."""
  from matplotlib.figure import Figure

  rows = read_lines(metrics_path)
  groups: dict[str, list[str]] = {}
  for name in dict.fromkeys(name for row in rows for name in row):
    if name != "step":
      groups.setdefault(_group(name), []).append(name)
  columns = min(3, max(1, len(groups)))
  lines = -(-max(1, len(groups)) // columns)
  figure = Figure((5.2 * columns, 3.2 * lines), dpi=110, layout="constrained")
  for k, (title, names) in enumerate(groups.items()):
    axes = figure.add_subplot(lines, columns, k + 1)
    for name in names:
      points = [(r["step"], r[name]) for r in rows if r.get(name) is not None]
      mark = "o-" if len(points) < 30 else "-"
      if points:
        axes.plot(
          *np.array(points).T, mark, label=name, linewidth=1.4, markersize=3
        )
    if title == "losses" and all(
      r.get(n) is None or r[n] > 0 for r in rows for n in names
    ):
      axes.set_yscale("log")
    axes.set_title(title, fontsize=10, loc="left")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
    if len(axes.lines) > 1:
      axes.legend(fontsize=7, frameon=False, ncols=1 + len(names) // 8)
  with replacing(path) as temporary:
    figure.savefig(temporary, format="png")


def _group(name: str) -> str:
  """The plot that a scalar goes to; its own if it is like no other."""
  for part, group in (
    ("loss", "losses"),
    ("val_matching_by_image", "validation: matching by image"),
    ("val_matching", "validation: matching"),
    ("val_touching", "validation: touching"),
    ("val_", "validation"),
    ("semantic_share", "share of the hard pixels, by category"),
    ("box_share", "share of the hard boxes, by category"),
    ("threshold", "probability or IoU"),
    ("box_iou", "probability or IoU"),
    ("_kept", "pixels"),
    ("_valid", "pixels"),
  ):
    if part in name:
      return group
  return name
