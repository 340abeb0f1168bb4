"""From an example to a training crop and its targets; numpy and OpenCV.

An example in here also has "boxes" m 4: each full instance's box in pixels
of the example's current image. Geometry steps take and return examples and
move image, maps and boxes alike. Each random step draws from the generator it
is given, so a crop depends on its generator only.
"""

from typing import Any

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from fcrn_jax import boxes as box_algebra
from fcrn_jax.types import IGNORE, Array

WEIGHTINGS = ("area", "sqrt_area", "none")


def instance_boxes(
  instances: Int[Array, "H W"], number: int
) -> Float[Array, "m 4"]:
  """Boxes (y0, x0, y1, x1) of instances 1 ... number; zeros if unseen."""
  height, width = instances.shape
  padded = np.zeros((height, width + 1), instances.dtype)
  padded[:, :-1] = instances
  # A run is a stretch of one id within a row; far fewer than pixels.
  flat = padded.ravel()
  starts = np.flatnonzero(np.diff(flat, prepend=0))
  owner = flat[starts]
  ends = np.append(starts[1:], flat.size)
  starts, ends, owner = (a[owner > 0] for a in (starts, ends, owner))
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


def flip_left_right(example: dict[str, Any]) -> dict[str, Any]:
  """Mirrored; the maps are views."""
  example = dict(example)
  width = example["semantic"].shape[1]
  for name in ("image", "semantic", "instances"):
    if name in example:
      example[name] = example[name][:, ::-1]
  if "boxes" in example:
    y0, x0, y1, x1 = example["boxes"].T
    example["boxes"] = np.stack([y0, width - x1, y1, width - x0], axis=1)
  return example


def transpose(example: dict[str, Any]) -> dict[str, Any]:
  """Rows and columns exchanged; the maps are views.

  With flip_left_right it makes the eight symmetries of the square.
  """
  example = dict(example)
  for name in ("image", "semantic", "instances"):
    if name in example:
      example[name] = np.swapaxes(example[name], 0, 1)
  if "boxes" in example:
    example["boxes"] = example["boxes"][:, [1, 0, 3, 2]]
  return example


