"""Score and box maps of images of any size: views and their averages.

A network sees few distinct sizes: images are padded to the lengths of
`bucket`, so that a folder of many sizes compiles few times. Networks are told
where an image ends, lest padding change what they say near its border, and
padding never reaches the result: cells beyond the image repeat its last ones.

Views are the same image flipped, resized and moved by less than a stride (the
paper's multi-view testing; PROTOCOL b.2). Their maps are brought back to the
cells of the image, probabilities and absolute boxes, and averaged there.
Larger images go through in overlapping tiles (see tiling), so that voting
happens once for the whole image.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int, Num, UInt8
from tqdm import tqdm

from fcrn_jax import tiling
from fcrn_jax.types import Array
from fcrn_jax.views import (
  Maps,
  canvas_of,
  ceil_to,
  mean_of_transposed,
  read_view,
  sub_stride_moves,
)

# Outputs of models.FCRN for images and the size (height, width) of the part of
# each that is not padding; see models.masking.
ApplyFn = Callable[
  [UInt8[Array, "b H W 3"], Int[Array, "b 2"]], Mapping[str, Array]
]


class Options(NamedTuple):
  """How an image is looked at; the defaults are one view of the whole."""

  flip: bool = False  # average with the left-right mirror image
  scales: tuple[float, ...] = (1.0,)  # average over sizes
  shifts: int = 1  # k: k x k sub-stride moves, giving maps of stride / k
  # In pixels of the network's input:
  tile: int = 2048  # longest side that goes in whole; 0: any
  tile_overlap: int = 256  # what neighbouring tiles share
  transpose: bool = False  # average with rows and columns exchanged

  def one_view(self) -> "Options":
    """The same without test-time augmentation: several times as fast."""
    return self._replace(flip=False, scales=(1.0,), shifts=1, transpose=False)


ONE_VIEW = Options()


def bucket(size: int) -> int:
  """The length that `size` is padded to.

  32, 64, then two lengths an octave to 512 (96, 128, 192, 256, 384, 512),
  then four (640, 768, 896, 1024, 1280 ...): ours, few compilations against
  little padding. All are multiples of 32, the largest stride.
  """
  octave = 32
  while 2 * octave < size:
    octave *= 2
  parts = 1 if octave < 64 else 2 if octave < 512 else 4
  lengths = [octave + octave * i // parts for i in range(parts + 1)]
  return next(length for length in lengths if length >= size)


def map_stride(stride: int, options: Options) -> int:
  """Pixels per cell of the maps: the network's stride / shifts."""
  if not options.scales or min(options.scales) <= 0:
    raise ValueError(
      f"inference.scales is {options.scales}; expected positive factors, 1.0"
      " for the image's own size."
    )
  if options.shifts < 1 or (
    options.shifts > 1 and stride % (2 * options.shifts)
  ):
    raise ValueError(
      f"inference.shifts is {options.shifts}; expected 1 or a divisor of half"
      f" the network's stride ({stride} / 2): views move by whole pixels."
    )
  return stride // options.shifts


def is_tiled(size: Sequence[int] | Num[Array, "2"], options: Options) -> bool:
  """Whether an image of this height and width goes through in tiles."""
  return bool(options.tile and max(size) > options.tile)


def padded_shape(
  size: Num[Array, "2"], stride: int, options: Options
) -> tuple[int, int]:
  """Height and width that an image of this size is padded to."""
  # A moved view needs one more cell of room.
  room = stride if options.shifts > 1 else 0
  return bucket(int(size[0]) + room), bucket(int(size[1]) + room)


