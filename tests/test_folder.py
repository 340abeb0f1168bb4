import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from fcrn_jax import data
from fcrn_jax.data import folder
from tests.test_pictures import encode


def make(root, number=3, size=(6, 8)):
  """A sound folder of `number` images with two instances each."""
  for part in ("JPEGImages", "SegmentationClass", "SegmentationObject"):
    (root / part).mkdir(parents=True)
  (root / "ImageSets" / "Segmentation").mkdir(parents=True)
  (root / "labels.txt").write_text("background\ncat\ndog\n")
  semantic = np.zeros(size, np.uint8)
  semantic[1:3, 1:3], semantic[3:5, 4:7] = 1, 2
  instances = np.where(semantic > 0, semantic * 100, 0).astype(np.uint16)
  names = [f"im{k}" for k in range(number)]
  for k, name in enumerate(names):
    image = np.full((*size, 3), 10 * k, np.uint8)
    Image.fromarray(image).save(root / "JPEGImages" / f"{name}.jpg")
    write_palette(root / "SegmentationClass" / f"{name}.png", semantic)
    Image.fromarray(instances).save(root / "SegmentationObject" / f"{name}.png")
  lines = "".join(f"{name}\n" for name in names)
  (root / "ImageSets" / "Segmentation" / "train.txt").write_text(lines)
  return root


def write_palette(path, labels):
  image = Image.fromarray(labels.astype(np.uint8), mode="P")
  image.putpalette([(7 * k) % 256 for k in range(768)])
  image.save(path)


def load(root, **options):
  return data.load("folder", "train", root, options)


# What an example holds.


def test_instances_are_renumbered_and_take_the_commonest_category():
  # Ids 7, 300 and 65535 become 1, 2, 3. Instance 300 has 3 pixels of 2, 1 of
  # 1, and void and background, which do not vote.
  raw = np.array(
    [
      [0, 7, 7, 0, 300, 300],
      [0, 7, 7, 0, 300, 300],
      [0, 0, 0, 0, 300, 300],
      [65535, 0, 0, 0, 300, 300],
    ],
    np.int32,
  )
  semantic = np.array(
    [
      [0, 1, 1, 0, 2, 2],
      [0, 1, 255, 0, 2, 1],
      [0, 0, 0, 0, 0, 255],
      [2, 0, 0, 0, 255, 0],
    ],
    np.uint8,
  )
  instances, classes = folder._categorise(raw, semantic, 2, "map.png")
  expected = [
    [0, 1, 1, 0, 2, 2],
    [0, 1, 1, 0, 2, 2],
    [0, 0, 0, 0, 2, 2],
    [3, 0, 0, 0, 2, 2],
  ]
  np.testing.assert_array_equal(instances, expected)
  assert instances.dtype == np.int32
  assert classes.tolist() == [1, 2, 2]


def test_an_instance_of_void_is_none_and_one_on_background_an_error():
  raw = np.array([[1, 1, 2, 2]], np.uint8)
  instances, classes = folder._categorise(
    raw, np.array([[255, 255, 1, 1]], np.uint8), 1, "map.png"
  )
  assert instances.tolist() == [[0, 0, 1, 1]]
  assert classes.tolist() == [1]
  with pytest.raises(ValueError, match=r"map\.png: instances \[1\].*category"):
    folder._categorise(raw, np.array([[0, 0, 1, 1]], np.uint8), 1, "map.png")


def test_categorise_equals_a_naive_loop():
  rng = np.random.default_rng(0)
  for _ in range(20):
    raw = rng.integers(0, 9, (12, 15)) ** 3
    semantic = rng.choice([0, 1, 2, 3, 255], (12, 15)).astype(np.uint8)
    instances, classes = folder._categorise(raw, semantic, 3, "map.png")
    for k, value in enumerate(sorted(set(raw.ravel()) - {0}), 1):
      np.testing.assert_array_equal(instances == k, raw == value)
      inside = semantic[raw == value]
      votes = [(inside == category).sum() for category in (1, 2, 3)]
      assert classes[k - 1] == 1 + int(np.argmax(votes))


def test_sixteen_bits_have_no_void_and_eight_bits_have(tmp_path):
  root = make(tmp_path, number=1)
  example = load(root)[0]
  # 16 bit ids 100 and 200 of make().
  assert np.unique(example["instances"]).tolist() == [0, 1, 2]
  assert example["classes"].tolist() == [1, 2]
  wide = np.zeros((6, 8), np.uint16)
  wide[1:3, 1:3], wide[3:5, 4:7] = 255, 256
  path = root / "SegmentationObject" / "im0.png"
  Image.fromarray(wide).save(path)
  assert load(root)[0]["classes"].tolist() == [1, 2]
  wide[3:5, 4:7] = 9
  write_palette(path, wide)
  assert load(root)[0]["classes"].tolist() == [2]


def test_without_instance_maps_the_data_are_semantic_only(tmp_path):
  root = make(tmp_path)
  for file in (root / "SegmentationObject").iterdir():
    file.unlink()
  (root / "SegmentationObject").rmdir()
  dataset = load(root)
  assert not dataset.has_instances
  assert set(dataset[0]) == {"id", "image", "semantic"}


