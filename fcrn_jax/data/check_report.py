"""A check's Report as text, as plain values for a json, and as pictures."""

import collections
import pathlib
import textwrap
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from fcrn_jax.data import check, folder, pictures
from fcrn_jax.files import replacing
from fcrn_jax.types import IGNORE, listed, palette

_SHOWN = 3  # examples of each kind of problem on the screen
_STRAY = 20  # labels without a name that are listed and drawn


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
    messages = list(dict.fromkeys(problem.message for problem in problems))
    lines.append("  " + listed(messages, _SHOWN, "\n  "))
    remedies = [remedy] if remedy else []
    if kind == "range":
      remedies = likely_causes(report)[:_SHOWN]
    lines += [f"  -> {words}" for words in remedies]
  errors, warnings = report.num_errors, report.count("warning")
  end = _number(errors, "error") if errors else "No errors"
  lines.append(
    f"\n{end}, {_number(warnings, 'warning')}." if warnings else f"\n{end}."
  )
  return "\n".join(lines)


def _number(count: int, what: str) -> str:
  return f"{count:,} {what}{'' if count == 1 else 's'}"


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
  shown = _shown_labels(report)
  for label in shown:
    name = _name(report, label, "void" if label == IGNORE else "?")
    cells = ""
    for totals in splits.values():
      share = totals["pixels_by_label"].get(label, 0)
      total = max(sum(totals["pixels_by_label"].values()), 1)
      count = totals["instances_by_label"].get(label, 0)
      cells += f"{share / total:15.3%} {count or '':>10}"
    lines.append(f"{label:>4} {name:13}{cells}")
  if rest := len(report.seen.difference(shown)):
    lines.append(f"{'':4} and {rest:,} labels more")
  if not any(dataset.has_instances for dataset in report.datasets.values()):
    lines.append(
      "\nNo instances (SegmentationObject of a folder): only a semantic network"
      "\ncan learn from these, --config.model.heads='(\"semantic\",)'."
    )
  return lines


def _shown_labels(report: check.Report) -> list[int]:
  """Labels with a name and void; of others, thousands in a wrong map, a few."""
  named = set(range(len(report.labels))) | (report.seen & {IGNORE})
  return sorted(named.union(sorted(report.seen - named)[:_STRAY]))


def _name(report: check.Report, label: int, unknown: str) -> str:
  """A label's name, or `unknown` where it has none."""
  known = 0 <= label < len(report.labels)
  return report.labels[label] if known else unknown


def plot(report: check.Report, path: pathlib.Path) -> None:
  """Histograms: pixels of each label, instances an image, sizes of both."""
  figure = Figure((12, 8), layout="constrained")
  axes = figure.subplots(2, 2).ravel()
  totals = {split: _totals(report, split) for split in report.datasets}
  labels = _shown_labels(report)
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
  chosen = _worst(report)[:number]
  columns = 4
  rows = -(-len(chosen) // columns) or 1
  figure = Figure((3.4 * columns, 3.6 * rows), layout="constrained")
  for axis in figure.subplots(rows, columns, squeeze=False).ravel():
    axis.axis("off")
  for axis, (dataset, index, kinds) in zip(figure.axes, chosen, strict=False):
    tile = _tile(dataset, index)
    if tile is not None:
      axis.imshow(tile)
    words = ", ".join(check.KINDS[kind][1] for kind in kinds) or "no problem"
    title = f"{dataset.ids[index]}: {words}"
    axis.set_title(textwrap.fill(title, 40), fontsize=7)
    if tile is None:
      axis.text(0.5, 0.5, "cannot be read", ha="center")
  _save(figure, path)


def _worst(report: check.Report) -> list[tuple[Any, int, list[str]]]:
  """(data set, index, kinds of problems) of images, the gravest first.

  All images where none has a problem.
  """
  order = list(check.KINDS)
  # An image of two splits was inspected once, and is drawn once.
  places = {
    id(image): (report.datasets[split], index, image)
    for split, images in report.images.items()
    for index, image in enumerate(images)
  }
  own = {id(p) for *_, image in places.values() for p in image.problems}
  shared = collections.defaultdict(list)  # which came of comparing images
  for problem in report.problems:
    if id(problem) not in own:
      shared[problem.key].append(problem)
  found = []
  for dataset, index, image in places.values():
    kinds = {p.kind for p in image.problems + shared[image.key]}
    found.append((dataset, index, sorted(kinds, key=order.index)))
  worst = sorted((f for f in found if f[2]), key=lambda f: order.index(f[2][0]))
  # Round robin over the kinds, so that each is seen.
  seen, rank = collections.Counter(), []
  for *_, kinds in worst:
    rank.append(seen[kinds[0]])
    seen[kinds[0]] += 1
  turns = sorted(range(len(worst)), key=rank.__getitem__)
  return [worst[k] for k in turns] or found


def _tile(dataset: Any, index: int) -> np.ndarray | None:
  """The image with its labels in VOC's colours over it, what can be read."""
  try:
    if not isinstance(dataset, folder.Folder):
      example = dataset[index]
      return _blend(example["image"], example["semantic"])
    image = pictures.load_image(dataset.image_file(index))
  except ValueError:
    return None
  try:
    labels = pictures.load_map(dataset.label_files(index)[0], image.shape[:2])
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


def likely_causes(report: check.Report) -> list[str]:
  """Why labels are out of range: one cause if most images are concerned."""
  images = [image for some in report.images.values() for image in some]
  top = len(report.labels) - 1
  some = [
    set(image.pixels)
    for image in images
    if any(p.kind == "range" for p in image.problems)
  ]
  if not some or 2 * len(some) > len(images):
    some = [report.seen]
  return sorted({likely_cause(labels, top) for labels in some})


def likely_cause(seen: set[int], num_categories: int) -> str:
  """Why the labels `seen` are not 0 ... num_categories and 255."""
  labels = sorted(seen - {IGNORE})
  top = num_categories
  gray = np.rint(palette() @ [0.299, 0.587, 0.114]).astype(int).tolist()
  if labels and labels[0] < 0:
    return (
      f"Labels below 0, such as {labels[0]}: void in a signed map? Write 255"
      " there."
    )
  if set(labels) <= {0}:
    return (
      "Masks saved as 0 and 255? 255 means void here: write the category's "
      "number (1) instead."
    )
  if max(labels) == top + 1:
    if 0 not in labels:
      return (
        f"Labels are 1 ... {top + 1}: 1-based ids. Subtract 1, so that the "
        "first name of labels.txt is label 0."
      )
    return (
      f"Labels are 0 ... {top + 1}, one more than labels.txt names: is 0 void "
      "(turn 0 into 255 and subtract 1 from the rest), or does labels.txt "
      "lack its first line, 'background'?"
    )
  if set(labels) <= set(gray[: max(top + 1, 21)]) | {gray[IGNORE]}:
    return (
      "Labels are the gray values of VOC's palette: a palette read as RGB and "
      "turned into gray. Read it as ids (PIL: without convert)."
    )
  step = int(np.gcd.reduce(labels))
  if step > 1 and max(labels) <= step * top:
    return f"Labels are multiples of {step}, stretched to be seen: divide."
  if max(labels) > IGNORE:
    return (
      "Labels beyond 255: an instance map in the place of the category map, or "
      "category * 1000 + instance?"
    )
  return (
    f"labels.txt names {top + 1} labels, the maps have up to {max(labels)}: a "
    "label list of other data, or stray values of a brush or a resize?"
  )
