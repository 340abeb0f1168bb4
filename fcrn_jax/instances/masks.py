"""Step 5 of the paper's pipeline: from clusters of cells to masks of pixels.

Works tile by tile, so that nothing of image size exists but the result, and
a tile looks only at the hypotheses that can own a pixel of it.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from fcrn_jax.instances.options import Hypotheses, Options, Size
from fcrn_jax.instances.voting import overlap
from fcrn_jax.types import Array

TILE, TURN = 64, 1  # on a CPU: pixels; hypotheses looked at together
LARGE_TILE, LONG_TURN = 512, 16  # elsewhere


class Painted(NamedTuple):
  """What every pixel is and belongs to, for its `r` best categories."""

  labels: Int[Array, "r H W"]  # index of the hypothesis, -1 = none
  categories: Int[Array, "r H W"]
  scores: Float[Array, "r H W"]  # of those categories


def top_categories(
  probs: Float[Array, "*hw c"], num: int
) -> tuple[Float[Array, "*hw r"], Int[Array, "*hw r"]]:
  """Scores and categories of a pixel's `num` best, ties: lower category.

  Category c is in the paper's k-th mask where it is among the first k.
  """
  scores, categories = _top(probs, num, axis=-1)
  return jnp.stack(scores, -1), jnp.stack(categories, -1)


def _top(probs, num, axis):
  """Lists of the best, second best ... along an axis, without it."""
  scores, categories = [], []
  shape = [1] * probs.ndim
  shape[axis] = -1
  index = jnp.arange(probs.shape[axis]).reshape(shape)
  for _ in range(num):
    best = jnp.argmax(probs, axis=axis).astype(jnp.int32)
    scores.append(probs.max(axis))
    categories.append(best)
    probs = jnp.where(index == jnp.expand_dims(best, axis), -jnp.inf, probs)
  return scores, categories


def upsample(
  maps: Float[Array, "h w *c"], size: Size, stride: int | float
) -> Float[Array, "H W *c"]:
  """Half-pixel bilinear: cell (i, j) stands for ((i + .5) s, (j + .5) s)."""
  if stride == 1:
    return maps[: size[0], : size[1]]
  for axis, length in enumerate(size):
    place = (jnp.arange(length) + 0.5) / stride - 0.5
    low = jnp.floor(place).astype(jnp.int32)
    share = (place - low).reshape((-1,) + (1,) * (maps.ndim - 1))
    if axis:
      share = share.swapaxes(0, 1)
    last = maps.shape[axis] - 1
    below = jnp.take(maps, jnp.clip(low, 0, last), axis=axis)
    above = jnp.take(maps, jnp.clip(low + 1, 0, last), axis=axis)
    maps = below * (1 - share) + above * share
  return maps


@functools.partial(jax.jit, static_argnames=("image_size", "stride"))
def paint(
  hypotheses: Hypotheses,
  probs: Float[Array, "h w c"],
  boxes: Float[Array, "h w C 4"],
  options: Options,
  image_size: Size,
  stride: int | float,
) -> Painted:
  """The hypothesis that owns each image pixel, by options.masks.

  A pixel is a candidate of its r-th best category by upsampled scores, as in
  the voting, and goes to the hypothesis of that category (found in a mask of
  at least r categories) that it agrees with best; ties: the better one. For
  "boxes", agreement is the IoU of a cell's box with the hypothesis's,
  interpolated between cells: on nuclei as good as the IoU of interpolated
  boxes (0.653 against 0.655 of TP/(TP+FP+FN) at 0.5) in half the time.

  Pixels depend on their cell and its neighbours only. So a large image may be
  painted in pieces: pass windows of the maps (and of the hypotheses' owners)
  with one more cell on every side, and drop its pixels.
  """
  run = functools.partial(_paint, size=image_size, stride=stride)
  return jax.lax.platform_dependent(
    hypotheses, probs, boxes, options,
    cpu=jax.custom_batching.sequential_vmap(
      functools.partial(run, tile=TILE, turn=TURN)
    ),
    default=functools.partial(run, tile=LARGE_TILE, turn=LONG_TURN),
  )  # fmt: skip


def _paint(hypotheses, probs, boxes, options, *, size, stride, tile, turn):
  # Cells that a tile reads: interpolation needs one more on either side.
  window = tile if stride == 1 else _ceil_div(tile, stride) + 3
  cells = probs.shape[:2]
  room = [0 if _surely(lambda n=n: n >= window) else window for n in cells]
  # A weight of 0 does not hide what is not finite.
  probs, boxes = (
    _pad(jnp.where(jnp.isfinite(x), x, 0), room, (0, 1)) for x in (probs, boxes)
  )
  owners = _pad(hypotheses.owners, room, (2, 3), -1)
  rows, columns = (_ceil_div(n, tile) for n in size)

  def one(index, canvas):
    start = index // columns * tile, index % columns * tile
    axes = [
      _Axis(first, tile, window, stride, n, n + more)
      for first, n, more in zip(start, cells, room, strict=True)
    ]
    tile_probs = _cut(probs, axes, (0, 1))
    scores, categories = _top(
      _interpolate(tile_probs, axes), options.num_masks, 1
    )
    scores, categories = jnp.stack(scores), jnp.stack(categories)
    labels = _paint_tile(
      hypotheses, tile_probs, boxes, _cut(owners, axes, (2, 3)), scores,
      categories, options, axes, turn,
    )  # fmt: skip
    return jax.tree.map(
      lambda whole, part: jax.lax.dynamic_update_slice(
        whole, part, (0, *start)
      ),
      canvas,
      Painted(labels, categories, scores),
    )

  shape = options.num_masks, rows * tile, columns * tile
  ints = jnp.zeros(shape, jnp.int32)
  canvas = Painted(ints, ints, jnp.zeros(shape, probs.dtype))
  canvas = jax.lax.fori_loop(0, rows * columns, one, canvas)
  return jax.tree.map(lambda x: x[:, : size[0], : size[1]], canvas)


def _ceil_div(length, stride):
  if isinstance(stride, float):
    return math.ceil(length / stride)
  return -(-length // stride)  # of symbolic lengths as well


def _surely(comparison):
  """False for sizes that are symbolic, of which it is not known."""
  try:
    return bool(comparison())
  except jax.errors.InconclusiveDimensionOperation:
    return False


def _pad(x, room, axes, fill=0):
  widths = [(0, 0)] * x.ndim
  for axis, more in zip(axes, room, strict=True):
    widths[axis] = (0, more)
  return jnp.pad(x, widths, constant_values=fill)


class _Axis:
  """Where the pixels of a tile lie among the cells of its window, on an axis.

  first: the window's first cell. Of each pixel, `low` is the cell before its
  point, `share` the weight of the next one, `home` the cell that covers it.
  Whole strides are computed in integers, so that every piece of an image
  interpolates alike.
  """

  def __init__(self, pixel, tile, window, stride, cells, room):
    pixel = pixel + jnp.arange(tile)
    if isinstance(stride, float):
      place = (pixel + 0.5) / stride - 0.5
      low = jnp.floor(place).astype(jnp.int32)
      share, home = place - low, jnp.floor((pixel + 0.5) / stride)
    else:
      half = 2 * pixel + 1 - stride
      low, home = half // (2 * stride), pixel // stride
      share = half % (2 * stride) / (2 * stride)
    beyond = (low < 0) | (low >= cells - 1)
    self.exact = stride == 1
    self.window = window
    self.first = jnp.clip(low[0], 0, room - window)
    self.low = jnp.clip(low, 0, cells - 1) - self.first
    self.share = jnp.where(beyond, 0, share).astype(jnp.float32)
    home = jnp.clip(home, 0, cells - 1).astype(jnp.int32)
    self.home = home - self.first

  @property
  def weights(self):
    """`pixel cell`: the weight of each cell of the window."""
    cell = jnp.arange(self.window)
    low, share = self.low[:, None], self.share[:, None]
    return jnp.where(
      cell == low, 1 - share, jnp.where(cell == low + 1, share, 0)
    )


def _cut(x, axes, dims):
  for axis, dim in zip(axes, dims, strict=True):
    x = jax.lax.dynamic_slice_in_dim(x, axis.first, axis.window, dim)
  return x


def _interpolate(x, axes):
  """`y k x` of a tile's pixels from `i j k` of its window's cells."""
  rows, columns = axes
  x = x.swapaxes(1, 2)
  if rows.exact:
    return x[rows.low][:, :, columns.low]
  exact = jax.lax.Precision.HIGHEST
  window, channels, _ = x.shape
  x = jnp.matmul(x, columns.weights.T, precision=exact)
  x = jnp.matmul(rows.weights, x.reshape(window, -1), precision=exact)
  return x.reshape(x.shape[0], channels, -1)


def _paint_tile(
  hypotheses, probs, boxes, owners, scores, categories, options, axes, turn
):
  """Labels `r y x` of one tile; `boxes` are all, the rest is the tile's.

  `turn` of the hypotheses that may own a pixel are compared at a time.
  """
  by_boxes = options.masks == "boxes"
  ranks = jnp.arange(options.num_masks)[:, None, None]
  candidate = (categories > 0) & (scores >= options.score_floor)
  present = jnp.zeros(probs.shape[-1], bool).at[categories].max(candidate)
  hit = hypotheses.valid & present[hypotheses.classes]
  slots = jnp.arange(hit.size, dtype=jnp.int32)

  def boxes_of(category):
    own = _cut(boxes, axes, (0, 1))
    own = jax.lax.dynamic_index_in_dim(own, category - 1, 2, False)
    return tuple(own[..., i] for i in range(4))

  if by_boxes:
    hit &= _may_agree(hypotheses, present, boxes_of)
  else:
    hit &= jnp.zeros(hit.size + 1, bool).at[owners].set(True)[:-1]

  def agreement(j, category):
    if by_boxes:
      value = overlap(boxes_of(category), hypotheses.boxes[j])
      return _interpolate(value[:, :, None], axes)[:, 0]
    owned = (owners[hypotheses.level[j]] == j).any(0)
    value = owned * jax.lax.dynamic_index_in_dim(probs, category, 2, False)
    if options.masks == "blocks":
      return value[axes[0].home][:, axes[1].home]
    return _interpolate(value[:, :, None], axes)[:, 0]

  def claim(j):
    """Its agreement with the pixels it may own, -inf elsewhere."""
    category = hypotheses.classes[j]
    mine = candidate & (categories == category) & (ranks <= hypotheses.level[j])
    value = agreement(j, category)
    mine &= (j < hit.size) & (value > -jnp.inf)  # neither padding nor NaN
    return jnp.where(mine, value, -jnp.inf)

  def add(state):
    first, best, labels = state
    some = jax.lax.dynamic_slice(queue, (first,), (turn,))
    claims = jax.vmap(claim)(some)
    top = claims.max(0)
    labels = jnp.where(top > best, some[claims.argmax(0)], labels)
    return first + turn, jnp.maximum(best, top), labels

  best = jnp.full(scores.shape, options.min_agreement, scores.dtype)
  labels = jnp.full(scores.shape, -1, jnp.int32)
  queue = jnp.sort(jnp.where(hit, slots, hit.size))
  queue = jnp.pad(queue, (0, turn), constant_values=hit.size)
  return jax.lax.while_loop(
    lambda state: queue[state[0]] < hit.size, add, (0, best, labels)
  )[2]


def _may_agree(hypotheses, present, boxes_of):
  """Which hypotheses meet the hull of the tile's boxes of their category."""
  index = jnp.arange(present.size, dtype=jnp.int32)

  def next_present(after):
    return jnp.where(present & (index > after), index, present.size).min()

  def add(state):
    category, hulls = state
    y0, x0, y1, x1 = boxes_of(category)
    hull = jnp.stack([y0.min(), x0.min(), y1.max(), x1.max()])
    return next_present(category), hulls.at[category].set(hull)

  hulls = jnp.zeros((present.size, 4), hypotheses.boxes.dtype)
  state = (next_present(0), hulls)
  _, hulls = jax.lax.while_loop(lambda s: s[0] < present.size, add, state)
  hull, own = hulls[hypotheses.classes], hypotheses.boxes
  return ((own[:, :2] < hull[:, 2:]) & (hull[:, :2] < own[:, 2:])).all(-1)


def masks_of(
  labels: Int[Array, "r H W"], slots: Int[Array, "m"]
) -> Bool[Array, "m H W"]:
  """One boolean mask for each of these hypotheses from labels of pixels."""
  return (labels[None] == slots[:, None, None, None]).any(1)
