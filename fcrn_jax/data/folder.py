"""A folder in VOC layout: own data without code.

    JPEGImages/<id>.jpg|png|tif...         8- or 16-bit gray, RGB, RGBA
    SegmentationClass/<id>.png             palette or gray; 255 is void
    SegmentationObject/<id>.png            optional; 0 none, k instance k
    ImageSets/Segmentation/<split>.txt     one id a line
    labels.txt                             one name a line: of label 0, 1, ...

An instance map of 8 bits has 255 as void (VOC's borders); one of 16 bits has
no void. An instance's category is the commonest category over its pixels.
"""

import logging
import os
import pathlib
import unicodedata
from collections.abc import Collection
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int, Integer, UInt8
from PIL import Image

from fcrn_jax.data import pictures, transforms
from fcrn_jax.types import IGNORE, Array, listed

# The VOC 2012 devkit has no labels.txt.
VOC_LABELS = (
  "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car",
  "cat", "chair", "cow", "diningtable", "dog", "horse", "motorbike", "person",
  "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip


class Options(NamedTuple):
  """Fields of data.load("folder", options=...)."""

  labels: tuple[str, ...] = ()  # names of label 0, 1, ...; (): labels.txt
  on_error: str = "raise"  # or "skip": leave out images without their files


class Folder:
  """The data set; see data.load.

  `skipped` lists what on_error="skip" left out, one message each.
  """

  name = "folder"

  def __init__(self, path: Any, split: str, options: Options):
    if options.on_error not in ("raise", "skip"):
      raise ValueError(
        f"on_error is {options.on_error!r}; expected 'raise' or 'skip'."
      )
    self.path = pathlib.Path(path).expanduser()
    self.split = split
    labels = tuple(options.labels) or _read_labels(self.path)
    if not 2 <= len(labels) <= IGNORE:
      raise ValueError(
        f"{self.path} has {len(labels)} labels; expected the names of 2 to 255"
        " in labels.txt, label 0 first (255 is void)."
      )
    if len(set(labels)) < len(labels):
      raise ValueError(
        f"{self.path} has two labels of one name among {labels}; rename one in"
        " labels.txt."
      )
    self.background, self.categories = labels[0], labels[1:]
    self._images = list_files(self.path / "JPEGImages")
    self._semantic = list_files(self.path / "SegmentationClass")
    self.has_instances = (self.path / "SegmentationObject").is_dir()
    self._instances = {}
    if self.has_instances:
      self._instances = list_files(self.path / "SegmentationObject")
    self.ids, self.skipped = self._check_ids(options.on_error)

  def _check_ids(self, on_error: str) -> tuple[list[str], list[str]]:
    """The split's ids that have all their files, and messages on the rest."""
    ids, skipped = [], []
    lines = read_split(self.path, self.split)
    names = list(dict.fromkeys(lines))
    if len(names) < len(lines):
      logging.warning(
        "%s.txt of %s lists %d images twice; each is taken once.",
        self.split, self.path, len(lines) - len(names),
      )  # fmt: skip
    suffixes = tuple(Image.registered_extensions())
    absent = [name for name in names if name not in self._images]
    if files := [name for name in absent if name.lower().endswith(suffixes)]:
      raise ValueError(
        f"{self.split}.txt lists file names ({listed(files, 3)}); list ids,"
        f" without suffix: {pathlib.PurePath(files[0]).stem}."
      )
    parts = [
      ("JPEGImages", self._images),
      ("SegmentationClass", self._semantic),
    ]
    if self.has_instances:
      parts.append(("SegmentationObject", self._instances))
    for name in names:
      missing = [part for part, files in parts if name not in files]
      if not missing:
        ids.append(name)
        continue
      message = (
        f"{self.path / missing[0] / name}.* is missing, but {self.split}.txt "
        f"lists {name!r}; add the file or take the line out of "
        f"ImageSets/Segmentation/{self.split}.txt."
      )
      if on_error == "raise":
        raise ValueError(message)
      skipped.append(message)
    if skipped:
      logging.warning(
        "skipped %d of %d images: %s",
        len(skipped), len(names), listed(skipped, 3, " "),
      )  # fmt: skip
    if not ids:
      raise ValueError(
        f"no image of {self.split}.txt in {self.path} is left: {skipped[0]}"
      )
    return ids, skipped

  def __len__(self) -> int:
    return len(self.ids)

  def __getitem__(self, index: int) -> dict[str, Any]:
    name = self.ids[index]
    image = pictures.load_image(self._images[name])
    labels = load_labels(
      self._semantic[name],
      self._instances.get(name),
      len(self.categories),
      image.shape[:2],
    )
    return {"id": name, "image": image, **labels}

  def image_file(self, index: int) -> str:
    """Path of an example's image file."""
    return self._images[self.ids[index]]

  def label_files(self, index: int) -> tuple[str, str | None]:
    """Paths of an example's category map and, if it has one, instance map."""
    name = self.ids[index]
    return self._semantic[name], self._instances.get(name)


def load_labels(
  semantic_path: str | os.PathLike,
  instances_path: str | os.PathLike | None,
  num_categories: int,
  shape: tuple[int, ...] | None = None,
) -> dict[str, Any]:
  """ "semantic" and, with a path, "instances" and "classes" of an example.

  ValueError names the file that cannot be read, is not of `shape` H W (of
  the semantic map if None), or holds ids that `num_categories` do not allow.
  """
  semantic = pictures.load_map(semantic_path, shape)
  _check_labels(semantic, num_categories, semantic_path)
  semantic = semantic.astype(np.uint8)
  if instances_path is None:
    return {"semantic": semantic}
  raw = pictures.load_map(instances_path, semantic.shape)
  if raw.dtype == np.uint8:
    raw = np.where(raw == IGNORE, 0, raw)
  instances, classes = _categorise(
    raw, semantic, num_categories, instances_path
  )
  return {"semantic": semantic, "instances": instances, "classes": classes}


def read_split(path: pathlib.Path, split: str) -> list[str]:
  """The ids of ImageSets/Segmentation/<split>.txt."""
  folder = path / "ImageSets" / "Segmentation"
  there = list_files(folder, (".txt",))
  if split not in there:
    raise ValueError(
      f"{folder / split}.txt does not exist; splits there: {sorted(there)}."
    )
  ids = read_list(pathlib.Path(there[split]))
  if not ids:
    raise ValueError(
      f"{folder / split}.txt is empty; list one image id a line."
    )
  return ids


def read_list(file: pathlib.Path) -> list[str]:
  """The lines of a text file that are not empty."""
  try:
    text = file.read_text("utf-8-sig")  # also as Windows' editors save it
  except UnicodeDecodeError as error:
    raise ValueError(f"{file} is not in UTF-8 ({error}); save it so.") from None
  lines = (_composed(line).strip() for line in text.splitlines())
  return [line for line in lines if line]


def _composed(name: str) -> str:
  """The same letters as single characters; macOS's disks take them apart."""
  return unicodedata.normalize("NFC", name)


def _read_labels(path: pathlib.Path) -> tuple[str, ...]:
  """The names in labels.txt, in order of label, or VOC's own."""
  file = path / "labels.txt"
  if not file.is_file():
    if path.name.startswith("VOC20"):
      return VOC_LABELS
    coco = " For COCO's format pass --config.data.name=coco."
    raise ValueError(
      f"{file} does not exist; write one name a line, label 0 (mostly "
      "'background') first." + (coco if any(path.glob("*/*.json")) else "")
    )
  return tuple(read_list(file))


def list_files(
  folder: pathlib.Path, suffixes: Collection[str] = ()
) -> dict[str, str]:
  """Path by name without suffix of a folder's files of these suffixes.

  By default those of pictures: annotation tools leave theirs beside them.
  """
  suffixes = suffixes or Image.registered_extensions()
  try:
    with os.scandir(folder) as entries:
      files = sorted(e.path for e in entries if not e.name.startswith("."))
  except PermissionError:
    raise ValueError(
      f"no permission to read {folder}; chmod u+rx it, or run as its owner."
    ) from None
  except (FileNotFoundError, NotADirectoryError):
    raise ValueError(
      f"{folder} does not exist; a folder in VOC layout has JPEGImages, "
      "SegmentationClass and ImageSets/Segmentation."
    ) from None
  named = {}
  for file in map(pathlib.PurePath, files):
    if file.suffix.lower() not in suffixes:
      continue
    stem = _composed(file.stem)
    if stem in named:
      raise ValueError(
        f"{file} and {named[stem]} have the same name; take one away."
      )
    named[stem] = str(file)
  return named


def _check_labels(
  semantic: Integer[Array, "H W"],
  num_categories: int,
  path: str | os.PathLike,
) -> None:
  """ValueError if a label is neither 0 ... num_categories nor void."""
  high = (semantic > num_categories) & (semantic != IGNORE)
  wrong = semantic[(semantic < 0) | high]
  if wrong.size:
    raise ValueError(
      f"{path} has labels {np.unique(wrong)[:10].tolist()}; labels.txt names "
      f"0 ... {num_categories} (and 255 is void). Is the first line of "
      "labels.txt the name of label 0, and does the map hold ids, not colours?"
    )


def count_labels(
  raw: Integer[Array, "H W"], semantic: UInt8[Array, "H W"], path: Any
) -> tuple[Int[Array, "m"], Int[Array, "m 256"]]:
  """The ids of the instances of a map, and how many pixels of each label."""
  if raw.min() < 0 or raw.max() > 65535:
    raise ValueError(f"{path} has ids outside 0 ... 65535.")
  pairs = raw.astype(np.int32).ravel() * 256 + semantic.ravel()
  starts, ends, pairs = transforms.runs(pairs)
  ids, owner = np.unique(pairs // 256, return_inverse=True)
  votes = np.zeros((len(ids), 256), np.int64)
  np.add.at(votes, (owner, pairs % 256), ends - starts)
  return ids[ids > 0], votes[ids > 0]


def _categorise(
  raw: Integer[Array, "H W"],
  semantic: UInt8[Array, "H W"],
  num_categories: int,
  path: str | os.PathLike,
) -> tuple[Int[Array, "H W"], UInt8[Array, "m"]]:
  """Instances renumbered 1 ... m without gaps, and the category of each.

  Instances all on void pixels are left out. ValueError for one that has no
  category and is not void.
  """
  ids, votes = count_labels(raw, semantic, path)
  known = votes[:, 1 : num_categories + 1].any(axis=1)
  lost = ids[~known & (votes[:, 0] > 0)]
  if lost.size:
    raise ValueError(
      f"{path}: instances {lost[:10].tolist()} lie on background; give "
      "their pixels a category in SegmentationClass, or void."
    )
  ids = ids[known]
  table = np.zeros(int(raw.max()) + 1, np.int32)
  table[ids] = np.arange(1, len(ids) + 1)
  classes = votes[known, 1 : num_categories + 1].argmax(axis=1) + 1
  return table[raw], classes.astype(np.uint8)