def random_crop(
  example: dict[str, Any],
  rng: np.random.Generator,
  factors: tuple[float, float],
  crop: tuple[int, int],
  stride: int,
  fill: tuple[int, int, int],
  full_boxes: bool,
) -> dict[str, Any]:
  """A crop H W of the image scaled by `factors` (y, x), padded to strides.

  The crop is cut first and then resized (area average down, cubic up). Where
  the scaled image is larger than the crop, the start is uniform over the
  image; where it is smaller, its place in the crop is. The maps come out at
  feature resolution: label and instance at each cell's point, IGNORE and 0
  outside of the image. `full_boxes` False: boxes of what the crop shows.
  """
  starts, sources, places, targets = zip(
    *(
      _place(rng, size, factor, extent)
      for size, factor, extent in zip(
        example["semantic"].shape, factors, crop, strict=True
      )
    ),
    strict=True,
  )
  window = tuple(slice(a, a + n) for a, n in zip(starts, sources, strict=True))
  scaled = np.array(targets) / np.array(sources)
  # A window may scale to a pixel more than the crop.
  shown = [min(n, c - p) for n, c, p in zip(targets, crop, places, strict=True)]
  image = _resize(example["image"][window], targets)
  canvas_size = [-(-extent // stride) * stride for extent in crop]
  canvas = np.empty((*canvas_size, 3), np.uint8)
  canvas[:] = fill
  inside = tuple(slice(p, p + n) for p, n in zip(places, shown, strict=True))
  canvas[inside] = image[: shown[0], : shown[1]]

  cells, seen = [], []
  for axis in range(2):
    points = (np.arange(canvas_size[axis] // stride) + 0.5) * stride
    source = starts[axis] + (points - places[axis]) / scaled[axis]
    seen.append(
      (points >= places[axis]) & (points < places[axis] + shown[axis])
    )
    # floor: pixel k covers k ... k + 1
    last = starts[axis] + sources[axis] - 1
    cells.append(np.clip(np.floor(source).astype(int), starts[axis], last))
  grid, seen = np.ix_(*cells), np.logical_and.outer(*seen)
  cut = dict(example, image=canvas)
  cut["semantic"] = np.where(seen, example["semantic"][grid], IGNORE)
  if "instances" in example:
    cut["instances"] = np.where(seen, example["instances"][grid], 0)
    boxes = example["boxes"]
    if not full_boxes:
      boxes = instance_boxes(
        np.ascontiguousarray(example["instances"][window]), len(boxes)
      ) + np.tile(starts, 2)
    moved = (boxes - np.tile(starts, 2)) * np.tile(scaled, 2)
    cut["boxes"] = (moved + np.tile(places, 2)).astype(np.float32)
  return cut


def _place(
  rng: np.random.Generator, size: int, factor: float, extent: int
) -> tuple[int, int, int, int]:
  """Along one axis: start and length in the source, and in the crop."""
  source = min(size, int(np.ceil(extent / factor)))
  start = int(rng.integers(0, size - source + 1))
  target = max(1, round(source * factor))
  place = int(rng.integers(0, max(extent - target, 0) + 1))
  return start, source, place, target


def _resize(
  image: UInt8[Array, "H W 3"], size: tuple[int, ...]
) -> UInt8[Array, "A B 3"]:
  if image.shape[:2] == tuple(size):
    return image
  shrinks = size[0] * size[1] < image.shape[0] * image.shape[1]
  method = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
  image = np.ascontiguousarray(image)
  return cv2.resize(image, (size[1], size[0]), interpolation=method)


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
  levels = np.arange(256, dtype=np.float32) / 255
  if rng.random() < invert:
    levels = 1 - levels
  levels = levels ** np.exp(rng.uniform(-gamma, gamma))
  levels = (levels - 0.5) * np.exp(rng.uniform(-contrast, contrast)) + 0.5
  levels = (levels + rng.uniform(-brightness, brightness)) * 255
  image = np.clip(np.rint(levels), 0, 255).astype(np.uint8)[image]
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
  return np.clip(np.rint(levels), 0, 255).astype(np.uint8)[image]


def box_targets(
  instances: Int[Array, "h w"],
  semantic: UInt8[Array, "h w"],
  boxes: Float[Array, "m 4"],
  classes: UInt8[Array, "m"],
  stride: int,
  weighting: str,
) -> dict[str, Array]:
  """boxes, classes, valid and weights of types.Batch for one crop.

  A cell is valid where it has an instance and is not void. `weighting` gives
  the raw weight of an instance of height h and width w: "area" 1 / (h w),
  "sqrt_area" 1 / sqrt(h w), "none" 1 (paper section 2.1: equal for all pixels
  of an instance). Weights have mean 1 over the crop's valid cells.
  """
  if weighting not in WEIGHTINGS:
    raise ValueError(
      f"box_weighting is {weighting!r}; expected one of {WEIGHTINGS}."
    )
  valid: Bool[Array, "h w"] = (instances > 0) & (semantic != IGNORE)
  owner = np.where(valid, instances, 0)
  table = np.concatenate([np.zeros((1, 4), np.float32), boxes])
  points = box_algebra.cell_points(*instances.shape, stride, np)
  encoded = box_algebra.encode(table[owner], points)
  encoded = np.where(valid[..., None], encoded, 0).astype(np.float32)
  power = {"area": -1.0, "sqrt_area": -0.5, "none": 0.0}[weighting]
  area = np.maximum(box_algebra.area(table), 1e-6)
  weights = np.where(valid, (area**power)[owner], 0)
  total = weights.sum()
  if total > 0:
    weights = weights * (valid.sum() / total)
  return {
    "boxes": encoded,
    "classes": np.concatenate([[0], classes]).astype(np.uint8)[owner],
    "valid": valid,
    "weights": weights.astype(np.float32),
  }
