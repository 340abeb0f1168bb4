"""From an example to a training crop and its targets; numpy and OpenCV.

An example in here also has "boxes" m 4: each full instance's box in pixels
of the example's current image. Geometry steps take and return examples and
move image, maps and boxes alike. Each random step draws from the generator it
is given, so a crop depends on its generator only.
"""

from typing import Any, NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from fcrn_jax import boxes as box_algebra
from fcrn_jax.types import IGNORE, Array

WEIGHTINGS = ("area", "sqrt_area", "none")
_MOST_WARPED = 2**15 - 1  # OpenCV's remap numbers pixels with 16 bits


def runs(
  values: Int[Array, "n"],
) -> tuple[Int[Array, "k"], Int[Array, "k"], Int[Array, "k"]]:
  """Start, end and value of each stretch of equal values.

  A map has far fewer runs than pixels, so what is gathered by instance is
  gathered over runs.
  """
  starts = np.flatnonzero(values[1:] != values[:-1]) + 1
  starts = np.concatenate([[0], starts])
  ends = np.append(starts[1:], values.size)
  return starts, ends, values[starts]


def instance_boxes(
  instances: Int[Array, "H W"], number: int
) -> Float[Array, "m 4"]:
  """Boxes (y0, x0, y1, x1) of instances 1 ... number; zeros if unseen."""
  height, width = instances.shape
  # A column of 0 ends every run with its row.
  padded = np.zeros((height, width + 1), instances.dtype)
  padded[:, :-1] = instances
  starts, ends, owner = runs(padded.ravel())
  row, left = np.divmod(starts, width + 1)
  right = left + ends - starts
  found = np.zeros((number + 1, 4), np.float32)
  found[:, :2] = np.inf
  np.minimum.at(found[:, 0], owner, row)
  np.minimum.at(found[:, 1], owner, left)
  np.maximum.at(found[:, 2], owner, row + 1)
  np.maximum.at(found[:, 3], owner, right)
  found[np.isinf(found[:, 0])] = 0
  return found[1:]