def predict_maps(
  apply_fn: ApplyFn,
  image: UInt8[Array, "..."],
  stride: int,
  options: Options = ONE_VIEW,
  batch_size: int = 1,
  progress: bool = False,
) -> Maps:
  """The maps of one image of any size, cropped to its cells, in numpy.

  Tiled maps equal those of the whole image, but for rounding, wherever the
  overlap is at least the receptive field plus 4 strides; with less, they
  differ as much as what a tile cannot see matters to the network.

  Args:
    apply_fn: the network's outputs.
    image: `H W 3` or `H W`; may be memory-mapped: tiles are read one by one.
    stride: input pixels per cell of apply_fn's output.
    options: views and tiles.
    batch_size: number of tiles that go through at once.
    progress: show a bar over the tiles.
  """
  fine = map_stride(stride, options)
  height, width = (math.ceil(n / fine) for n in image.shape[:2])
  if not is_tiled(image.shape[:2], options):
    maps = batch_maps(apply_fn, [as_rgb(image)], stride, options)
    return jax.tree.map(lambda x: np.asarray(x[0, :height, :width]), maps)
  _check_tile(stride, options)
  side = options.tile - (stride if options.shifts > 1 else 0)
  overlap = math.ceil(options.tile_overlap / stride)
  rows_and_columns = [
    tiling.spans(math.ceil(n / stride), side // stride, overlap)
    for n in image.shape[:2]
  ]
  pairs = list(itertools.product(*rows_and_columns))
  total = None
  with tqdm(total=len(pairs), desc="tiles", disable=not progress) as bar:
    for first in range(0, len(pairs), batch_size):
      group = pairs[first : first + batch_size]
      tiles = [
        as_rgb(image[rows.pixels(stride), columns.pixels(stride)])
        for rows, columns in group
      ]
      tiles += tiles[-1:] * (batch_size - len(group))
      maps = batch_maps(apply_fn, tiles, stride, options)
      total = total or jax.tree.map(
        lambda x: np.zeros((height, width, *x.shape[3:]), np.float32), maps
      )
      for index, spans in enumerate(group):
        tile = jax.tree.map(lambda x, i=index: np.asarray(x[i]), maps)
        _add_tile(total, tile, spans, stride, options.shifts)
      bar.update(len(group))
  return total


def batch_maps(
  apply_fn: ApplyFn,
  images: Sequence[UInt8[np.ndarray, "_H _W 3"]],
  stride: int,
  options: Options = ONE_VIEW,
) -> Maps:
  """The averaged maps of images of one padded_shape, on the device.

  Cells beyond an image repeat its last ones and must not vote. Compiles once
  per padded shape and batch size.
  """
  if options.transpose:
    options = options._replace(transpose=False)
    turned = [image.swapaxes(0, 1) for image in images]
    return mean_of_transposed(
      batch_maps(apply_fn, images, stride, options),
      batch_maps(apply_fn, turned, stride, options),
    )
  fine = map_stride(stride, options)
  room = stride if options.shifts > 1 else 0
  sizes = np.array([image.shape[:2] for image in images])
  shape = padded_shape(sizes.max(axis=0), stride, options)
  cells = tuple((n - room) // fine for n in shape)
  total, count = None, 0
  for scale in options.scales:
    views, view_shape = images, shape
    if scale != 1:
      views = [resize(image, scale) for image in images]
      view_shape = tuple(bucket(math.ceil(n * scale) + room) for n in shape)
    view_sizes = np.array([view.shape[:2] for view in views])
    for flip in (False, True)[: 1 + options.flip]:
      factor, offset = view_sizes / sizes, np.zeros(sizes.shape)
      if flip:
        # Mirrored at a whole number of cells, so that cells meet cells.
        offset[:, 1] = ceil_to(view_sizes[:, 1], stride)
        factor[:, 1] *= -1
      # The view's part that shows the image, in cells.
      start = np.maximum(offset - view_sizes, 0) // fine
      stop = np.ceil(np.maximum(offset, view_sizes) / fine) - 1
      geometry = [np.float32(x) for x in (factor, offset, start, stop)]
      moves = sub_stride_moves(stride, options.shifts)
      outputs = []
      for move in moves:
        canvas = canvas_of(views, flip, view_shape, move, stride)
        found = apply_fn(*canvas)
        outputs.append((found["semantic"], found.get("boxes"), canvas[1]))
      maps = read_view(outputs, geometry, moves, view_shape, cells, fine)
      total = maps if total is None else jax.tree.map(jnp.add, total, maps)
      count += 1
  return jax.tree.map(lambda x: x / count, total) if count > 1 else total


def as_rgb(image: UInt8[Array, "..."]) -> UInt8[np.ndarray, "_H _W 3"]:
  """The image in memory, gray repeated to three channels."""
  image = np.asarray(image)
  return np.repeat(image[..., None], 3, axis=2) if image.ndim == 2 else image


def resize(
  image: UInt8[np.ndarray, "_H _W 3"], scale: float
) -> UInt8[np.ndarray, "_h _w 3"]:
  """The image at `scale` times its size: area average down, cubic up."""
  height, width = (max(1, round(n * scale)) for n in image.shape[:2])
  method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
  return cv2.resize(image, (width, height), interpolation=method)


def check_options(stride: int, options: Options) -> None:
  """ValueError for views or tiles that a network of that stride cannot take."""
  map_stride(stride, options)
  if options.tile:
    _check_tile(stride, options)


def _check_tile(stride, options):
  overlap = options.tile_overlap
  if bucket(options.tile) != options.tile or options.tile < 4 * stride:
    raise ValueError(
      f"inference.tile is {options.tile}; expected a length of"
      f" inference.bucket, such as {bucket(max(options.tile, 4 * stride))}."
    )
  if not 0 <= overlap <= options.tile // 2:
    raise ValueError(
      f"inference.tile_overlap is {overlap}; expected 0 to half the tile"
      f" ({options.tile} / 2)."
    )


def _add_tile(total, tile, spans, stride, shifts):
  """Adds one tile's weighted share to the maps of the whole image."""
  place = tiling.place(*spans, total.probs.shape[:2], shifts)
  weight = place.weight[..., None]
  total.probs[place.target] += weight * tile.probs[place.source]
  if tile.boxes is not None:
    origin = np.float32([span.start * stride for span in spans] * 2)
    boxes = tile.boxes[place.source] + origin
    total.boxes[place.target] += weight[..., None] * boxes
