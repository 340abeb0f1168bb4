"""Prepared data: array_record shards in tfds's layout, and their reader.

A directory holds <name>-<split>.array_record-00000-of-00008 and so on,
dataset_info.json and features.json (tfds's), and metadata.json (ids by split,
categories). tfds.builder_from_directory(directory).as_data_source(split) reads
it too. Features of a record:

  id         text
  image      the original JPEG or PNG file, byte for byte, where it is 8-bit
             gray or RGB without EXIF rotation; else a PNG of what we read
  semantic   PNG, H W 1: 0 background, 1 ... C, 255 void
  instances  PNG, H W 3: id = R + 256 G + 65536 B, as in COCO panoptic
  classes    category of instance k at k - 1
  membership one bool for each of the data set's lists, if it has any
"""

import io
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import cv2
import numpy as np
import tensorflow_datasets as tfds
from array_record.python import array_record_data_source, array_record_module
from jaxtyping import Int32, UInt8
from PIL import Image
from tensorflow_datasets.core.utils import shard_utils
from tensorflow_datasets.proto import tf_example_pb2

from fcrn_jax.data import pictures
from fcrn_jax.data.functions import source_of
from fcrn_jax.files import read_json
from fcrn_jax.types import Array


def features(
  has_instances: bool, flags: Iterable[str] = ()
) -> tfds.features.FeaturesDict:
  """The tfds features of a record."""
  fields = {
    "id": tfds.features.Text(),
    "image": tfds.features.Image(shape=(None, None, 3)),
    "semantic": tfds.features.Image(
      shape=(None, None, 1), encoding_format="png", use_colormap=True
    ),
  }
  if has_instances:
    fields["instances"] = tfds.features.Image(
      shape=(None, None, 3), encoding_format="png"
    )
    fields["classes"] = tfds.features.Sequence(np.uint8)
  if flags := list(flags):
    fields["membership"] = dict.fromkeys(flags, np.bool_)
  return tfds.features.FeaturesDict(fields)


def metadata(datasets: Mapping[str, Any]) -> tfds.core.MetadataDict:
  """What metadata.json holds, from the data set of each split."""
  some = next(iter(datasets.values()))
  return tfds.core.MetadataDict(
    name=some.name,
    categories=list(some.categories),
    category_ids=list(getattr(some, "category_ids", ())),
    background=some.background,
    has_instances=some.has_instances,
    source={split: source_of(d) for split, d in datasets.items()},
    ids={split: list(d.ids) for split, d in datasets.items()},
  )


def encode(dataset: Any, index: int) -> dict[str, Any]:
  """One example as tfds wants it: pictures as the bytes of files.

  ValueError names what cannot be read.
  """
  example = dataset[index]
  record = {
    "id": example["id"],
    "image": _image_bytes(dataset, index, example["image"]),
    "semantic": _png(example["semantic"]),
  }
  if dataset.has_instances:
    record["instances"] = _png(to_rgb(example["instances"]))
    record["classes"] = example["classes"]
  if "membership" in example:
    record["membership"] = example["membership"]
  return record


def to_rgb(instances: Int32[Array, "H W"]) -> UInt8[Array, "H W 3"]:
  """Ids as R + 256 G + 65536 B."""
  return np.stack(
    [instances & 255, instances >> 8 & 255, instances >> 16], axis=-1
  ).astype(np.uint8)


def from_rgb(rgb: UInt8[Array, "H W 3"]) -> Int32[Array, "H W"]:
  """The ids that to_rgb stored."""
  four = cv2.cvtColor(rgb, cv2.COLOR_RGB2RGBA)
  four[..., 3] = 0
  return four.view("<i4")[..., 0].astype(np.int32, copy=False)


def _png(pixels: UInt8[Array, "H W *c"]) -> bytes:
  if pixels.ndim == 3:
    pixels = pixels[..., ::-1]
  return cv2.imencode(".png", pixels)[1].tobytes()


def _image_bytes(
  dataset: Any, index: int, image: UInt8[Array, "H W 3"]
) -> bytes:
  """The image's own file where any reader sees the same pixels, or a PNG."""
  source = None
  if hasattr(dataset, "image_file"):
    source = dataset.image_file(index)
  if isinstance(source, str | os.PathLike):
    source = pathlib.Path(source).read_bytes()
  if isinstance(source, bytes):
    with Image.open(io.BytesIO(source)) as file:
      turned = file.getexif().get(0x0112, 1) != 1
      plain = file.format in ("JPEG", "PNG") and file.mode in ("L", "RGB")
      # A PNG's transparent colour would come back as a fourth channel.
      plain &= not (turned or pictures.is_deep(file))
      if plain and "transparency" not in file.info:
        return source
  return _png(image)