def warp(
  example: dict[str, Any],
  rng: np.random.Generator,
  rotation: float,
  elastic: float,
  fill: tuple[int, int, int],
) -> dict[str, Any]:
  """Turned by up to `rotation` degrees and bent by about `elastic` pixels.

  The bend is a smooth random field with one node every 48 pixels. What comes
  from outside the image is `fill` and void. Boxes are those of what is seen
  after the warp.
  """
  height, width = example["semantic"].shape
  if max(height, width) >= _MOST_WARPED:
    raise ValueError(
      f"an image is {height} x {width} pixels, and rotation and elastic take"
      f" sides below {_MOST_WARPED:,}; set both to 0, or cut it into parts."
    )
  angle = np.deg2rad(rng.uniform(-rotation, rotation))
  y, x = np.mgrid[:height, :width].astype(np.float32)
  cy, cx = (height - 1) / 2, (width - 1) / 2
  cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
  from_y = cos * (y - cy) + sin * (x - cx) + np.float32(cy)
  from_x = cos * (x - cx) - sin * (y - cy) + np.float32(cx)
  if elastic:
    nodes = (height // 48 + 2, width // 48 + 2, 2)
    field = rng.normal(0, elastic, nodes).astype(np.float32)
    field = cv2.resize(field, (width, height), interpolation=cv2.INTER_CUBIC)
    from_y += field[..., 0]
    from_x += field[..., 1]

  def look_up(values, method, outside):
    return cv2.remap(
      values, from_x, from_y, method, None, cv2.BORDER_CONSTANT, outside
    )

  example = dict(example)
  example["image"] = look_up(example["image"], cv2.INTER_LINEAR, fill)
  example["semantic"] = look_up(example["semantic"], cv2.INTER_NEAREST, IGNORE)
  if "instances" in example:
    # Float32 holds every id below 2^24; OpenCV cannot remap int32.
    ids = example["instances"].astype(np.float32)
    ids = look_up(ids, cv2.INTER_NEAREST, 0).astype(np.int32)
    example["instances"] = ids
    example["boxes"] = instance_boxes(ids, len(example["classes"]))
  return example


def flip(example: dict[str, Any], axis: int) -> dict[str, Any]:
  """Mirrored along axis 0 (upside down) or 1 (left right); maps are views."""
  example = dict(example)
  size = example["semantic"].shape[axis]
  for name in ("image", "semantic", "instances"):
    if name in example:
      example[name] = np.flip(example[name], axis)
  if "boxes" in example:
    boxes = example["boxes"].copy()
    boxes[:, axis] = size - example["boxes"][:, axis + 2]
    boxes[:, axis + 2] = size - example["boxes"][:, axis]
    example["boxes"] = boxes
  return example


def transpose(example: dict[str, Any]) -> dict[str, Any]:
  """Rows and columns exchanged; the maps are views."""
  example = dict(example)
  for name in ("image", "semantic", "instances"):
    if name in example:
      example[name] = np.swapaxes(example[name], 0, 1)
  if "boxes" in example:
    example["boxes"] = example["boxes"][:, [1, 0, 3, 2]]
  return example


class _Span(NamedTuple):
  """Along one axis: what is cut from the source and where it is put."""

  start: int  # in the source
  length: int
  place: int  # in the crop
  resized: int  # length after scaling
  shown: int  # of that, what lies in the crop


def random_crop(
  example: dict[str, Any],
  rng: np.random.Generator,
  factors: tuple[float, float],
  crop: tuple[int, int],
  stride: int,
  fill: tuple[int, int, int],
  full_boxes: bool,
  label_stride: int = 0,
) -> dict[str, Any]:
  """A crop H W of the image scaled by `factors` (y, x), padded to strides.

  The crop is cut first and then resized (area average down, cubic up). Where
  the scaled image is larger than the crop, the start is uniform over the
  image; where it is smaller, its place in the crop is. The maps come out at
  feature resolution: label and instance at each cell's point, IGNORE and 0
  outside of the image. `full_boxes` False: boxes of what the crop shows.
  `label_stride`: pixels per category label, where they are to be finer.
  """
  size = example["semantic"].shape
  y, x = (_span(rng, *axis) for axis in zip(size, factors, crop, strict=True))
  window = np.s_[y.start : y.start + y.length, x.start : x.start + x.length]
  height, width = (-(-extent // stride) * stride for extent in crop)
  image = _resize(example["image"][window], y.resized, x.resized)
  image = cv2.copyMakeBorder(
    image[: y.shown, : x.shown],
    y.place, height - y.place - y.shown, x.place, width - x.place - x.shown,
    cv2.BORDER_CONSTANT, value=fill,
  )  # fmt: skip

  def sample(stride):
    rows, row_seen = _cells(y, height // stride, stride)
    columns, column_seen = _cells(x, width // stride, stride)
    grid, seen = np.ix_(rows, columns), row_seen[:, None] & column_seen
    return grid, np.where(seen, example["semantic"][grid], IGNORE)

  grid, semantic = sample(stride)
  cut = dict(example, image=image, semantic=semantic)
  if label_stride not in (0, stride):
    _, cut["semantic"] = sample(label_stride)
  if "instances" in example:
    inside = semantic != IGNORE
    cut["instances"] = np.where(inside, example["instances"][grid], 0)
    start = np.tile([y.start, x.start], 2)
    boxes = example["boxes"] - start
    if not full_boxes:
      boxes = instance_boxes(example["instances"][window], len(boxes))
    scale = np.tile([y.resized / y.length, x.resized / x.length], 2)
    place = np.tile([y.place, x.place], 2)
    cut["boxes"] = (boxes * scale + place).astype(np.float32)
  return cut


def _span(
  rng: np.random.Generator, size: int, factor: float, extent: int
) -> _Span:
  """A random span of a source of `size` for a crop of `extent`."""
  length = min(size, int(np.ceil(extent / factor)))
  start = int(rng.integers(0, size - length + 1))
  resized = max(1, round(length * factor))
  place = int(rng.integers(0, max(extent - resized, 0) + 1))
  return _Span(start, length, place, resized, min(resized, extent - place))


def _cells(
  span: _Span, number: int, stride: int
) -> tuple[Int[Array, "h"], Bool[Array, "h"]]:
  """Source pixel under each cell's point, and whether it is in the image."""
  points = (np.arange(number) + 0.5) * stride - span.place
  seen = (points >= 0) & (points < span.shown)
  # Pixel k covers k ... k + 1, so a coordinate's floor is its pixel.
  pixels = np.floor(points * (span.length / span.resized)).astype(int)
  return span.start + np.clip(pixels, 0, span.length - 1), seen


def _resize(
  image: UInt8[Array, "H W 3"], height: int, width: int
) -> UInt8[Array, "A B 3"]:
  if image.shape[:2] == (height, width):
    return image
  shrinks = height * width < image.shape[0] * image.shape[1]
  method = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
  return cv2.resize(image, (width, height), interpolation=method)


def jitter_intensity(
  image: UInt8[Array, "H W 3"],
  rng: np.random.Generator,
  brightness: float,
  contrast: float,
  gamma: float,
  noise: float,
  invert: float,
) -> UInt8[Array, "H W 3"]:
  """Random intensities, the three channels alike; all 0 changes nothing.

  brightness: shift of up to this share of 255. contrast, gamma: factor and
  exponent of exp(uniform(-v, v)). noise: Gaussian of a standard deviation of
  up to this share of 255. invert: the probability of a negative.
  """
  if not (brightness or contrast or gamma or noise or invert):
    return image
  levels = np.arange(256, dtype=np.float32) / 255
  if rng.random() < invert:
    levels = 1 - levels
  levels = levels ** np.exp(rng.uniform(-gamma, gamma))
  levels = (levels - 0.5) * np.exp(rng.uniform(-contrast, contrast)) + 0.5
  levels = (levels + rng.uniform(-brightness, brightness)) * 255
  image = cv2.LUT(image, np.clip(np.rint(levels), 0, 255).astype(np.uint8))
  if noise:
    grain = rng.standard_normal(image.shape, dtype=np.float32)
    grain *= np.float32(255 * rng.uniform(0, noise))
    image = np.clip(np.rint(image + grain), 0, 255).astype(np.uint8)
  return image


def normalize_intensity(
  image: UInt8[Array, "H W 3"],
) -> UInt8[Array, "H W 3"]:
  """Stretched so that its 1 and 99.8 percentiles are 0 and 255.

  For microscopy, whose brightness differs by image. A network trained so must
  be fed so; apply it to the whole image, before crops and tiles.
  """
  counts = np.bincount(image.ravel(), minlength=256).cumsum()
  low, high = np.searchsorted(counts, counts[-1] * np.array([0.01, 0.998]))
  levels = (np.arange(256) - low) * (255 / max(high - low, 1))
  return cv2.LUT(image, np.clip(np.rint(levels), 0, 255).astype(np.uint8))


def box_targets(
  instances: Int[Array, "h w"],
  boxes: Float[Array, "m 4"],
  classes: UInt8[Array, "m"],
  stride: int,
  weighting: str,
) -> dict[str, Array]:
  """boxes, classes, valid and weights of types.Batch for one crop.

  A cell is valid where it has an instance. `weighting` gives the raw weight
  of an instance of height h and width w: "area" 1 / (h w), "sqrt_area"
  1 / sqrt(h w), "none" 1 (paper section 2.1: equal for all pixels of an
  instance). Weights have mean 1 over the crop's valid cells.
  """
  if weighting not in WEIGHTINGS:
    raise ValueError(
      f"box_weighting is {weighting!r}; expected one of {WEIGHTINGS}."
    )
  valid = instances > 0
  table = np.concatenate([np.zeros((1, 4), np.float32), boxes])
  points = box_algebra.cell_points(*instances.shape, stride, np)
  encoded = box_algebra.encode(table[instances], points)
  encoded = np.where(valid[..., None], encoded, 0).astype(np.float32)
  power = {"area": -1.0, "sqrt_area": -0.5, "none": 0.0}[weighting]
  area = np.maximum(box_algebra.area(table), 1e-6)
  weights = np.where(valid, (area**power)[instances], 0)
  total = weights.sum()
  if total > 0:
    weights = weights * (valid.sum() / total)
  return {
    "boxes": encoded,
    "classes": np.concatenate([[0], classes]).astype(np.uint8)[instances],
    "valid": valid,
    "weights": weights.astype(np.float32),
  }