def test_labels(tmp_path):
  root = make(tmp_path)
  dataset = load(root)
  assert (dataset.background, dataset.categories) == (
    "background",
    ("cat", "dog"),
  )
  assert load(root, labels=("sky", "a", "b")).background == "sky"
  (root / "labels.txt").unlink()
  with pytest.raises(ValueError, match=r"labels\.txt .* first\.$"):
    load(root)
  (root / "train").mkdir()
  (root / "train" / "_annotations.coco.json").write_text("{}")
  with pytest.raises(ValueError, match=r"pass --config\.data\.name=coco"):
    load(root)


# Images.


# Bad input: each names the file and says what to do.


def damage(root, path, content):
  (root / path).write_bytes(content)


def bomb():
  """A PNG of 60,000 x 60,000 pixels in a few bytes."""

  def chunk(kind, body):
    check = zlib.crc32(kind + body)
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", check)

  header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
  rows = zlib.compress(b"\0" * 1000)
  chunks = chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
  return b"\x89PNG\r\n\x1a\n" + chunks


def jpeg(size=64):
  noise = np.random.default_rng(0).integers(0, 256, (size, size, 3))
  return encode(noise.astype(np.uint8), "JPEG").getvalue()


@pytest.mark.parametrize("share", [0.02, 0.3, 0.9])
def test_truncated_jpeg(tmp_path, share):
  root = make(tmp_path)
  content = jpeg()
  damage(root, "JPEGImages/im1.jpg", content[: int(share * len(content))])
  with pytest.raises(ValueError, match=r"im1\.jpg cannot be read.*truncated"):
    load(root)[1]


def test_zero_byte_png(tmp_path):
  root = make(tmp_path)
  damage(root, "SegmentationClass/im1.png", b"")
  with pytest.raises(ValueError, match=r"Class/im1\.png cannot be read"):
    load(root)[1]


def test_decompression_bomb(tmp_path):
  root = make(tmp_path)
  damage(root, "JPEGImages/im1.jpg", bomb())
  with pytest.raises(ValueError, match=r"im1\.jpg is too large.*MAX_IMAGE"):
    load(root)[1]


def test_wrong_size(tmp_path):
  root = make(tmp_path)
  write_palette(root / "SegmentationClass/im1.png", np.zeros((5, 8)))
  with pytest.raises(ValueError, match=r"im1\.png is 5 x 8, its image 6 x 8"):
    load(root)[1]


def test_label_out_of_range(tmp_path):
  root = make(tmp_path)
  labels = np.zeros((6, 8))
  labels[0, :2] = 3, 77
  write_palette(root / "SegmentationClass/im1.png", labels)
  with pytest.raises(
    ValueError, match=r"im1\.png has labels \[3, 77\].*0 \.\.\. 2"
  ):
    load(root)[1]


def test_colours_instead_of_ids(tmp_path):
  root = make(tmp_path)
  path = root / "SegmentationClass/im1.png"
  Image.fromarray(np.zeros((6, 8, 3), np.uint8)).save(path)
  with pytest.raises(ValueError, match=r"im1\.png has mode RGB.*ids"):
    load(root)[1]


@pytest.mark.parametrize(
  "part", ["JPEGImages", "SegmentationClass", "SegmentationObject"]
)
def test_missing_file(tmp_path, part, caplog):
  root = make(tmp_path)
  next((root / part).glob("im1.*")).unlink()
  with pytest.raises(ValueError, match=rf"{part}/im1.* is missing.*train\.txt"):
    load(root)
  with caplog.at_level("WARNING"):
    dataset = load(root, on_error="skip")
  assert dataset.ids == ["im0", "im2"]
  assert len(dataset.skipped) == 1
  assert "skipped 1 of 3 images" in caplog.text


def test_splits(tmp_path):
  root = make(tmp_path)
  with pytest.raises(ValueError, match=r"val\.txt does not exist.*'train'"):
    data.load("folder", "val", root)
  split = root / "ImageSets/Segmentation/train.txt"
  split.write_text("\n \n")
  with pytest.raises(ValueError, match=r"train\.txt is empty"):
    load(root)
  split.write_text("nothing\n")
  with pytest.raises(ValueError, match="no image"):
    load(root, on_error="skip")


def test_no_folder(tmp_path):
  with pytest.raises(ValueError, match=r"none do not exist.*new place"):
    load(tmp_path / "none")
  with pytest.raises(ValueError, match="needs a path"):
    data.load("folder")
  with pytest.raises(ValueError, match="on_error is 'ignore'"):
    load(make(tmp_path), on_error="ignore")
  with pytest.raises(
    ValueError, match=r"'ade20k' but .*'cityscapes'.*Functions"
  ):
    data.load("ade20k")


def test_folder_without_permission(tmp_path, monkeypatch):
  root = make(tmp_path)
  if os.geteuid() == 0:  # root may read everything

    def refuse(path):
      raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", refuse)
  else:
    (root / "JPEGImages").chmod(0)
  with pytest.raises(ValueError, match=r"no permission to read .*JPEGImages"):
    load(root)