def read_metadata(path: pathlib.Path) -> dict[str, Any]:
  """The content of metadata.json."""
  return read_json(path / "metadata.json")


class Prepared:
  """A split of prepared data; see data.load. Pickles to worker processes."""

  def __init__(self, path: Any, split: str):
    self.path = pathlib.Path(path).expanduser()
    about = read_metadata(self.path)
    info = read_json(self.path / "dataset_info.json")
    lengths = {
      s["name"]: [int(n) for n in s["shardLengths"]] for s in info["splits"]
    }
    if split not in lengths:
      raise ValueError(
        f"{self.path} has no split {split!r}; expected one of "
        f"{sorted(lengths)}, or prepare it."
      )
    self.name, self.split = about["name"], split
    self.source = about["source"][split]
    self.categories = tuple(about["categories"])
    self.category_ids = tuple(about.get("category_ids", ()))
    self.background = about["background"]
    self.has_instances = about["has_instances"]
    self.ids = about["ids"][split]
    self.membership = _flags(self.path)
    self._source = array_record_data_source.ArrayRecordDataSource(
      _instructions(self.path, info["name"], split, lengths[split])
    )

  def __len__(self) -> int:
    return len(self.ids)

  def __getitem__(self, index: int) -> dict[str, Any]:
    index = range(len(self))[index]
    fields = self._fields(index)
    file = io.BytesIO(fields["image"].bytes_list.value[0])
    file.name = f"{self.path} {self.split} {self.ids[index]}"
    example = {
      "id": fields["id"].bytes_list.value[0].decode(),
      "image": pictures.load_image(file),
      "semantic": _pixels(fields["semantic"]),
    }
    if self.has_instances:
      example["instances"] = from_rgb(_pixels(fields["instances"]))
      classes = fields["classes"].int64_list.value
      example["classes"] = np.array(classes, np.uint8)
    flags = sorted(key for key in fields if key.startswith("membership/"))
    if flags:
      example["membership"] = {
        key.removeprefix("membership/"): bool(fields[key].int64_list.value[0])
        for key in flags
      }
    return example

  def image_file(self, index: int) -> bytes:
    """The bytes of an example's image file."""
    return self._fields(index)["image"].bytes_list.value[0]

  def _fields(self, index: int) -> Mapping[str, Any]:
    """The features of a record."""
    reason = "empty"  # what a truncated shard gives, without an error
    try:
      example = tf_example_pb2.Example.FromString(self._source[index])
      if "image" in example.features.feature:
        return example.features.feature
    except Exception as error:  # array_record and protobuf raise their own
      reason = str(error)
    raise ValueError(
      f"record {index} ({self.ids[index]}) of {self.path}, split {self.split}, "
      f"cannot be read ({reason}); prepare the data again, with --overwrite."
    )


def _flags(path: pathlib.Path) -> tuple[str, ...]:
  """The names of the membership's bools, from features.json."""
  fields = read_json(path / "features.json")["featuresDict"]["features"]
  fields = fields.get("membership", {})
  return tuple(fields.get("featuresDict", {}).get("features", {}))


def _instructions(
  path: pathlib.Path, name: str, split: str, lengths: list[int]
) -> list[shard_utils.FileInstruction]:
  """The shards to read; ValueError if one is missing."""
  found = []
  for shard, length in enumerate(lengths):
    file = path / (
      f"{name}-{split}.array_record-{shard:05d}-of-{len(lengths):05d}"
    )
    if not file.is_file():
      raise ValueError(f"{file} is missing; prepare the data again.")
    found.append(
      shard_utils.FileInstruction(
        filename=str(file), skip=0, take=length, examples_in_shard=length
      )
    )
  return found


def _pixels(field: Any) -> UInt8[Array, "H W *c"]:
  """The decoded PNG, RGB if it has three channels."""
  encoded = np.frombuffer(field.bytes_list.value[0], np.uint8)
  pixels = cv2.imdecode(encoded, cv2.IMREAD_UNCHANGED)
  return pixels if pixels.ndim == 2 else cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)


def read_ids(shard: pathlib.Path) -> list[str]:
  """The ids of a shard's records, in order."""
  reader = array_record_module.ArrayRecordReader(str(shard))
  try:
    return [
      tf_example_pb2.Example.FromString(record)
      .features.feature["id"]
      .bytes_list.value[0]
      .decode()
      for record in reader.read_all()
    ]
  finally:
    reader.close()
