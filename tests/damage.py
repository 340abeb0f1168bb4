"""Plants one defect of each kind in a copy of the nuclei data.

python -m tests.damage ../shared/data/nuclei COPY
"""

import shutil
import struct
import sys
import zlib

import numpy as np
from PIL import Image

from fcrn_jax.data.inspection import palette

PARTS = ("JPEGImages", "SegmentationClass", "SegmentationObject")


def copy(source, root, numbers):
  """Copies the first images of each split; labels.txt gets a category more."""
  lists = root / "ImageSets" / "Segmentation"
  lists.mkdir(parents=True)
  for part in PARTS:
    (root / part).mkdir()
  for split, number in numbers.items():
    names = (source / "ImageSets" / "Segmentation" / f"{split}.txt").read_text()
    names = names.split()[:number]
    (lists / f"{split}.txt").write_text("".join(f"{n}\n" for n in names))
    for name in names:
      for part in PARTS:
        shutil.copy(source / part / f"{name}.png", root / part)
  (root / "labels.txt").write_text("background\nnucleus\ndebris\n")


def damage(root):
  """The planted defects: (kind of check.KINDS, id of the image)."""
  lists = root / "ImageSets" / "Segmentation"
  train = (lists / "train.txt").read_text().split()
  val = (lists / "val.txt").read_text().split()
  ids = iter(train)
  planted = []

  def plant(kind, part):
    name = next(ids)
    planted.append((kind, name))
    return name, root / part / f"{name}.png"

  _break_files(plant)
  _break_maps(plant)
  _break_instances(plant, root)
  _break_lists(plant, root, lists, planted, val, ids)
  return planted


def _break_files(plant):
  _, file = plant("unreadable", "JPEGImages")  # truncated image
  file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
  _, file = plant("unreadable", "JPEGImages")  # empty image
  file.write_bytes(b"")
  _, file = plant("unreadable", "JPEGImages")  # decompression bomb
  file.write_bytes(_bomb())
  _, file = plant("unreadable", "JPEGImages")  # no picture
  file.write_text("<html>404 Not Found</html>")
  _, file = plant("unreadable", "SegmentationClass")  # empty category map
  file.write_bytes(b"")
  _, file = plant("unreadable", "SegmentationObject")  # truncated instances
  file.write_bytes(file.read_bytes()[:-40])


def _bomb():
  """A PNG of a few hundred bytes that claims 60,000 x 60,000 pixels."""

  def chunk(kind, content):
    body = kind + content
    return (
      struct.pack(">I", len(content))
      + body
      + struct.pack(">I", zlib.crc32(body))
    )

  header = struct.pack(">IIBBBBB", 60000, 60000, 8, 0, 0, 0, 0)
  return (
    b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
  )  # fmt: skip


def _break_maps(plant):
  _, file = plant("colours", "SegmentationClass")  # palette read as RGB
  Image.fromarray(palette()[np.asarray(Image.open(file))]).save(file)
  _, file = plant("range", "SegmentationClass")  # the same, turned to gray
  colours = Image.fromarray(palette()[np.asarray(Image.open(file))])
  colours.convert("L").save(file)
  _, file = plant("range", "SegmentationClass")  # a stray label
  labels = np.array(Image.open(file))
  labels[:5, :5] = 7
  Image.fromarray(labels).save(file)
  _, file = plant("size", "SegmentationClass")  # resized
  labels = Image.open(file)
  labels.resize((labels.width // 2, labels.height // 2), 0).save(file)
  _, file = plant("size", "SegmentationObject")
  labels = Image.open(file)
  labels.resize((labels.width + 1, labels.height), 0).save(file)
  _, file = plant("void", "SegmentationClass")
  shape = np.asarray(Image.open(file)).shape
  Image.fromarray(np.full(shape, 255, np.uint8)).save(file)
  name, file = plant("empty", "SegmentationClass")
  shape = np.asarray(Image.open(file)).shape
  Image.fromarray(np.zeros(shape, np.uint8)).save(file)
  objects = file.parent.parent / "SegmentationObject" / f"{name}.png"
  Image.fromarray(np.zeros(shape, np.uint16)).save(objects)


def _break_instances(plant, root):
  for kind, label in (("no_category", 0), ("two_categories", 2)):
    name, file = plant(kind, "SegmentationClass")
    labels = np.array(Image.open(file))
    objects = np.asarray(
      Image.open(root / "SegmentationObject" / f"{name}.png")
    )
    mask = np.flatnonzero(objects == objects.max())
    if kind == "two_categories":
      mask = mask[: len(mask) // 2]
    labels.ravel()[mask] = label
    Image.fromarray(labels).save(file)


def _break_lists(plant, root, lists, planted, val, ids):
  for part in PARTS:
    _, file = plant("missing", part)
    file.unlink()
  # A validation image that is a training image saved in another way.
  name, file = plant("leak", "JPEGImages")
  twin = root / "JPEGImages" / f"{val[0]}.png"
  Image.open(file).convert("RGB").save(twin.with_suffix(".bmp"))
  twin.unlink()
  for part in PARTS[1:]:
    shutil.copy(root / part / f"{name}.png", root / part / f"{val[0]}.png")
  name, _ = plant("leak", "JPEGImages")  # listed in both
  with open(lists / "val.txt", "a") as stream:
    stream.write(f"{name}\n")
  name, _ = plant("twice", "JPEGImages")  # listed twice
  with open(lists / "train.txt", "a") as stream:
    stream.write(f"{name}\n")
  name, other = next(ids), next(ids)  # one a copy of the other
  planted.append(("twice", name))
  for part in PARTS:
    shutil.copy(root / part / f"{name}.png", root / part / f"{other}.png")
  (lists / "test.txt").write_text("")
  planted.append(("missing", "test"))
  shutil.copy(
    root / "JPEGImages" / f"{val[1]}.png", root / "JPEGImages" / "alone.png"
  )
  planted.append(("unlisted", "alone"))


if __name__ == "__main__":
  import pathlib

  source, target = map(pathlib.Path, sys.argv[1:])
  copy(source, target, {"train": 460, "val": 73})
  print(len(damage(target)), "defects planted")