def test_an_id_listed_twice_counts_once(tmp_path, caplog):
  root = make(tmp_path)
  with open(root / "ImageSets/Segmentation/train.txt", "a") as stream:
    stream.write("im1\nim1\n")
  assert load(root).ids == ["im0", "im1", "im2"]
  assert "train.txt" in caplog.text and "2 images twice" in caplog.text


# Real data; the counts were taken by naive loops over the files.


def count(dataset):
  pixels = np.zeros(256, int)
  instances = np.zeros(256, int)
  for example in map(dataset.__getitem__, range(len(dataset))):
    pixels += np.bincount(example["semantic"].ravel(), minlength=256)
    classes = example.get("classes", np.zeros(0, np.uint8))
    instances += np.bincount(classes, minlength=256)
    if dataset.has_instances:
      assert example["instances"].max() == len(classes)
  nonzero = np.flatnonzero
  return (
    {int(k): int(instances[k]) for k in nonzero(instances)},
    {int(k): int(pixels[k]) for k in nonzero(pixels)},
  )


def test_nuclei(real_data):
  dataset = data.load("folder", "val_fluo", real_data / "nuclei")
  assert len(dataset) == 58
  assert dataset.categories == ("nucleus",)
  assert count(dataset) == ({1: 2854}, {0: 6829584, 1: 1309596})


def test_camvid(real_data):
  dataset = data.load("folder", "val", real_data / "camvid")
  assert (len(dataset), len(dataset.categories)) == (101, 10)
  assert dataset.background == "sky"
  instances, pixels = count(dataset)
  assert not instances
  assert pixels == {
    0: 1601620, 1: 4531180, 2: 98499, 3: 5053176, 4: 1521751, 5: 2851125,
    6: 155724, 7: 537197, 8: 304716, 9: 113531, 10: 387010, 255: 297271,
  }  # fmt: skip


def test_voc(real_data):
  path = real_data / "voc2012_sample" / "VOCdevkit" / "VOC2012"
  dataset = data.load("folder", "train", path)
  assert (len(dataset), len(dataset.categories)) == (24, 20)
  instances, pixels = count(dataset)
  assert instances == {
    1: 6, 2: 2, 3: 4, 4: 5, 5: 5, 6: 4, 7: 3, 8: 4, 9: 1, 10: 1, 11: 1, 12: 2,
    13: 1, 14: 3, 15: 22, 20: 3,
  }  # fmt: skip
  assert pixels[255] == 169270
  assert pixels[15] == 197759


# Lists and files beside the images.


def test_files_of_other_programs_are_left_alone(tmp_path):
  root = make(tmp_path)
  for part in ("JPEGImages", "SegmentationClass"):
    (root / part / "im0.json").write_text("{}")
  lists = root / "ImageSets" / "Segmentation"
  (lists / "train.lst").write_text("nothing")
  names = (lists / "train.txt").read_text()
  (lists / "train.txt").write_text(names, encoding="utf-8-sig")
  assert len(load(root)) == 3
  load(root)[0]
  Image.new("RGB", (8, 6)).save(root / "JPEGImages" / "im1.png")
  with pytest.raises(
    ValueError, match=r"im1\.png and .*im1\.jpg have the same"
  ):
    load(root)


def test_negative_labels_are_refused(tmp_path):
  root = make(tmp_path)
  labels = np.full((6, 8), -1, np.int32)
  Image.fromarray(labels).save(root / "SegmentationClass" / "im0.tif")
  (root / "SegmentationClass" / "im0.png").unlink()
  with pytest.raises(ValueError, match=r"im0\.tif has labels \[-1\]"):
    load(root)[0]


def test_the_number_of_labels_is_limited(tmp_path):
  root = make(tmp_path)
  for labels in (("background",), tuple(map(str, range(256)))):
    with pytest.raises(ValueError, match=f"has {len(labels)} labels"):
      load(root, labels=labels)


def test_lists_of_other_programs(tmp_path):
  root = make(tmp_path / "data")
  names = root / "ImageSets" / "Segmentation" / "train.txt"
  # macOS takes letters apart in names of files.
  for part in ("JPEGImages", "SegmentationClass", "SegmentationObject"):
    (file,) = (root / part).glob("im0.*")
    file.rename(file.with_name("o\u0308" + file.suffix))
  names.write_text("\u00f6\r\nim1\r\n", "utf-8")
  assert load(root).ids == ["\u00f6", "im1"]
  assert load(root)[0]["image"].shape == (6, 8, 3)
  names.rename(names.with_suffix(".TXT"))
  assert load(root).ids == ["\u00f6", "im1"]
  names.with_suffix(".TXT").write_bytes("\u00f6".encode("latin-1"))
  with pytest.raises(ValueError, match=r"train\.TXT is not in UTF-8"):
    load(root)


def test_labels_of_one_name_are_refused(tmp_path):
  root = make(tmp_path / "data")
  (root / "labels.txt").write_text("other\ncat\nother\n")
  with pytest.raises(ValueError, match="two labels of one name"):
    load(root)
