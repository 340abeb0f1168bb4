"""Grouping of images too large for one program: vote once, paint by regions.

Hypotheses are found on the maps of the whole image, so that instances have no
seams and no size limit; their pixels are then assigned region by region, each
with the hypotheses that can have pixels there.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator
from fractions import Fraction

import jax
import numpy as np
from jaxtyping import UInt8
from tqdm import tqdm

from fcrn_jax import instances
from fcrn_jax.inference import Maps
from fcrn_jax.predictor import grouping
from fcrn_jax.predictor.result import Result, layer_dtype
from fcrn_jax.types import Array

REGION = 1024  # pixels a side, about; ours


def group_large(
  maps: Maps,
  image: UInt8[Array, "..."],
  options: instances.Options,
  stride: int | float,
  categories: tuple[str, ...],
  progress: bool = False,
) -> Result:
  """The result of one image from its `h w` maps, as grouping.group_one's.

  There is room for options.max_instances in every 1024 x 1024 pixels, and for
  more where those were not enough.
  """
  if maps.boxes is not None and options.masks == "full":
    raise ValueError(
      "options.masks is 'full', which votes with every pixel at once; an image"
      f" of {image.shape[:2]} pixels needs 'boxes', 'scores' or 'blocks'."
    )
  size = image.shape[:2]
  found = None
  if maps.boxes is not None:
    found = _find(maps, size, options, stride)
  number = 0 if found is None else len(found.valid)
  semantic, confidence = np.zeros(size, np.uint8), np.zeros(size, np.float16)
  layers = np.zeros(
    (0 if found is None else options.num_masks, *size), layer_dtype(number)
  )
  areas = np.zeros(number + 1, np.int64)
  regions = [*_regions(maps.probs.shape[:2], stride)]
  for region in tqdm(regions, desc="regions", disable=not progress):
    pixels = region.pixels(size)
    if found is None:
      painted = _paint(region.cut(maps), None, options, stride)
    else:
      near, ids = _near(found, region, stride)
      painted = _paint(region.cut(maps), near, options, stride)
      labels = region.inner(painted.labels, pixels)
      table = np.concatenate([[0], ids + 1])
      labels = table[np.maximum(labels, -1) + 1]
      areas += np.bincount(labels.ravel(), minlength=number + 1)
      layers[:, *pixels] = labels
    semantic[pixels] = region.inner(painted.semantic, pixels)
    confidence[pixels] = region.inner(painted.confidence, pixels)
  if found is None:
    return grouping.without_instances(semantic, confidence, image, categories)
  return grouping.with_instances(
    semantic,
    confidence,
    layers,
    areas,
    found._replace(owners=None),
    image,
    categories,
  )


@dataclasses.dataclass(frozen=True)
class _Region:
  """A square of cells, to be painted with a margin that is then cut off."""

  top: int
  left: int
  side: int
  margin: int
  stride: int | float

  def cells(self, shape) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns with the margin; those beyond the edge repeat it."""
    return tuple(
      np.clip(
        np.arange(first - self.margin, first + self.side + self.margin),
        0,
        length - 1,
      )
      for first, length in zip((self.top, self.left), shape, strict=True)
    )

  def origin(self) -> np.ndarray:
    """The cell (i, j) at which the margin starts."""
    return np.array([self.top, self.left]) - self.margin

  def cut(self, maps: Maps) -> Maps:
    """The region's maps, boxes in pixels from its corner."""
    index = np.ix_(*self.cells(maps.probs.shape[:2]))
    if maps.boxes is None:
      return Maps(maps.probs[index], None)
    offset = np.float32(np.tile(self.origin(), 2) * self.stride)
    return Maps(maps.probs[index], maps.boxes[index] - offset)

  def pixels(self, size) -> tuple[slice, slice]:
    """Its pixels in the image."""
    return tuple(
      slice(
        round(first * self.stride),
        min(round((first + self.side) * self.stride), length),
      )
      for first, length in zip((self.top, self.left), size, strict=True)
    )

  def inner(self, painted, pixels) -> np.ndarray:
    """What was painted, without the margin and what is beyond the image."""
    start = round(self.margin * self.stride)
    height, width = (p.stop - p.start for p in pixels)
    painted = np.asarray(painted)
    return painted[..., start : start + height, start : start + width]


def _regions(shape, stride) -> Iterator[_Region]:
  # As many cells as make whole pixels.
  unit = Fraction(stride).limit_denominator(64).denominator
  side = max(1, round(REGION / stride / unit)) * unit
  for top in range(0, shape[0], side):
    for left in range(0, shape[1], side):
      yield _Region(top, left, side, unit, stride)


def _find(maps, size, options, stride) -> instances.Hypotheses:
  """Hypotheses on the whole image, with room for them, in numpy."""
  padded = jax.tree.map(lambda x: x[0], grouping.pad(maps, stride))
  number = options.max_instances * math.ceil(math.prod(size) / REGION**2)
  for _ in range(3):
    room = dataclasses.replace(options, max_instances=number)
    found = _find_in(padded, np.array(size, np.int32), room, stride)
    if not found.truncated:
      break
    number *= 4
  return jax.tree.map(np.asarray, found)


@functools.partial(jax.jit, static_argnums=3)
def _find_in(maps, size, options, stride):
  return instances.find(maps.probs, maps.boxes, options, size, stride)


def _near(
  found: instances.Hypotheses, region: _Region, stride
) -> tuple[instances.Hypotheses, np.ndarray]:
  """The hypotheses that may have pixels in the region, and their indices.

  Those whose box reaches into it or that own a cell of it; boxes and seeds are
  counted from the region's corner, and there are empty slots up to a power of
  two, so that few programs are compiled.
  """
  shape = found.owners.shape[2:]
  owners = found.owners[:, :, *np.ix_(*region.cells(shape))]
  origin = region.origin()
  low, high = (
    origin * stride,
    (origin + region.side + 2 * region.margin) * stride,
  )
  reach = (found.boxes[:, :2] < high) & (found.boxes[:, 2:] > low)
  chosen = found.valid & reach.all(axis=1)
  chosen[np.unique(owners[owners >= 0])] = True
  ids = np.flatnonzero(chosen)
  slots = max(64, 1 << max(len(ids) - 1, 1).bit_length())

  def pick(values):
    room = np.zeros((slots, *values.shape[1:]), values.dtype)
    room[: len(ids)] = values[ids]
    return room

  table = np.full(len(chosen) + 1, -1, np.int32)
  table[ids + 1] = np.arange(len(ids))
  per_slot = {
    name: pick(getattr(found, name))
    for name in found._fields
    if name not in ("truncated", "owners")
  }
  near = found._replace(**per_slot, owners=table[owners + 1])
  return near._replace(
    boxes=near.boxes - np.float32(np.tile(origin, 2) * stride),
    seeds=near.seeds - origin.astype(near.seeds.dtype),
  ), ids


@functools.partial(jax.jit, static_argnums=3)
def _paint(maps, near, options, stride) -> grouping.Found:
  canvas = tuple(round(n * stride) for n in maps.probs.shape[:2])
  return grouping.paint(maps, near, options, stride, canvas)
