"""Overlapping tiles of large images, whose maps are blended into one."""

import itertools
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

_BLEND = 4  # cells over which neighbouring tiles are mixed; ours


class Span(NamedTuple):
  """One tile along one axis, in cells of the network."""

  start: int  # first cell of the tile
  stop: int
  first: int  # first cell that it contributes to
  weights: Float[np.ndarray, "n"]  # of the cells from `first` on

  def pixels(self, stride: int) -> slice:
    """The tile's pixels; may reach beyond the image."""
    return slice(self.start * stride, self.stop * stride)


def spans(length: int, tile: int, overlap: int) -> list[Span]:
  """Tiles over `length` cells; the weights of each cell's tiles add up to 1.

  Neighbours meet in the middle of their overlap, where each has seen most of
  the other's side, and are mixed over a few cells around it.

  Args:
    length: of the map, in cells of the network, as are the others.
    tile: length of a tile.
    overlap: that neighbouring tiles share.
  """
  if length <= tile:
    return [Span(0, length, 0, np.ones(length, np.float32))]
  step = tile - overlap
  starts = [*range(0, length - tile, step), length - tile]
  # Share of the right one of neighbours a, b at every cell.
  cells = np.arange(length) + 0.5
  shares = [np.ones(length)]
  for left, right in itertools.pairwise(starts):
    middle = (left + tile + right) / 2
    blend = min(_BLEND, left + tile - right)
    ramp = (cells - middle) / blend + 0.5 if blend else cells > middle
    shares.append(np.clip(ramp, 0, 1))
  shares.append(np.zeros(length))
  found = []
  for i, start in enumerate(starts):
    weights = np.float32(shares[i] - shares[i + 1])
    used = np.flatnonzero(weights)
    first, last = used[0], used[-1]
    found.append(Span(start, start + tile, first, weights[first : last + 1]))
  return found


class Place(NamedTuple):
  """Where a tile's maps go in those of the whole image."""

  target: tuple[slice, slice]  # of the image's cells
  source: tuple[slice, slice]  # of the tile's cells
  weight: Float[np.ndarray, "h w"]


def place(
  rows: Span, columns: Span, shape: tuple[int, int], shifts: int
) -> Place:
  """The place of a tile in maps of that shape, `shifts` cells to a span's."""
  target, source, weights = [], [], []
  for span, length in zip((rows, columns), shape, strict=True):
    first = span.first * shifts
    weight = np.repeat(span.weights, shifts)[: length - first]
    target.append(slice(first, first + len(weight)))
    begin = (span.first - span.start) * shifts
    source.append(slice(begin, begin + len(weight)))
    weights.append(weight)
  return Place(tuple(target), tuple(source), np.outer(*weights))
