"""PASCAL VOC 2012 segmentation merged with SBD: 20 categories.

Splits, with their official numbers of images and whose annotations they have:

  seg_train  1,464   VOC 2012 segmentation train         VOC
  seg_val    1,449   VOC 2012 segmentation val           VOC
  train_aug 10,582   (all SBD - seg_val) + seg_train     VOC where it has, SBD
  sbd_train  5,623   SBD images of VOC 2012 train        SBD
  sbd_val    5,732   SBD images of VOC 2012 val          SBD

A semantic network of the paper trains on train_aug and tests on seg_val; its
instances train on sbd_train and test on sbd_val. 4,629 of the 5,732 images of
sbd_val are in train_aug: check.shared_ids finds them.
VOC has void borders (255), SBD has no void.
"""

import functools
import pathlib
from collections.abc import Set
from typing import Any

from fcrn_jax.data import folder
from fcrn_jax.data.builders import archives
from fcrn_jax.data.functions import Functions, number_instances

CATEGORIES = folder.VOC_LABELS[1:]
SPLITS = {
  "seg_train": 1464, "seg_val": 1449, "train_aug": 10582, "sbd_train": 5623,
  "sbd_val": 5732,
}  # fmt: skip
FLAGS = ("seg_train", "seg_val", "sbd_train", "sbd_val")  # of each image
VOC = archives.Archive(
  file="VOCtrainval_11-May-2012.tar",
  url="http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar",
  folder="VOCdevkit/VOC2012",
  marker="JPEGImages",
  size=1_999_639_040,
  md5="6cd6e144f989b92b3379bac3b3de84fd",
)
SBD = archives.Archive(
  file="benchmark.tgz",
  url="https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/benchmark.tgz",
  folder="benchmark_RELEASE/dataset",
  marker="inst",
  size=1_419_539_633,
  md5="82b4d87ceb2ed10f6038a1cba92111cb",
)
HELP = archives.instructions(
  "VOC 2012 + SBD",
  "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/",
  (VOC, SBD),
  "At 100 Mbit/s 5 minutes to fetch; all splits take about 5 minutes to "
  "prepare in one process, 2 in four.",
)
Options = archives.Options


def load(path: Any, split: str, options: Options) -> Functions:
  """The split, from the archives or their folders in `path`.

  ValueError if they are missing, damaged, or not the official number.
  """
  archives.check_split("voc2012_sbd", split, SPLITS)
  root = pathlib.Path(path).expanduser()
  voc = archives.find(root, VOC, HELP)
  try:
    sbd = archives.find(root, SBD, HELP)
  except ValueError:
    if not (options.partial and split.startswith("seg")):
      raise
    sbd = None
  members = _members(voc, sbd)
  ids = sorted(split_ids(split, members))
  ids = archives.present(ids, voc / "JPEGImages", ".jpg", options.partial)
  archives.check_counts(
    "voc2012_sbd", split, len(ids), SPLITS[split], options.partial
  )
  from_voc = frozenset()
  if not split.startswith("sbd"):
    from_voc = members["seg_train"] | members["seg_val"]
  return Functions(
    ids,
    functools.partial(_image, voc),
    functools.partial(_labels, voc, sbd, from_voc),
    CATEGORIES,
    name="voc2012_sbd",
    split=split,
    path=root,
    membership=members,
  )


def split_ids(split: str, members: dict[str, Set[str]]) -> Set[str]:
  """The ids of a split, from who is in the four official lists."""
  if split == "train_aug":
    everything = members["sbd_train"] | members["sbd_val"]
    return (everything - members["seg_val"]) | members["seg_train"]
  return members[split]


def _members(
  voc: pathlib.Path, sbd: pathlib.Path | None
) -> dict[str, frozenset[str]]:
  """Ids of the four lists: VOC's own, and SBD's images by VOC's main split.

  SBD's own train.txt and val.txt mix VOC's train and val; the field uses
  SBD's 11,355 images by the split of VOC 2012 (ImageSets/Main).
  """
  members = {
    f"seg_{part}": frozenset(folder.read_split(voc, part))
    for part in ("train", "val")
    if (voc / "ImageSets" / "Segmentation" / f"{part}.txt").is_file()
  }
  annotated = {f.stem for f in (sbd / "inst").glob("*.mat")} if sbd else set()
  for part in ("train", "val"):
    members.setdefault(f"seg_{part}", frozenset())
    main = voc / "ImageSets" / "Main" / f"{part}.txt"
    if annotated and not main.is_file():
      raise ValueError(
        f"{main} is missing; it says which SBD images are for training. "
        "Extract all of VOCtrainval_11-May-2012.tar."
      )
    listed = set(main.read_text().split()) if annotated else set()
    members[f"sbd_{part}"] = frozenset(annotated & listed)
  return members


def _image(voc: pathlib.Path, key: str) -> str:
  return str(voc / "JPEGImages" / f"{key}.jpg")


def _labels(
  voc: pathlib.Path,
  sbd: pathlib.Path | None,
  from_voc: Set[str],
  key: str,
) -> dict[str, Any]:
  if key in from_voc:
    return folder.load_labels(
      voc / "SegmentationClass" / f"{key}.png",
      voc / "SegmentationObject" / f"{key}.png",
      len(CATEGORIES),
    )
  return read_sbd(sbd / "cls" / f"{key}.mat", sbd / "inst" / f"{key}.mat")


def read_sbd(cls: pathlib.Path, inst: pathlib.Path) -> dict[str, Any]:
  """Labels from SBD's two .mat files of an image.

  GTcls.Segmentation holds categories, GTinst.Segmentation instance numbers k,
  GTinst.Categories[k - 1] the category of each. ValueError names a file that
  cannot be read or whose parts do not fit.
  """
  semantic = archives.read_matlab(cls, "GTcls", SBD)["Segmentation"][0, 0]
  found = archives.read_matlab(inst, "GTinst", SBD)
  numbers, classes = found["Segmentation"][0, 0], found["Categories"][0, 0]
  classes = classes.ravel()
  if numbers.shape != semantic.shape or numbers.max() > len(classes):
    raise ValueError(
      f"{inst} is {numbers.shape} with instances up to {numbers.max()} and "
      f"{len(classes)} categories, {cls} is {semantic.shape}; expected equal "
      "sizes and a category for each instance. Extract benchmark.tgz again."
    )
  return {"semantic": semantic, **number_instances(numbers, classes)}
