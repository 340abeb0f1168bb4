"""Tiny data sets in the official formats, written as their authors did."""

import json

import cv2
import numpy as np
import scipy.io
import scipy.sparse
from PIL import Image

from fcrn_jax.data.inspection import palette

IDS = ("2007_000001", "2008_000001", "2008_000002", "2008_000003")
SHAPE = (12, 16)

# An image of VOC's kind: two people that touch, a border of void, a dog.
OBJECTS = np.zeros(SHAPE, np.uint8)
OBJECTS[2:6, 2:5] = 1
OBJECTS[2:6, 5:9] = 2
OBJECTS[8:11, 10:15] = 3
CLASSES = (15, 15, 12)


def paint(objects, classes):
  """Category map of an instance map."""
  return np.concatenate([[0], classes]).astype(np.uint8)[objects]


def photo(seed, shape=SHAPE):
  return np.random.default_rng(seed).integers(0, 255, (*shape, 3), np.uint8)


def write_palette(path, ids):
  """A palette PNG, as the VOC devkit's."""
  path.parent.mkdir(parents=True, exist_ok=True)
  image = Image.fromarray(ids.astype(np.uint8), "P")
  image.putpalette(palette().ravel().tolist())
  image.save(path)


def write_lines(path, lines):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text("".join(f"{line}\n" for line in lines))


def write_voc2012(root):
  """2007_000001 is seg train, 2008_000001 seg val; SBD has the 2008 ones.

  By VOC's main lists 2008_000002 is for training, the other two for testing.
  """
  voc = root / "VOCdevkit" / "VOC2012"
  for k, name in enumerate(IDS):
    (voc / "JPEGImages").mkdir(parents=True, exist_ok=True)
    Image.fromarray(photo(k)).save(voc / "JPEGImages" / f"{name}.jpg")
  void = OBJECTS.copy()
  void[7, :] = 255
  for name in IDS[:2]:
    write_palette(voc / "SegmentationObject" / f"{name}.png", void)
    semantic = np.where(void == 255, 255, paint(OBJECTS, CLASSES))
    write_palette(voc / "SegmentationClass" / f"{name}.png", semantic)
  lists = voc / "ImageSets"
  write_lines(lists / "Segmentation" / "train.txt", IDS[:1])
  write_lines(lists / "Segmentation" / "val.txt", IDS[1:2])
  write_lines(lists / "Main" / "train.txt", IDS[2:3])
  write_lines(lists / "Main" / "val.txt", [IDS[1], IDS[3]])
  for name in IDS[1:]:
    write_sbd(root / "benchmark_RELEASE" / "dataset", name, OBJECTS, (1, 2, 3))


def write_sbd(root, name, objects, classes):
  """SBD's two .mat files: 1 x 1 structs of a cell of sparse boundaries,
  a uint8 map and a column of category numbers."""
  semantic = paint(objects, [*classes, *[1] * 20])

  def cell(maps):
    cells = np.empty((len(maps), 1), object)
    for k, one in enumerate(maps):
      cells[k, 0] = scipy.sparse.csc_matrix(one.astype(np.float64))
    return cells

  present = np.unique(semantic[semantic > 0]).astype(np.uint8)[:, None]
  categories = np.asarray(classes, np.uint8)[:, None]
  for folder, struct, content in (
    (
      "cls", "GTcls",
      {
        "Boundaries": cell([semantic == k for k in range(1, 21)]),
        "Segmentation": semantic,
        "CategoriesPresent": present,
      },
    ),
    (
      "inst", "GTinst",
      {
        "Segmentation": objects,
        "Boundaries": cell([objects == k + 1 for k in range(len(classes))]),
        "Categories": categories,
      },
    ),
  ):  # fmt: skip
    (root / folder).mkdir(parents=True, exist_ok=True)
    scipy.io.savemat(
      root / folder / f"{name}.mat", {struct: content}, do_compression=True
    )


def write_context(root, numbers):
  """VOC 2010 and a LabelMap of the 459 categories for each of two images."""
  voc = root / "VOCdevkit" / "VOC2010"
  (voc / "JPEGImages").mkdir(parents=True)
  (root / "trainval").mkdir()
  for k, (part, name) in enumerate((("train", IDS[1]), ("val", IDS[2]))):
    Image.fromarray(photo(k)).save(voc / "JPEGImages" / f"{name}.jpg")
    write_lines(voc / "ImageSets" / "Main" / f"{part}.txt", [name])
    scipy.io.savemat(root / "trainval" / f"{name}.mat", {"LabelMap": numbers})


def write_cityscapes(root, labels, instances, split="train", seed=0):
  """The official folders and names, 8-bit labelIds and 16-bit instanceIds."""
  name = f"aachen_{seed:06d}_000019"
  image = root / "leftImg8bit" / split / "aachen"
  fine = root / "gtFine" / split / "aachen"
  for folder in (image, fine):
    folder.mkdir(parents=True, exist_ok=True)
  Image.fromarray(photo(seed, labels.shape)).save(
    image / f"{name}_leftImg8bit.png"
  )
  Image.fromarray(labels.astype(np.uint8)).save(
    fine / f"{name}_gtFine_labelIds.png"
  )
  cv2.imwrite(
    str(fine / f"{name}_gtFine_instanceIds.png"), instances.astype(np.uint16)
  )
  return name


COCO_CATEGORIES = [
  {"id": 1, "name": "person"}, {"id": 18, "name": "dog"},
  {"id": 44, "name": "bottle"},
]  # fmt: skip


def write_coco(root, annotations, num_images=1, split="val2017"):
  """Images 1 ... n and a json of the annotations."""
  (root / "images").mkdir(parents=True, exist_ok=True)
  (root / "annotations").mkdir(exist_ok=True)
  images = []
  for k in range(1, num_images + 1):
    name = f"{k:012d}.jpg"
    Image.fromarray(photo(k)).save(root / "images" / name)
    images.append(
      {"id": k, "file_name": name, "height": SHAPE[0], "width": SHAPE[1]}
    )
  content = {
    "images": images,
    "annotations": annotations,
    "categories": COCO_CATEGORIES,
  }
  file = root / "annotations" / f"instances_{split}.json"
  file.write_text(json.dumps(content))
  return file
