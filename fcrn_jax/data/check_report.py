"""A check's Report as text, as plain values for a json, and as pictures."""

import collections
import pathlib
import textwrap
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from fcrn_jax.data import check, folder
from fcrn_jax.files import replacing
from fcrn_jax.types import IGNORE, palette

_SHOWN = 3  # examples of each kind of problem on the screen


def text(report: check.Report) -> str:
  """What was found, for a screen."""
  lines = _table(report)
  by_kind = collections.defaultdict(list)
  for problem in report.problems:
    by_kind[problem.kind].append(problem)
  for kind, (severity, title, remedy) in check.KINDS.items():
    problems = by_kind.get(kind)
    if not problems:
      continue
    lines.append(f"\n{severity.upper()}  {title}: {len(problems)}")
    lines += [f"  {problem.message}" for problem in problems[:_SHOWN]]
    if len(problems) > _SHOWN:
      lines.append(f"  ... and {len(problems) - _SHOWN} more")
    remedies = [remedy] if remedy else []
    if kind == "range":
      remedies = check.likely_causes(report)[:_SHOWN]
    lines += [f"  -> {words}" for words in remedies]
  errors = report.num_errors
  lines.append(f"\n{errors} errors." if errors else "\nNo errors.")
  return "\n".join(lines)


def values(report: check.Report) -> dict[str, Any]:
  """The report as plain values; the findings are all in it."""
  return {
    "paths": {s: str(d.path) for s, d in report.datasets.items()},
    "labels": list(report.labels),
    "errors": report.num_errors,
    "splits": {split: _totals(report, split) for split in report.datasets},
    "problems": [
      {"severity": check.KINDS[p.kind][0], **p._asdict()}
      for p in report.problems
    ],
  }


def _totals(report: check.Report, split: str) -> dict[str, Any]:
  """Counts of a split: images, instances and pixels of each label."""
  images = report.images[split]
  pixels, instances = collections.Counter(), collections.Counter()
  for image in images:
    pixels.update(image.pixels)
    instances.update(category for category, _ in image.areas)
  sizes = sorted({image.size for image in images if image.size})
  return {
    "images": len(images),
    "readable": sum(image.size is not None for image in images),
    "instances": instances.total(),
    "instances_by_label": dict(sorted(instances.items())),
    "pixels_by_label": dict(sorted(pixels.items())),
    "sizes": [sizes[0], sizes[-1]] if sizes else [],
  }


def _table(report: check.Report) -> list[str]:
  """Images and instances of each split, then the share of each label."""
  splits = {split: _totals(report, split) for split in report.datasets}
  if not splits:
    return ["Nothing could be read."]
  lines = []
  for split, totals in splits.items():
    sizes = " to ".join(f"{h} x {w}" for h, w in totals["sizes"])
    lines.append(
      f"{split:14} {totals['images']:7,} images  "
      f"{totals['instances']:9,} instances  {sizes}"
    )
  head = "".join(f"{split:>26}" for split in splits)
  lines += [
    "",
    f"{'label':18}{head}",
    f"{'':18}" + f"{'pixels  instances':>26}" * len(splits),
  ]
  seen = set().union(*(totals["pixels_by_label"] for totals in splits.values()))
  for label in sorted(seen | set(range(len(report.labels)))):
    name = _name(report, label, "void" if label == IGNORE else "?")
    cells = ""
    for totals in splits.values():
      share = totals["pixels_by_label"].get(label, 0)
      total = max(sum(totals["pixels_by_label"].values()), 1)
      count = totals["instances_by_label"].get(label, 0)
      cells += f"{share / total:15.3%} {count or '':>10}"
    lines.append(f"{label:>4} {name:13}{cells}")
  return lines


def _name(report: check.Report, label: int, unknown: str) -> str:
  """A label's name, or `unknown` where it has none."""
  known = 0 <= label < len(report.labels)
  return report.labels[label] if known else unknown


