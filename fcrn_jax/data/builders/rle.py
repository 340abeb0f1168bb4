"""COCO's mask formats: polygons, run lengths, compressed run lengths.

Pixel for pixel what pycocotools gives (a test holds it), without it.
Runs go down the columns and begin with a run of zeros.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool

from fcrn_jax.types import Array

_SCALE = 5  # COCO draws polygons on a grid five times as fine


def decode(
  segmentation: Sequence | Mapping[str, Any], height: int, width: int
) -> Bool[Array, "H W"]:
  """The mask of an annotation's "segmentation", whichever form it has.

  A list of polygons [x0, y0, x1, y1, ...] in pixels, or a dict of "size"
  (height, width) and "counts", a list or a compressed string. ValueError for
  anything else and for runs that do not fit the image.
  """
  if isinstance(segmentation, Mapping):
    counts = segmentation["counts"]
    if isinstance(counts, str | bytes):
      counts = decompress(counts)
    if list(segmentation["size"]) != [height, width]:
      raise ValueError(
        f"the mask's size is {segmentation['size']}, the image's "
        f"{[height, width]} (height, width)."
      )
    return from_counts(counts, height, width)
  mask = np.zeros((height, width), bool)
  for polygon in segmentation:
    mask |= from_polygon(polygon, height, width)
  return mask


def from_counts(
  counts: Sequence[int], height: int, width: int
) -> Bool[Array, "H W"]:
  """The mask of run lengths; ValueError if they do not sum to its size."""
  counts = np.asarray(counts, np.int64)
  if counts.sum() != height * width or (counts < 0).any():
    raise ValueError(
      f"run lengths sum to {counts.sum()}, the mask has {height} x {width} = "
      f"{height * width} pixels."
    )
  values = np.arange(len(counts)) % 2 == 1
  return np.repeat(values, counts).reshape(width, height).T


def decompress(text: str | bytes) -> list[int]:
  """Run lengths from COCO's compressed string.

  Each number is a string of 5-bit groups, lowest first, from character 48 on;
  bit 5 says that more follow, bit 4 of the last one is the sign. From the
  fourth number on they are differences to the number two places before.
  """
  if isinstance(text, str):
    text = text.encode("ascii")
  counts, value, shift = [], 0, 0
  for character in text:
    group = character - 48
    value |= (group & 0x1F) << shift
    shift += 5
    if group & 0x20:
      continue
    if group & 0x10:
      value -= 1 << shift
    if len(counts) > 2:
      value += counts[-2]
    counts.append(value)
    value, shift = 0, 0
  return counts


def from_polygon(
  polygon: Sequence[float | int], height: int, width: int
) -> Bool[Array, "H W"]:
  """The mask of one polygon x0 y0 x1 y1 ... in pixels.

  One of a point or two, as tools leave them, covers nothing. The outline is
  walked on the fine grid; wherever it crosses the centre line of a pixel
  column, all pixels of the column from there down change side.
  """
  if len(polygon) % 2:
    raise ValueError(
      f"a polygon has {len(polygon)} coordinates; expected an even number."
    )
  if len(polygon) < 6:
    return np.zeros((height, width), bool)
  points = np.asarray(polygon, np.float64).reshape(-1, 2)
  if not np.isfinite(points).all():
    raise ValueError("a polygon has coordinates that are no numbers.")
  fine = (points * _SCALE + 0.5).astype(np.int64)  # towards 0, as COCO does
  u, v = _walk(fine, np.roll(fine, -1, axis=0))
  step = np.flatnonzero(u[1:] != u[:-1])
  before, after = u[step], u[step + 1]
  column = (np.where(after < before, after, after - 1) + 0.5) / _SCALE - 0.5
  row = (np.minimum(v[step], v[step + 1]) + 0.5) / _SCALE - 0.5
  row = np.ceil(np.clip(row, 0, height)).astype(np.int64)
  hit = (column == np.floor(column)) & (column >= 0) & (column <= width - 1)
  mask = np.zeros((width, height), bool)
  if hit.any():
    # A column flips an even number of times, so only those hit matter.
    column, row = column[hit].astype(np.int64), row[hit]
    first, last = column.min(), column.max() + 1
    flips = np.bincount(
      (column - first) * height + row, minlength=(last - first) * height + 1
    )
    inside = np.cumsum(flips[:-1]) % 2 == 1
    mask[first:last] = inside.reshape(last - first, height)
  return mask.T


def _walk(start: Array, end: Array) -> tuple[Array, Array]:
  """All grid points (x, y) of the edges from start to end, in order."""
  length = np.abs(end - start)
  steep = length[:, 0] < length[:, 1]
  long = np.maximum(length[:, 0], length[:, 1])
  # Edges are drawn in the direction of their growing long axis, and then
  # read backwards where the outline goes the other way: rounding is not
  # symmetric.
  axis = steep.astype(np.int64)
  edge = np.arange(len(start))
  flip = start[edge, axis] > end[edge, axis]
  first = np.where(flip[:, None], end, start)
  last = np.where(flip[:, None], start, end)
  rise = (last - first)[edge, 1 - axis] / np.maximum(long, 1)
  which = np.repeat(edge, long + 1)
  offset = np.cumsum(long + 1) - (long + 1)
  place = np.arange(len(which)) - offset[which]
  place = np.where(flip[which], long[which] - place, place)
  along = first[which, axis[which]] + place
  across = first[which, 1 - axis[which]] + rise[which] * place + 0.5
  across = across.astype(np.int64)
  return (
    np.where(steep[which], across, along),
    np.where(steep[which], along, across),
  )
