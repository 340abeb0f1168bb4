import io
import struct
import subprocess
import sys
import zlib

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps

from fcrn_jax.data import pictures


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
    pictures.load_image(encode(gray, "PNG")), expected
  )
  rgba = np.concatenate([expected, np.full((3, 4, 1), 9, np.uint8)], -1)
  np.testing.assert_array_equal(
    pictures.load_image(encode(rgba, "PNG")), expected
  )
  palette = pictures.load_image(encode(expected, "PNG", "P"))
  assert palette.shape == (3, 4, 3)
  assert palette.flags.writeable


def test_sixteen_bit_gray_is_stretched_between_its_percentiles():
  # 1,000 values 5000 ... 5999: percentiles 0.1 and 99.9 are 5000.999 and
  # 5998.001; 5500 is (5500 - 5000.999) / 997.002 * 255 = 127.63.
  gray = np.arange(5000, 6000, dtype=np.uint16).reshape(20, 50)
  for form in ("PNG", "TIFF"):
    image = pictures.load_image(encode(gray, form)).reshape(-1, 3)
    assert image[0].tolist() == [0, 0, 0]
    assert image[-1].tolist() == [255, 255, 255]
    assert image[500].tolist() == [128, 128, 128]
  flat = pictures.load_image(encode(np.full((4, 4), 70, np.uint16), "PNG"))
  assert not flat.any()


def test_exif_orientation_is_applied(tmp_path):
  array = np.zeros((4, 6, 3), np.uint8)
  array[0, 0] = 255
  exif = Image.Exif()
  exif[0x0112] = 6  # to be shown turned clockwise: top left goes top right
  image = pictures.load_image(encode(array, "PNG", exif=exif.tobytes()))
  assert image.shape == (6, 4, 3)
  assert image[0, 3, 0] == 255
  assert image.sum() == 3 * 255


def test_large_scans_are_read_in_every_process():
  code = """
import io
import struct
from PIL import Image, ImageOps
from fcrn_jax.data import pictures
file = io.BytesIO()
Image.new("1", (20_000, 10_000)).save(file, "PNG")  # 200 Mpx
Image.open(file)
"""
  command = [sys.executable, "-W", "error", "-c", code]
  done = subprocess.run(command, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr


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
    pictures.load_image(path)


def test_a_pixel_that_is_no_number_does_not_blacken_the_image():
  gray = np.linspace(5, 6, 200, dtype=np.float32).reshape(10, 20)
  gray[3, 4] = np.nan
  image = pictures.load_image(encode(gray, "TIFF"))
  assert image.min() == 0 and image.max() == 255 and image[3, 4, 0] == 0


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bit_colour_is_stretched_over_all_channels(tmp_path, suffix):
  """A camera's 12 bits: Pillow alone would leave the upper four of them."""
  rng = np.random.default_rng(0)
  deep = rng.integers(0, 4096, (40, 50, 3), dtype=np.uint16)
  deep[..., 2] //= 2
  path = tmp_path / f"image.{suffix}"
  cv2.imwrite(str(path), deep[..., ::-1])
  image = pictures.load_image(path)
  low, high = np.percentile(deep, (0.1, 99.9))
  expected = np.clip((deep - low) * 255 / (high - low), 0, 255)
  np.testing.assert_allclose(image, expected, atol=0.51)
  file = io.BytesIO(path.read_bytes())
  np.testing.assert_array_equal(pictures.load_image(file), image)
  if suffix == "tif":
    planes = np.moveaxis(deep, -1, 0)
    tifffile.imwrite(path, planes, photometric="rgb", planarconfig="separate")
    np.testing.assert_array_equal(pictures.load_image(path), image)


def test_a_stack_is_refused_and_a_pyramid_is_not(tmp_path):
  first = Image.fromarray(np.zeros((8, 8), np.uint8))
  for name, second in (("stack", first), ("pyramid", first.resize((4, 4)))):
    path = tmp_path / f"{name}.tif"
    first.save(path, save_all=True, append_images=[second])
    if name == "pyramid":
      assert pictures.load_image(path).shape == (8, 8, 3)
      assert pictures.load_map(path).shape == (8, 8)
      continue
    for load in (pictures.load_image, pictures.load_map):
      with pytest.raises(
        ValueError, match=r"stack\.tif holds 2 pictures; save"
      ):
        load(path)


def test_tiffs_of_other_numbers_and_channels_are_told(tmp_path):
  path = tmp_path / "a.tif"
  for form, pixels in (
    ("minisblack", np.ones((8, 8))),
    ("rgb", np.ones((8, 8, 3), np.float32)),
  ):
    tifffile.imwrite(path, pixels, photometric=form)
    with pytest.raises(ValueError, match="64-bit numbers and channels other"):
      pictures.load_image(path)


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
  assert pictures.load_map(path).tolist() == [[0, 1, 2, 3]]


def test_maps_whose_numbers_change_as_they_are_read_are_refused(tmp_path):
  path = tmp_path / "map.pgm"
  for largest in (3, 300):
    body = b"\0\1\2" if largest < 256 else b"\0\0\0\1\0\2"
    path.write_bytes(b"P5\n3 1\n%d\n" % largest + body)
    with pytest.raises(ValueError, match=r"map\.pgm is a PPM whose numbers"):
      pictures.load_map(path)
  for kind, largest, body in (
    (b"P5", 255, b"\0\1\2"), (b"P5", 65535, b"\0\0\0\1\0\2"),
    (b"P2", 255, b"0 1 2"), (b"P2", 65535, b"0 1 2"),
  ):  # fmt: skip
    path.write_bytes(b"%s\n3 1\n%d\n" % (kind, largest) + body)
    assert pictures.load_map(path).tolist() == [[0, 1, 2]]
  path = tmp_path / "map.tif"
  labels = np.array([[0, 1, 2]], np.uint8)
  for compression in (None, "zlib"):
    options = {"compression": compression}
    tifffile.imwrite(path, labels, photometric="miniswhite", **options)
    with pytest.raises(ValueError, match=r"map\.tif is a TIFF whose numbers"):
      pictures.load_map(path)
    tifffile.imwrite(path, labels, **options)
    np.testing.assert_array_equal(pictures.load_map(path), labels)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_sixteen_bit_colour_is_turned_as_eight_bit_is(tmp_path, orientation):
  path = tmp_path / "image.png"
  shallow = np.arange(72, dtype=np.uint8).reshape(4, 6, 3)
  exif = Image.Exif()
  exif[0x0112] = orientation
  expected = pictures.load_image(encode(shallow, "PNG", exif=exif.tobytes()))
  cv2.imwrite(str(path), shallow[..., ::-1].astype(np.uint16))
  content, mark = path.read_bytes(), exif.tobytes().removeprefix(b"Exif\0\0")
  chunk = struct.pack(">I", len(mark)) + b"eXIf" + mark
  chunk += struct.pack(">I", zlib.crc32(chunk[4:]))
  path.write_bytes(content[:33] + chunk + content[33:])  # after the header
  image = pictures.load_image(path)
  np.testing.assert_array_equal(image, pictures.stretch(expected))
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
    np.testing.assert_array_equal(pictures.load_image(path), image)


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
  found = pictures.load_image(path)
  assert found.shape[:2] == ((30, 20) if orientation > 4 else (20, 30))
  expected = ImageOps.exif_transpose(Image.open(io.BytesIO(path.read_bytes())))
  np.testing.assert_array_equal(found[..., 0], np.array(expected.convert("L")))
