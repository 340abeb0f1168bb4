"""Looks at one image of a data set and says what is wrong; see check."""

import hashlib
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Integer, UInt8
from PIL import Image

from fcrn_jax.data import folder, pictures
from fcrn_jax.types import IGNORE, Array, palette

_MIXED = 0.02  # an instance has two categories above this share (ours)


class Problem(NamedTuple):
  """One finding: its kind (a key of check.KINDS), the image, and words."""

  kind: str
  key: str
  message: str


class Inspection(NamedTuple):
  """What is known of one image; None or empty where it cannot be read."""

  key: str
  problems: list[Problem]
  size: tuple[int, int] | None  # H, W
  digest: str  # hash of the decoded pixels
  pixels: dict[int, int]  # of each label
  areas: list[tuple[int, int]]  # category and pixels of each instance


def inspect(dataset: Any, index: int) -> Inspection:
  """Reads an example of any data set and its labels, and never raises.

  The files of a folder are read one by one, so that what one of them hides
  is found too; other data are judged by what their reader says.
  """
  key = dataset.ids[index]
  if isinstance(dataset, folder.Folder):
    return _inspect_files(dataset, index)
  try:
    example = dataset[index]
  except ValueError as error:
    problem = Problem("unreadable", key, str(error))
    return Inspection(key, [problem], None, "", {}, [])
  semantic, image = example["semantic"], example["image"]
  areas = []
  if dataset.has_instances:
    counts = np.bincount(
      example["instances"].ravel(), minlength=len(example["classes"]) + 1
    )[1:]
    areas = list(zip(example["classes"].tolist(), counts.tolist(), strict=True))
  return Inspection(
    key,
    _empty(key, semantic, str(key)),
    image.shape[:2],
    _digest(image),
    _histogram(semantic),
    areas,
  )


def _inspect_files(dataset: folder.Folder, index: int) -> Inspection:
  key = dataset.ids[index]
  problems, size, digest = [], None, ""
  try:
    image = pictures.load_image(dataset.image_file(index))
    size, digest = image.shape[:2], _digest(image)
  except ValueError as error:
    problems.append(Problem("unreadable", key, str(error)))
  semantic_file, instances_file = dataset.label_files(index)
  semantic = _read_map(semantic_file, key, size, problems)
  if semantic is None:
    return Inspection(key, problems, size, digest, {}, [])
  problems += _empty(key, semantic, semantic_file)
  num_categories = len(dataset.categories)
  known = (semantic >= 0) & (semantic <= num_categories)
  known |= semantic == IGNORE
  if not known.all():
    wrong = np.unique(semantic[~known])
    problems.append(
      Problem(
        "range",
        key,
        f"{semantic_file} has labels {wrong[:10].tolist()}"
        f"{' ...' if len(wrong) > 10 else ''} on "
        f"{(~known).sum():,} pixels; labels.txt names 0 ... "
        f"{num_categories}.",
      )
    )
  areas = []
  if instances_file is not None:
    instances = _read_map(instances_file, key, size, problems)
    if instances is not None and instances.shape == semantic.shape:
      labels = np.where(known, semantic, IGNORE).astype(np.uint8)
      found, areas = _instances(
        key, instances, labels, num_categories, instances_file
      )
      problems += found
  return Inspection(key, problems, size, digest, _histogram(semantic), areas)


def _read_map(
  file: str, key: str, size: tuple[int, int] | None, problems: list[Problem]
) -> Integer[Array, "H W"] | None:
  """A label map, or None and a problem; another one if its size is wrong."""
  try:
    with pictures.naming(file):
      with Image.open(file) as picture:
        colours = picture.mode in ("RGB", "RGBA")
        lossy = pictures.is_lossy(picture)
      if lossy:
        problems.append(Problem("lossy", key, f"{file} is a JPEG."))
        return None
      if colours:
        problems.append(Problem("colours", key, _explain_colours(file)))
        return None
    labels = pictures.load_map(file)
  except ValueError as error:
    problems.append(Problem("unreadable", key, str(error)))
    return None
  if size is not None and labels.shape != size:
    turned = " It fits turned by 90 degrees: was the image's EXIF orientation"
    problems.append(
      Problem(
        "size",
        key,
        f"{file} is {labels.shape[0]} x {labels.shape[1]}, its image "
        f"{size[0]} x {size[1]}."
        f"{turned + ' ignored?' if labels.shape == size[::-1] else ''}",
      )
    )
  return labels


def _explain_colours(file: str) -> str:
  """Whether a colour picture's colours are those of VOC's palette."""
  pixels = np.asarray(Image.open(file).convert("RGB")).reshape(-1, 3)
  colours = np.unique(pixels, axis=0)
  ids = {tuple(colour): k for k, colour in enumerate(palette().tolist())}
  if all(tuple(colour) in ids for colour in colours.tolist()):
    found = sorted(ids[tuple(colour)] for colour in colours.tolist())
    return (
      f"{file} is a colour picture in VOC's palette, of labels {found[:12]}: a "
      "palette file was read as RGB and saved again."
    )
  return f"{file} is a colour picture of {len(colours)} colours, not of ids."


def _instances(
  key: str,
  instances: Integer[Array, "H W"],
  semantic: Integer[Array, "H W"],
  num_categories: int,
  file: str,
) -> tuple[list[Problem], list[tuple[int, int]]]:
  """Problems of the instances, and category and area of each."""
  if instances.dtype == np.uint8:
    instances = np.where(instances == IGNORE, 0, instances)
  try:
    ids, votes = folder.count_labels(instances, semantic, file)
  except ValueError as error:
    return [Problem("range", key, str(error))], []
  problems, areas = [], []
  for k, counts in zip(ids.tolist(), votes, strict=True):
    own = counts[1 : num_categories + 1]
    best, *others = np.argsort(-own, kind="stable").tolist()
    if own[best]:
      areas.append((best + 1, int(own.sum())))
    elif counts[0]:
      message = (
        f"{file}: instance {k} ({counts.sum()} pixels) lies on background."
      )
      problems.append(Problem("no_category", key, message))
    if others and own[others[0]] > _MIXED * own.sum():
      message = (
        f"{file}: instance {k} has {own[best]} pixels of category {best + 1} "
        f"and {own[others[0]]} of category {others[0] + 1}."
      )
      problems.append(Problem("two_categories", key, message))
  return problems, areas


def _empty(
  key: str, semantic: Integer[Array, "H W"], where: str
) -> list[Problem]:
  if (semantic == IGNORE).all():
    return [Problem("void", key, f"{where} is all void (255).")]
  if not ((semantic > 0) & (semantic != IGNORE)).any():
    return [Problem("empty", key, f"{where} has no category, only label 0.")]
  return []


def _histogram(labels: Integer[Array, "H W"]) -> dict[int, int]:
  values, counts = np.unique(labels, return_counts=True)
  return dict(zip(values.tolist(), counts.tolist(), strict=True))


def _digest(image: UInt8[Array, "H W 3"]) -> str:
  """Equal for equal pixels, whatever file they come from."""
  digest = hashlib.blake2b(str(image.shape).encode(), digest_size=16)
  digest.update(np.ascontiguousarray(image))
  return digest.hexdigest()
