"""Reads pictures: images as RGB of 8 bits, label maps as the ids they hold."""

import contextlib
import io
import os
import pathlib
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
from jaxtyping import Integer, Num, UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from fcrn_jax.types import Array

# Pillow's own limit is for strangers' pictures; set here, it holds in worker
# processes too. Whoever has set a higher one, or None, keeps it.
_MAX_PIXELS = 2**30
if Image.MAX_IMAGE_PIXELS is not None:
  Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, _MAX_PIXELS)
_GRAY = ("P", "L", "1", "I;16", "I;16B", "I")
# Gray of few bits is spread over 0 ... 255 by Pillow.
_SPREAD = {"L;2": 85, "L;4": 17}
_TIFF_BITS, _TIFF_PLANAR, _ORIENTATION = 258, 284, 274  # tags
_UNREADABLE = (
  OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error,
  TypeError, KeyError, IndexError,  # of Pillow, from a damaged TIFF
)  # fmt: skip


def load_image(file: str | os.PathLike | io.IOBase) -> UInt8[Array, "H W 3"]:
  """RGB image from a path or an open binary file.

  EXIF orientation is applied, gray repeated, alpha dropped. More than 8 bits
  (16-bit, float) are stretched so that the 0.1 and 99.9 percentiles of the
  image become 0 and 255 (ours). ValueError names a file that is missing,
  unreadable, truncated, too large or a stack of pictures.
  """
  with naming(file):
    stream = _stream(file)
    image = Image.open(stream)
  _refuse_stack(image, file)
  with naming(file):
    if is_deep(image):  # of which Pillow reads the upper bytes alone
      return stretch(_read_deep(stream, image))
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode in ("I;16", "I;16B", "I", "F"):
      return np.repeat(stretch(np.asarray(image))[..., None], 3, axis=-1)
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def _stream(file: str | os.PathLike | io.IOBase) -> io.IOBase:
  """The open file, or the content of a path.

  Of a path, Pillow maps some TIFFs into memory, with their sides exchanged
  where EXIF turns them: scrambled pixels.
  """
  if isinstance(file, str | os.PathLike):
    return io.BytesIO(pathlib.Path(file).read_bytes())
  return file


def is_deep(image: Image.Image) -> bool:
  """Whether an opened image has several channels of more than 8 bits."""
  if image.mode not in ("RGB", "RGBA", "LA"):
    return False
  if image.format == "TIFF":
    return max(image.tag_v2.get(_TIFF_BITS, (8,))) > 8
  return any("16" in str(tile[3]) for tile in getattr(image, "tile", ()))


def _read_deep(stream, image) -> Integer[np.ndarray, "H W 3"]:
  """The channels in full and upright, of an opened image and its file."""
  orientation = image.getexif().get(_ORIENTATION, 1)
  stream.seek(0)
  if image.format == "TIFF" and image.tag_v2.get(_TIFF_PLANAR) == 2:
    import tifffile

    try:
      planes = tifffile.imread(stream)
    except Exception as error:  # of a broken file it is any
      raise ValueError(f"planes of a TIFF: {error}") from None
    return _upright(np.moveaxis(planes, 0, -1)[..., :3], orientation)
  content = np.frombuffer(stream.read(), np.uint8)
  pixels = cv2.imdecode(content, cv2.IMREAD_UNCHANGED)
  if pixels is None or pixels.ndim != 3:
    raise ValueError("16 bits a channel in a form that OpenCV does not read")
  pixels = pixels[..., 2::-1]
  if image.format == "TIFF":  # which OpenCV turns, of all formats
    return pixels
  return _upright(pixels, orientation)


def _upright(
  image: Integer[np.ndarray, "H W 3"], orientation: int
) -> Integer[np.ndarray, "A B 3"]:
  """The image as EXIF says that it is to be shown; 1 is as it is."""
  if orientation in (2, 4, 5, 7):
    image = image[:, ::-1]
  turns = {3: 2, 4: 2, 5: 1, 6: 3, 7: 3, 8: 1}  # by a quarter, to the left
  return np.rot90(image, turns.get(orientation, 0))


def _refuse_stack(image, file) -> None:
  """ValueError for a file of several pictures, of which one would be read."""
  with naming(file):
    number = _number_of_pictures(image)
  if number > 1:
    raise ValueError(
      f"{getattr(file, 'name', file)} holds {number} pictures; save each by"
      " itself."
    )


