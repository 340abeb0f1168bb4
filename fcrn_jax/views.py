"""Views of an image, and their maps brought back to the image's cells.

A view is the image flipped, resized or moved by less than a stride; see
inference, which averages their maps.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, UInt8

from fcrn_jax import boxes as box_algebra
from fcrn_jax.types import FILL, Array


class Maps(NamedTuple):
  """Probabilities (0 = background) and absolute boxes of every cell."""

  probs: Float[Array, "*b h w c"]
  boxes: Float[Array, "*b h w k 4"] | None  # None without a box head


def ceil_to(size: Any, multiple: int) -> Any:
  """The next multiple, of a number or an array."""
  return -(-size // multiple) * multiple


def sub_stride_moves(stride: int, k: int) -> tuple[tuple[int, int], ...]:
  """k * k offsets (y, x) in pixels at which a view is put into its canvas.

  Cell i of a canvas moved by d stands for point (i + 0.5) stride - d of the
  view: d makes that (i + (j + 0.5) / k) strides, j = 0 ... k - 1; those of the
  second half, which would be negative, are a stride larger.
  """
  offsets = [(stride // 2 - stride * (2 * j + 1) // (2 * k)) for j in range(k)]
  return tuple((y % stride, x % stride) for y in offsets for x in offsets)


def canvas_of(
  views: Sequence[UInt8[np.ndarray, "_H _W 3"]],
  flip: bool,
  shape: tuple[int, int],
  move: tuple[int, int],
  stride: int,
) -> tuple[UInt8[np.ndarray, "b H W 3"], Int[np.ndarray, "b 2"]]:
  """The views, mirrored and moved, in images padded to `shape`; their ends."""
  canvas = np.empty((len(views), *shape, 3), np.uint8)
  canvas[:] = FILL
  sizes = []
  for target, view in zip(canvas, views, strict=True):
    height, width = view.shape[:2]
    y, x = move
    if flip:
      view, x = view[:, ::-1], x + ceil_to(width, stride) - width
    target[y : y + height, x : x + width] = view
    # An edge that is not there would be seen far into the image.
    target[:y, x : x + width] = view[:1]
    target[: y + height, :x] = target[: y + height, x : x + 1]
    sizes.append((y + height, x + width))
  return canvas, np.array(sizes, np.int32)


@jax.jit
def mean_of_transposed(maps: Maps, turned: Maps) -> Maps:
  """The mean of maps and those of the same images transposed."""
  turned = jax.tree.map(lambda x: x.swapaxes(1, 2), turned)
  if turned.boxes is not None:
    boxes = turned.boxes[..., jnp.array([1, 0, 3, 2])]
    turned = turned._replace(boxes=boxes)
  return jax.tree.map(lambda x, y: (x + y) / 2, maps, turned)


@functools.partial(jax.jit, static_argnums=(2, 3, 4, 5))
def read_view(outputs, geometry, moves, shape, cells, stride) -> Maps:
  """The maps of one view in all its moves, brought to the image's cells.

  Point p of the image is factor * p + offset in the view, whose cells from
  first to last show the image: geometry = factor, offset, first, last; b 2.
  """
  grid = [
    _align_heads(*heads, move, shape)
    for heads, move in zip(outputs, moves, strict=True)
  ]
  maps = _interleave(grid, moves) if len(grid) > 1 else grid[0]

  def one(maps, factor, offset, first, last):
    axes = []
    for axis, length in enumerate(cells):
      point = (jnp.arange(length) + 0.5) * stride
      position = (factor[axis] * point + offset[axis]) / stride - 0.5
      axes.append(jnp.clip(position, first[axis], last[axis]))
    probs = _bilinear(maps.probs, *axes)
    if maps.boxes is None:
      return Maps(probs, None)
    boxes = _bilinear(maps.boxes, *axes)
    corners = boxes.reshape(*boxes.shape[:-1], 2, 2)
    corners = (corners - offset) / factor
    low, high = corners.min(axis=-2), corners.max(axis=-2)
    return Maps(probs, jnp.concatenate([low, high], axis=-1))

  return jax.vmap(one)(maps, *geometry)


def _align_heads(semantic, encoded, sizes, move, shape):
  """to_maps of a view, boxes where its image is.

  Two networks may differ in stride; the coarser map is then brought to the
  cells of the finer one.
  """
  stride = shape[0] / (semantic if encoded is None else encoded).shape[1]
  probs, boxes = to_maps(semantic, encoded, stride)
  if boxes is None:
    return Maps(probs, None)
  boxes -= jnp.tile(jnp.asarray(move, jnp.float32), 2)
  height, width = boxes.shape[1:3]
  ratio = height / probs.shape[1]
  if ratio > 1:
    cell = shape[0] // probs.shape[1]
    probs = jax.vmap(repeat_last)(probs, -(-sizes // cell))
    b, _, _, c = probs.shape
    probs = jax.image.resize(probs, (b, height, width, c), "linear")
  elif ratio < 1:
    boxes = jnp.repeat(boxes, round(1 / ratio), axis=1)
    boxes = jnp.repeat(boxes, round(1 / ratio), axis=2)
  return Maps(probs, boxes)


def to_maps(
  semantic: Float[Array, "*b h w c"],
  encoded: Float[Array, "*b y x k 4"] | None,
  stride: int | float,
) -> Maps:
  """Logits to probabilities, encoded boxes to absolute ones."""
  probs = jax.nn.softmax(jnp.asarray(semantic, jnp.float32))
  if encoded is None:
    return Maps(probs, None)
  encoded = jnp.asarray(encoded, jnp.float32)
  points = box_algebra.cell_points(*encoded.shape[-4:-2], stride, jnp)
  return Maps(probs, box_algebra.decode(encoded, points[:, :, None]))


def repeat_last(maps: Any, cells: Int[Array, "2"]) -> Any:
  """Maps `h w ...` of one image: cells beyond its `cells` become its last."""

  def repeat(values):
    for axis in (0, 1):
      index = jnp.minimum(jnp.arange(values.shape[axis]), cells[axis] - 1)
      values = values.take(index, axis)
    return values

  return jax.tree.map(repeat, maps)


def _interleave(grid, moves):
  """k * k maps, cell (i, j) of the (y, x)-th going to (i k + y, j k + x)."""
  k = math.isqrt(len(grid))
  # The first half of the offsets fall from stride / 2, the others are wrapped.
  top = moves[0][0]

  def mix(*maps):
    cut = []
    for m, (dy, dx) in zip(maps, moves, strict=True):
      y, x = int(dy > top), int(dx > top)
      height, width = (n - 1 for n in m.shape[1:3])
      cut.append(m[:, y : y + height, x : x + width])
    b, h, w, *rest = cut[0].shape
    stacked = jnp.stack(cut).reshape(k, k, b, h, w, *rest)
    stacked = jnp.moveaxis(stacked, (0, 1), (2, 4))
    return stacked.reshape(b, h * k, w * k, *rest)

  return jax.tree.map(mix, *grid)


def _bilinear(image, y, x):
  """Values of `h w ...` at every pair of the coordinates y and x."""
  for axis, position in enumerate((y, x)):
    low = jnp.floor(position).astype(jnp.int32)
    high = jnp.minimum(low + 1, image.shape[axis] - 1)
    shape = (1,) * axis + (-1,) + (1,) * (image.ndim - axis - 1)
    share = (position - low).reshape(shape)
    # Not low + share * (high - low): with share 0 a cell keeps its value.
    image = image.take(low, axis) * (1 - share) + image.take(high, axis) * share
  return image