def plot(report: check.Report, path: pathlib.Path) -> None:
  """Histograms: pixels of each label, instances an image, sizes of both."""
  figure = Figure((12, 8), layout="constrained")
  axes = figure.subplots(2, 2).ravel()
  totals = {split: _totals(report, split) for split in report.datasets}
  labels = sorted(
    set(range(len(report.labels))).union(
      *(some["pixels_by_label"] for some in totals.values())
    )
  )
  width = 0.8 / max(len(totals), 1)
  for place, split in enumerate(report.datasets):
    pixels = totals[split]["pixels_by_label"]
    shares = [pixels.get(k, 0) / max(sum(pixels.values()), 1) for k in labels]
    bars = np.arange(len(labels)) + width * place
    axes[0].bar(bars, shares, width, label=split)
    images = report.images[split]
    counts = [len(image.areas) for image in images]
    sides = [area**0.5 for image in images for _, area in image.areas]
    sizes = [image.size[0] * image.size[1] for image in images if image.size]
    for axis, data in zip(axes[1:], (counts, sides, sizes), strict=True):
      if data:
        axis.hist(data, bins=40, histtype="step", label=split)
  axes[0].set_xticks(
    np.arange(len(labels)) + 0.4 - width / 2,
    [_name(report, k, str(k)) for k in labels], rotation=90, fontsize=6,
  )  # fmt: skip
  titles = (
    "share of pixels of each label", "instances in an image",
    "instance size, square root of pixels", "pixels of an image",
  )  # fmt: skip
  for axis, title in zip(axes, titles, strict=True):
    axis.set_title(title, fontsize=9)
    axis.set_yscale("log")
    if axis.get_legend_handles_labels()[0]:
      axis.legend(fontsize=7)
  _save(figure, path)


def picture(report: check.Report, path: pathlib.Path, number: int = 12) -> None:
  """The images with the gravest problems, labels drawn over, and why."""
  order = list(check.KINDS)
  readers = {
    key: (dataset, index)
    for dataset in report.datasets.values()
    for index, key in enumerate(dataset.ids)
  }
  worst = {}
  for problem in sorted(report.problems, key=lambda p: order.index(p.kind)):
    if problem.key in readers:
      worst.setdefault(problem.key, []).append(problem)
  # Round robin over the kinds, so that each is seen.
  rank, seen = {}, collections.Counter()
  for key, problems in worst.items():
    rank[key] = (seen[problems[0].kind], order.index(problems[0].kind))
    seen[problems[0].kind] += 1
  chosen = sorted(worst, key=rank.__getitem__) or list(readers)
  chosen = chosen[:number]
  columns = 4
  rows = -(-len(chosen) // columns) or 1
  figure = Figure((3.4 * columns, 3.6 * rows), layout="constrained")
  for axis in figure.subplots(rows, columns, squeeze=False).ravel():
    axis.axis("off")
  for axis, key in zip(figure.axes, chosen, strict=False):
    tile = _tile(*readers[key])
    if tile is not None:
      axis.imshow(tile)
    kinds = dict.fromkeys(p.kind for p in worst.get(key, ()))
    words = ", ".join(check.KINDS[kind][1] for kind in kinds) or "no problem"
    axis.set_title(textwrap.fill(f"{key}: {words}", 40), fontsize=7)
    if tile is None:
      axis.text(0.5, 0.5, "cannot be read", ha="center")
  _save(figure, path)


def _tile(dataset: Any, index: int) -> np.ndarray | None:
  """The image with its labels in VOC's colours over it, what can be read."""
  try:
    if not isinstance(dataset, folder.Folder):
      example = dataset[index]
      return _blend(example["image"], example["semantic"])
    image = folder.load_image(dataset.image_file(index))
  except ValueError:
    return None
  try:
    labels = folder.load_map(dataset.label_files(index)[0], image.shape[:2])
  except ValueError:
    return image
  return _blend(image, labels)


def _blend(image: np.ndarray, labels: np.ndarray) -> np.ndarray:
  colours = palette()[np.minimum(labels, 255).astype(np.uint8)]
  mixed = image // 2 + colours // 2
  return np.where((labels == 0)[..., None], image, mixed)


def _save(figure: Figure, path: pathlib.Path) -> None:
  """Writes the figure whole or not at all."""
  with replacing(path) as temporary:
    FigureCanvasAgg(figure).print_png(temporary)