def _number_of_pictures(image) -> int:
  """Pages of a TIFF, of which smaller copies of the first do not count."""
  number = image.n_frames if image.format == "TIFF" else 1
  if number == 1:
    return 1
  size = image.size
  image.seek(1)
  alike = image.size == size
  image.seek(0)
  return number if alike else 1


@contextlib.contextmanager
def naming(file: str | os.PathLike | io.IOBase) -> Iterator[None]:
  """Turns what goes wrong in reading a picture into a clear ValueError."""
  name = getattr(file, "name", file)
  try:
    yield
  except Image.DecompressionBombError as error:
    raise ValueError(
      f"{name} is too large ({error}); if you trust the file, raise "
      "PIL.Image.MAX_IMAGE_PIXELS or cut it into pieces."
    ) from None
  except PermissionError:
    raise ValueError(
      f"no permission to read {name}; chmod u+r it, or run as its owner."
    ) from None
  except FileNotFoundError:
    raise ValueError(f"{name} does not exist.") from None
  except _UNREADABLE as error:
    if isinstance(error, UnidentifiedImageError):  # which names a stream
      error = (
        "of no known format; of TIFFs, 64-bit numbers and channels other than"
        " gray, RGB and RGBA are not known"
      )
    raise ValueError(
      f"{name} cannot be read ({error}): broken, truncated or no picture; "
      "fetch or write the file again."
    ) from None


def stretch(gray: Num[Array, "H W *c"]) -> UInt8[Array, "H W *c"]:
  """Values of any range to 0 ... 255, between the 0.1 and 99.9 percentiles."""
  gray = gray.astype(np.float32)
  finite = gray[np.isfinite(gray)]
  low, high = np.percentile(finite, (0.1, 99.9)) if finite.size else (0, 1)
  gray = np.nan_to_num(gray, nan=low, posinf=high, neginf=low)
  scaled = (gray - low) * (255 / max(high - low, 1e-9))
  return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)


def load_map(
  path: str | os.PathLike, shape: tuple[int, ...] | None = None
) -> Integer[Array, "H W"]:
  """A label map's ids, uint8 or wider; ValueError if not of `shape` H W."""
  with naming(path):
    image = Image.open(_stream(path))
  _refuse_stack(image, path)
  with naming(path):
    codec, mode, largest = _decoding(image)
    image.load()
  if is_lossy(image):
    raise ValueError(
      f"{path} is a JPEG, which changes the numbers of labels; save the ids as"
      " PNG, from what was annotated."
    )
  if image.mode not in _GRAY:
    raise ValueError(
      f"{path} has mode {image.mode}; expected one channel of ids (palette, "
      "8- or 16-bit gray). Write the ids, not their colours."
    )
  scaled = codec.startswith("ppm") and largest not in (255, 65535)
  if image.mode != "1" and (scaled or "I" in mode.partition(";")[2]):
    raise ValueError(
      f"{path} is a {image.format} whose numbers change as it is read: 0 is"
      " white in it, or its largest number is another than 255 or 65535. Save"
      " the ids as PNG."
    )
  labels = np.asarray(image)
  if mode in _SPREAD:
    labels = labels // np.uint8(_SPREAD[mode])
  if labels.dtype == bool:
    labels = labels.astype(np.uint8)
  if shape is not None and labels.shape != tuple(shape):
    raise ValueError(
      f"{path} is {labels.shape[0]} x {labels.shape[1]}, its image "
      f"{shape[0]} x {shape[1]} (EXIF orientation applied); "
      "annotate the image at its own size."
    )
  return labels


def is_lossy(image: Image.Image) -> bool:
  """Whether an opened picture's numbers are not those that were saved."""
  return image.format in ("JPEG", "MPO")


def _decoding(image: Image.Image) -> tuple[str, str, Any]:
  """Pillow's decoder, its raw mode ("L;4I": 4 bits, inverted) and last word."""
  if not image.tile:
    return "", "", None
  codec, words = image.tile[0][0], image.tile[0][3] or ("",)
  words = (words,) if isinstance(words, str) else words
  return codec, str(words[0]), words[-1]
