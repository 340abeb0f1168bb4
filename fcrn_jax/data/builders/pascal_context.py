"""PASCAL-Context: 59 categories and background on the images of VOC 2010.

The annotations tell 459 categories apart; the 59 common ones count, all else
is background (0), as in the released FCN code. Splits are VOC 2010's main
ones: train 4,998, val 5,105. No instances, no void.
"""

import functools
import pathlib
from typing import Any

import numpy as np

from fcrn_jax.data.builders import archives
from fcrn_jax.data.functions import Functions

SPLITS = {"train": 4998, "val": 5105}
# Name of the category (59_labels.txt) and its number among the 459. The long
# list calls diningtable table, bedcloth bedclothes and clothes cloth.
NUMBERS = {
  "aeroplane": 2, "bicycle": 23, "bird": 25, "boat": 31, "bottle": 34,
  "bus": 45, "car": 59, "cat": 65, "chair": 72, "cow": 98, "diningtable": 397,
  "dog": 113, "horse": 207, "motorbike": 258, "person": 284, "pottedplant": 308,
  "sheep": 347, "sofa": 368, "train": 416, "tvmonitor": 427, "bag": 9,
  "bed": 18, "bench": 22, "book": 33, "building": 44, "cabinet": 46,
  "ceiling": 68, "clothes": 80, "computer": 85, "cup": 104, "door": 115,
  "fence": 144, "floor": 158, "flower": 159, "food": 162, "grass": 187,
  "ground": 189, "keyboard": 220, "light": 232, "mountain": 259, "mouse": 260,
  "curtain": 105, "platform": 296, "sign": 355, "plate": 295, "road": 324,
  "rock": 326, "shelves": 349, "sidewalk": 354, "sky": 360, "snow": 366,
  "bedcloth": 19, "track": 415, "tree": 420, "truck": 424, "wall": 440,
  "water": 445, "window": 454, "wood": 458,
}  # fmt: skip
CATEGORIES = tuple(NUMBERS)
_ALIASES = {
  "diningtable": "table",
  "bedcloth": "bedclothes",
  "clothes": "cloth",
}
NUM_ALL = 459
VOC = archives.Archive(
  file="VOCtrainval_03-May-2010.tar",
  url="http://host.robots.ox.ac.uk/pascal/VOC/voc2010/VOCtrainval_03-May-2010.tar",
  folder="VOCdevkit/VOC2010",
  marker="JPEGImages",
  md5="da459979d0c395079b5c75ee67908abb",
)
CONTEXT = archives.Archive(
  file="trainval.tar.gz",
  url="https://cs.stanford.edu/~roozbeh/pascal-context/trainval.tar.gz",
  folder="trainval",
  marker="*.mat",
  md5="df034edb2c12aa7d33b42b20bb1796e3",
)
HELP = archives.instructions(
  "PASCAL-Context",
  "https://cs.stanford.edu/~roozbeh/pascal-context/",
  (VOC, CONTEXT),
  "At 100 Mbit/s 2 minutes to fetch, about 1 to prepare.",
)
Options = archives.Options


def load(path: Any, split: str, options: Options) -> Functions:
  """The split, from the archives or their folders in `path`.

  ValueError if they are missing, damaged, or not the official number.
  """
  archives.check_split("pascal_context", split, SPLITS)
  root = pathlib.Path(path).expanduser()
  voc = archives.find(root, VOC, HELP)
  context = archives.find(root, CONTEXT, HELP)
  _check_names(context)
  listed = voc / "ImageSets" / "Main" / f"{split}.txt"
  if not listed.is_file():
    raise ValueError(f"{listed} is missing; extract {VOC.file} again.")
  listed = listed.read_text().split()
  ids = archives.present(listed, voc / "JPEGImages", ".jpg", options.partial)
  ids = archives.present(ids, context, ".mat", options.partial)
  archives.check_counts(
    "pascal_context", split, len(ids), SPLITS[split], options.partial
  )
  return Functions(
    ids,
    functools.partial(_image, voc),
    functools.partial(_labels, context),
    CATEGORIES,
    name="pascal_context",
    split=split,
    path=root,
    has_instances=False,
  )


def _check_names(context: pathlib.Path) -> None:
  """ValueError if the archive's labels.txt numbers the categories otherwise."""
  file = context.parent / "labels.txt"
  if not file.is_file():
    return
  lines = (line.split(":") for line in file.read_text().splitlines() if line)
  numbers = {name.strip(): int(number) for number, name in lines}
  for name, number in NUMBERS.items():
    if numbers.get(_ALIASES.get(name, name)) != number:
      raise ValueError(
        f"{file} gives {name!r} the number "
        f"{numbers.get(_ALIASES.get(name, name))}, expected {number}; it is "
        f"not the official list. Fetch {CONTEXT.url} again."
      )


def _image(voc: pathlib.Path, key: str) -> str:
  return str(voc / "JPEGImages" / f"{key}.jpg")


def _labels(context: pathlib.Path, key: str) -> dict[str, Any]:
  return {"semantic": read_context(context / f"{key}.mat")}


def read_context(file: pathlib.Path) -> np.ndarray:
  """The 59-category map, H W uint8, of an annotation's LabelMap."""
  numbers = archives.read_matlab(file, "LabelMap", CONTEXT)
  if numbers.max() > NUM_ALL:
    raise ValueError(
      f"{file} has label {numbers.max()}; expected 0 ... {NUM_ALL}."
    )
  table = np.zeros(NUM_ALL + 1, np.uint8)
  table[list(NUMBERS.values())] = np.arange(1, len(NUMBERS) + 1)
  return table[numbers]
