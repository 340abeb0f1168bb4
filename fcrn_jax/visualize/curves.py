"""Training curves from metrics.jsonl."""

import os
from collections.abc import Sequence

import numpy as np

from fcrn_jax.files import read_lines, replacing

# Of the scores of a validation, those that people look at.
SCORES = (
  "pixel_accuracy", "mean_iou", "ap_r_0.5", "ap_r_vol", "ap", "matching_0.5",
  "matching_0.7", "touching_recall_0.5",
)  # fmt: skip
# A plot has a title and names, or the start of names that end in a category.
_PLOTS = {
  "loss": ("loss", "semantic_loss", "box_loss"),
  "validation": tuple(f"val_{name}" for name in SCORES),
  "validation: IoU": "val_iou_",
  "share of the hard pixels": "semantic_share_",
  "share of the hard boxes": "box_share_",
  "probability or IoU": ("box_iou", "box_threshold", "semantic_threshold"),
  "pixels a crop": (
    "semantic_valid", "semantic_kept", "box_valid", "box_kept",
  ),
  "gradient norm": ("gradient_norm",),
  "learning rate": ("lr",),
  "images a second": ("images_per_second",),
}  # fmt: skip
_MOST_LINES = 8  # of a plot, as many as there are colours to tell apart
_MOST_LETTERS = 20


def save_curves(
  metrics_path: str | os.PathLike,
  path: str | os.PathLike,
  labels: Sequence[str] = (),
) -> None:
  """Draws a metrics.jsonl as curves over the steps, into a PNG.

  Of many categories, those with the largest last share of the hard pixels or
  boxes are drawn, and those with the lowest last IoU.

  labels: names of the labels, 0 included; without them they are numbers.
  """
  from matplotlib.figure import Figure

  rows = read_lines(metrics_path)
  curves = {}  # [(step, value)] by name
  for row in rows:
    for name, value in row.items():
      if name != "step" and value is not None:
        curves.setdefault(name, []).append((row["step"], value))
  plots = {}
  for title, names in _PLOTS.items():
    if isinstance(names, str):
      title, found = _categories(title, names, curves, labels)
    else:
      found = {name: curves[name] for name in names if name in curves}
    if found:
      plots[title] = found
  columns = min(3, max(1, len(plots)))
  lines = -(-max(1, len(plots)) // columns)
  figure = Figure((5.2 * columns, 3.2 * lines), dpi=110, layout="constrained")
  for k, (title, found) in enumerate(plots.items()):
    axes = figure.add_subplot(lines, columns, k + 1)
    _plot(axes, title, found)
  with replacing(path) as temporary:
    figure.savefig(temporary, format="png")


def _categories(title, start, curves, labels):
  """The title and points by category, of at most _MOST_LINES of them."""
  found = {}
  for name, points in curves.items():
    if name.startswith(start):
      label = name.removeprefix(start)
      if label.isdecimal() and int(label) < len(labels):
        label = labels[int(label)]
      found[label] = points
  if len(found) == 1:  # whose share is 1
    return title, {}
  chosen = sorted(found, key=lambda label: found[label][-1][1])
  if len(found) > _MOST_LINES:
    lowest = "iou" in start
    chosen = chosen[:_MOST_LINES] if lowest else chosen[-_MOST_LINES:]
    kind = "lowest" if lowest else "largest"
    title = f"{title}, the {_MOST_LINES} {kind} of {len(found)}"
  return title, {label: found[label] for label in found if label in chosen}


def _plot(axes, title, curves):
  for label, points in curves.items():
    steps, values = np.array(points).T
    mark = "o-" if len(points) < 30 else "-"
    label = label.removeprefix("val_")
    if len(label) > _MOST_LETTERS:
      label = label[: _MOST_LETTERS - 3] + "..."
    axes.plot(steps, values, mark, label=label, linewidth=1.4, markersize=3)
  if title == "loss" and all(y > 0 for p in curves.values() for _, y in p):
    axes.set_yscale("log")
  axes.set_title(title, fontsize=10, loc="left")
  axes.set_xlabel("step", fontsize=8)
  axes.grid(alpha=0.25)
  axes.spines[["top", "right"]].set_visible(False)
  axes.tick_params(labelsize=8, which="both")
  if len(curves) > 1:  # beside the curves, which it would hide
    axes.legend(
      fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1, 1)
    )
