import io
import os
import struct
import subprocess
import sys
import zlib

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps

from fcrn_jax import data
from fcrn_jax.data import folder


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
  with pytest.raises(ValueError, match=r"labels\.txt does not exist"):
    load(root)


# Images.


def encode(array, form, mode=None, **parameters):
  file = io.BytesIO()
  image = Image.fromarray(array)
  (image.convert(mode) if mode else image).save(file, form, **parameters)
  file.seek(0)
  return file


def test_gray_alpha_and_palette_become_rgb():
  gray = np.arange(12, dtype=np.uint8).reshape(3, 4)
  expected = np.repeat(gray[..., None], 3, -1)
  np.testing.assert_array_equal(
    folder.load_image(encode(gray, "PNG")), expected
  )
  rgba = np.concatenate([expected, np.full((3, 4, 1), 9, np.uint8)], -1)
  np.testing.assert_array_equal(
    folder.load_image(encode(rgba, "PNG")), expected
  )
  palette = folder.load_image(encode(expected, "PNG", "P"))
  assert palette.shape == (3, 4, 3)
  assert palette.flags.writeable


def test_sixteen_bit_gray_is_stretched_between_its_percentiles():
  # 1,000 values 5000 ... 5999: percentiles 0.1 and 99.9 are 5000.999 and
  # 5998.001; 5500 is (5500 - 5000.999) / 997.002 * 255 = 127.63.
  gray = np.arange(5000, 6000, dtype=np.uint16).reshape(20, 50)
  for form in ("PNG", "TIFF"):
    image = folder.load_image(encode(gray, form)).reshape(-1, 3)
    assert image[0].tolist() == [0, 0, 0]
    assert image[-1].tolist() == [255, 255, 255]
    assert image[500].tolist() == [128, 128, 128]
  flat = folder.load_image(encode(np.full((4, 4), 70, np.uint16), "PNG"))
  assert not flat.any()


def test_exif_orientation_is_applied(tmp_path):
  array = np.zeros((4, 6, 3), np.uint8)
  array[0, 0] = 255
  exif = Image.Exif()
  exif[0x0112] = 6  # to be shown turned clockwise: top left goes top right
  image = folder.load_image(encode(array, "PNG", exif=exif.tobytes()))
  assert image.shape == (6, 4, 3)
  assert image[0, 3, 0] == 255
  assert image.sum() == 3 * 255


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


def test_large_scans_are_read_in_every_process():
  code = """
import io
from PIL import Image, ImageOps
from fcrn_jax.data import folder
file = io.BytesIO()
Image.new("1", (20_000, 10_000)).save(file, "PNG")  # 200 Mpx
Image.open(file)
"""
  command = [sys.executable, "-W", "error", "-c", code]
  done = subprocess.run(command, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr


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


def test_a_tiff_whose_directory_leads_nowhere(tmp_path):
  path = tmp_path / "image.tif"
  tifffile.imwrite(path, np.zeros((20, 24), np.uint8))
  content = bytearray(path.read_bytes())
  (start,) = struct.unpack("<I", content[4:8])
  (number,) = struct.unpack("<H", content[start : start + 2])
  link = start + 2 + 12 * number
  content[link : link + 4] = struct.pack("<I", len(content) - 8)
  path.write_bytes(content)
  with pytest.raises(ValueError, match=r"image\.tif cannot be read"):
    folder.load_image(path)


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


def test_a_pixel_that_is_no_number_does_not_blacken_the_image():
  gray = np.linspace(5, 6, 200, dtype=np.float32).reshape(10, 20)
  gray[3, 4] = np.nan
  image = folder.load_image(encode(gray, "TIFF"))
  assert image.min() == 0 and image.max() == 255 and image[3, 4, 0] == 0


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bit_colour_is_stretched_over_all_channels(tmp_path, suffix):
  """A camera's 12 bits: Pillow alone would leave the upper four of them."""
  rng = np.random.default_rng(0)
  deep = rng.integers(0, 4096, (40, 50, 3), dtype=np.uint16)
  deep[..., 2] //= 2
  path = tmp_path / f"image.{suffix}"
  cv2.imwrite(str(path), deep[..., ::-1])
  image = folder.load_image(path)
  low, high = np.percentile(deep, (0.1, 99.9))
  expected = np.clip((deep - low) * 255 / (high - low), 0, 255)
  np.testing.assert_allclose(image, expected, atol=0.51)
  file = io.BytesIO(path.read_bytes())
  np.testing.assert_array_equal(folder.load_image(file), image)
  if suffix == "tif":
    planes = np.moveaxis(deep, -1, 0)
    tifffile.imwrite(path, planes, photometric="rgb", planarconfig="separate")
    np.testing.assert_array_equal(folder.load_image(path), image)


def test_a_stack_is_refused_and_a_pyramid_is_not(tmp_path):
  first = Image.fromarray(np.zeros((8, 8), np.uint8))
  for name, second in (("stack", first), ("pyramid", first.resize((4, 4)))):
    path = tmp_path / f"{name}.tif"
    first.save(path, save_all=True, append_images=[second])
    if name == "pyramid":
      assert folder.load_image(path).shape == (8, 8, 3)
    else:
      with pytest.raises(
        ValueError, match=r"stack\.tif holds 2 pictures; save"
      ):
        folder.load_image(path)


@pytest.mark.parametrize("bits", [2, 4])
def test_maps_of_few_bits_hold_ids(tmp_path, bits):
  """A row of four pixels 0, 1, 2, 3 of a gray PNG of 2 or 4 bits."""
  row = {2: b"\x1b", 4: b"\x01\x23"}[bits]

  def chunk(kind, content):
    check = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(
      ">I", check
    )  # fmt: skip

  path = tmp_path / "map.png"
  path.write_bytes(
    b"\x89PNG\r\n\x1a\n"
    + chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 1, bits, 0, 0, 0, 0))
    + chunk(b"IDAT", zlib.compress(b"\0" + row))
    + chunk(b"IEND", b"")
  )
  assert folder.load_map(path).tolist() == [[0, 1, 2, 3]]


