"""A folder in VOC layout: own data without code.

    JPEGImages/<id>.jpg|png|tif...         8- or 16-bit gray, RGB, RGBA
    SegmentationClass/<id>.png             palette or gray; 255 is void
    SegmentationObject/<id>.png            optional; 0 none, k instance k
    ImageSets/Segmentation/<split>.txt     one id a line
    labels.txt                             one name a line: of label 0, 1, ...

An instance map of 8 bits has 255 as void (VOC's borders); one of 16 bits has
no void. An instance's category is the commonest category over its pixels.
"""

import contextlib
import io
import logging
import os
import pathlib
import struct
import unicodedata
import zlib
from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

import cv2
import numpy as np
from jaxtyping import Int, Integer, Num, UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from fcrn_jax.data import transforms
from fcrn_jax.types import IGNORE, Array, listed

# The VOC 2012 devkit has no labels.txt.
VOC_LABELS = (
  "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car",
  "cat", "chair", "cow", "diningtable", "dog", "horse", "motorbike", "person",
  "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
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
    image = load_image(self._images[name])
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
    number = _number_of_pictures(image)
  if number > 1:
    raise ValueError(
      f"{getattr(file, 'name', file)} holds {number} pictures; save each by"
      " itself."
    )
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
  semantic = load_map(semantic_path, shape)
  _check_labels(semantic, num_categories, semantic_path)
  semantic = semantic.astype(np.uint8)
  if instances_path is None:
    return {"semantic": semantic}
  raw = load_map(instances_path, semantic.shape)
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
    raise ValueError(
      f"{file} does not exist; write one name a line, label 0 (mostly "
      "'background') first."
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
      error = "of no known format"
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
