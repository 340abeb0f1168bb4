"""Cityscapes fine annotations: the 19 train ids, instances of 8 of them.

Semantic labels are the train ids, so label 0 is road and the categories 1 to
18 are the rest; 255 is void. Regions of a thing category that stand for
several objects at once ("person group") have the category but no instance.
Splits: train 2,975, val 500.
"""

import functools
import pathlib
from typing import Any

import numpy as np

from fcrn_jax.data import pictures
from fcrn_jax.data.builders import archives
from fcrn_jax.data.functions import Functions
from fcrn_jax.types import IGNORE

SPLITS = {"train": 2975, "val": 500}
# Name and label id of train ids 0 ... 18.
LABELS = {
  "road": 7, "sidewalk": 8, "building": 11, "wall": 12, "fence": 13,
  "pole": 17, "traffic light": 19, "traffic sign": 20, "vegetation": 21,
  "terrain": 22, "sky": 23, "person": 24, "rider": 25, "car": 26, "truck": 27,
  "bus": 28, "train": 31, "motorcycle": 32, "bicycle": 33,
}  # fmt: skip
CATEGORIES = tuple(LABELS)[1:]
THINGS = (24, 25, 26, 27, 28, 31, 32, 33)  # label ids that have instances
IMAGES = archives.Archive(
  file="leftImg8bit_trainvaltest.zip",
  url="https://www.cityscapes-dataset.com/file-handling/?packageID=3",
  folder="leftImg8bit",
  marker="*/*/*_leftImg8bit.png",
  size=11_592_327_197,
  md5="0a6e97e94b616a514066c9e2adb0c97f",
)
FINE = archives.Archive(
  file="gtFine_trainvaltest.zip",
  url="https://www.cityscapes-dataset.com/file-handling/?packageID=1",
  folder="gtFine",
  marker="*/*/*_gtFine_labelIds.png",
  size=252_567_705,
  md5="4237c19de34c8a376e9ba46b495d6f66",
)
HELP = archives.instructions(
  "Cityscapes",
  "https://www.cityscapes-dataset.com/downloads/ (login needed)",
  (IMAGES, FINE),
  "At 100 Mbit/s 16 minutes to fetch, about 15 to prepare in one process, "
  "4 in four.",
)
Options = archives.Options


def load(path: Any, split: str, options: Options) -> Functions:
  """The split, from the archives or their folders in `path`.

  ValueError if they are missing, damaged, or not the official number.
  """
  archives.check_split("cityscapes", split, SPLITS)
  root = pathlib.Path(path).expanduser()
  images = archives.find(root, IMAGES, HELP) / split
  fine = archives.find(root, FINE, HELP) / split
  ids = sorted(
    file.name.removesuffix("_leftImg8bit.png")
    for file in images.glob("*/*_leftImg8bit.png")
  )
  archives.check_counts(
    "cityscapes", split, len(ids), SPLITS[split], options.partial
  )
  return Functions(
    ids,
    functools.partial(_image, images),
    functools.partial(_labels, fine),
    CATEGORIES,
    name="cityscapes",
    split=split,
    path=root,
    background="road",
  )


def _image(images: pathlib.Path, key: str) -> str:
  return str(images / key.split("_")[0] / f"{key}_leftImg8bit.png")


def _labels(fine: pathlib.Path, key: str) -> dict[str, Any]:
  stem = fine / key.split("_")[0] / f"{key}_gtFine"
  return read_fine(f"{stem}_labelIds.png", f"{stem}_instanceIds.png")


def read_fine(labels_path: str, instances_path: str) -> dict[str, Any]:
  """Labels from Cityscapes' labelIds and instanceIds pictures.

  An instance id is its label id * 1000 + number; ids below 1000 are no
  instances. ValueError names files that cannot be read or disagree.
  """
  labels = pictures.load_map(labels_path)
  numbers = pictures.load_map(instances_path, labels.shape)
  if labels.min() < 0 or labels.max() > 255:
    raise ValueError(f"{labels_path} has ids outside 0 ... 255.")
  if numbers.min() < 0 or numbers.max() > 65535:
    raise ValueError(f"{instances_path} has ids outside 0 ... 65535.")
  table = np.full(256, IGNORE, np.uint8)
  table[list(LABELS.values())] = np.arange(len(LABELS))
  ids = np.flatnonzero(np.bincount(numbers.ravel()))
  # Instances of other labels (trailers, caravans) are void in the 19 classes.
  ids = ids[np.isin(ids // 1000, THINGS)]
  order = np.zeros(1 << 16, np.int32)
  order[ids] = np.arange(1, len(ids) + 1)
  instances = order[numbers]
  if np.any((instances > 0) & (numbers // 1000 != labels)):
    raise ValueError(
      f"{instances_path} has instances on pixels that {labels_path} labels "
      f"otherwise; extract {FINE.file} again."
    )
  return {
    "semantic": table[labels],
    "instances": instances,
    "classes": table[ids // 1000],
  }