def test_maps_whose_numbers_change_as_they_are_read_are_refused(tmp_path):
  path = tmp_path / "map.pgm"
  for largest in (3, 300):
    body = b"\0\1\2" if largest < 256 else b"\0\0\0\1\0\2"
    path.write_bytes(b"P5\n3 1\n%d\n" % largest + body)
    with pytest.raises(ValueError, match=r"map\.pgm is a PPM whose numbers"):
      folder.load_map(path)
  for kind, largest, body in (
    (b"P5", 255, b"\0\1\2"), (b"P5", 65535, b"\0\0\0\1\0\2"),
    (b"P2", 255, b"0 1 2"), (b"P2", 65535, b"0 1 2"),
  ):  # fmt: skip
    path.write_bytes(b"%s\n3 1\n%d\n" % (kind, largest) + body)
    assert folder.load_map(path).tolist() == [[0, 1, 2]]
  path = tmp_path / "map.tif"
  labels = np.array([[0, 1, 2]], np.uint8)
  for compression in (None, "zlib"):
    options = {"compression": compression}
    tifffile.imwrite(path, labels, photometric="miniswhite", **options)
    with pytest.raises(ValueError, match=r"map\.tif is a TIFF whose numbers"):
      folder.load_map(path)
    tifffile.imwrite(path, labels, **options)
    np.testing.assert_array_equal(folder.load_map(path), labels)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_sixteen_bit_colour_is_turned_as_eight_bit_is(tmp_path, orientation):
  path = tmp_path / "image.png"
  shallow = np.arange(72, dtype=np.uint8).reshape(4, 6, 3)
  exif = Image.Exif()
  exif[0x0112] = orientation
  expected = folder.load_image(encode(shallow, "PNG", exif=exif.tobytes()))
  cv2.imwrite(str(path), shallow[..., ::-1].astype(np.uint16))
  content, mark = path.read_bytes(), exif.tobytes().removeprefix(b"Exif\0\0")
  chunk = struct.pack(">I", len(mark)) + b"eXIf" + mark
  chunk += struct.pack(">I", zlib.crc32(chunk[4:]))
  path.write_bytes(content[:33] + chunk + content[33:])  # after the header
  image = folder.load_image(path)
  np.testing.assert_array_equal(image, folder.stretch(expected))
  deep = shallow.astype(np.uint16)
  for planes, layout in (
    (deep, "contig"),
    (deep.transpose(2, 0, 1), "separate"),
  ):
    path = tmp_path / f"{layout}.tif"
    tifffile.imwrite(
      path, planes, photometric="rgb", planarconfig=layout,
      extratags=[(274, 3, 1, orientation, True)],
    )  # fmt: skip
    np.testing.assert_array_equal(folder.load_image(path), image)


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


@pytest.mark.parametrize("orientation", [1, 3, 5, 6, 7, 8])
@pytest.mark.parametrize("mode", ["L", "RGBA"])
def test_a_turned_tiff_of_a_path_is_that_of_its_bytes(
  tmp_path, mode, orientation
):
  pixels = np.arange(600, dtype=np.uint8).reshape(20, 30)
  exif = Image.Exif()
  exif[0x0112] = orientation
  path = tmp_path / "turned.tif"
  Image.fromarray(pixels).convert(mode).save(path, exif=exif)
  found = folder.load_image(path)
  assert found.shape[:2] == ((30, 20) if orientation > 4 else (20, 30))
  expected = ImageOps.exif_transpose(Image.open(io.BytesIO(path.read_bytes())))
  np.testing.assert_array_equal(found[..., 0], np.array(expected.convert("L")))
