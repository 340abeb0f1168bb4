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

from fcrn_jax import boxes as boxes_lib
from fcrn_jax.instances.options import Hypotheses, Options
from fcrn_jax.types import Array

TILE = 64  # pixels on a CPU
LARGE_TILE = 512  # elsewhere


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
  maps: Float[Array, "h w *c"], size: tuple[int, int], stride: int | float
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


def assign(
  hypotheses: Hypotheses,
  probs: Float[Array, "h w c"],
  boxes: Float[Array, "h w C 4"],
  options: Options,
  image_size: tuple[int, int],
  stride: int | float,
) -> Int[Array, "r H W"]:
  """Labels of image pixels: see paint."""
  return paint(hypotheses, probs, boxes, options, image_size, stride).labels


@functools.partial(jax.jit, static_argnames=("image_size", "stride"))
def paint(
  hypotheses: Hypotheses,
  probs: Float[Array, "h w c"],
  boxes: Float[Array, "h w C 4"],
  options: Options,
  image_size: tuple[int, int],
  stride: int | float,
) -> Painted:
  """The hypothesis that owns each image pixel, by options.masks.

  A pixel is a candidate of its r-th best category by upsampled scores, as in
  the voting, and goes to the hypothesis of that category (found in a mask of
  at least r categories) that it agrees with best.

  Pixels depend on the cells around them and their neighbours only. So a large
  image may be painted in pieces: pass windows of the maps (and of the
  hypotheses' owners) with one more cell on every side, and drop its pixels.
  """
  run = functools.partial(
    _paint, boxes_shape=boxes.shape, size=image_size, stride=stride
  )
  # Channels between the axes: a tile is two matrix products away.
  channels = boxes.reshape(*boxes.shape[:2], -1)
  return jax.lax.platform_dependent(
    hypotheses, probs.swapaxes(1, 2), channels.swapaxes(1, 2), options,
    cpu=jax.custom_batching.sequential_vmap(
      functools.partial(run, tile=TILE)
    ),
    default=functools.partial(run, tile=LARGE_TILE),
  )  # fmt: skip


def _ceil_div(length, stride):
  if isinstance(stride, float):
    return math.ceil(length / stride)
  return -(-length // stride)  # of symbolic lengths as well


def _paint(
  hypotheses, probs, boxes, options, *, boxes_shape, size, stride, tile
):
  rows, columns = (_ceil_div(n, tile) for n in size)
  cells = boxes_shape[:2]
  # Cells that a tile reads: bilinear needs one more on either side.
  window = tile if stride == 1 else _ceil_div(tile, stride) + 2
  room = [
    _ceil_div(n * tile, stride) + window - cell
    for n, cell in zip((rows, columns), cells, strict=True)
  ]

  def pad(x, axes):
    widths = [(0, 0)] * x.ndim
    for axis, more in zip(axes, room, strict=True):
      widths[axis] = (0, more)
    return jnp.pad(x, widths)

  probs, boxes = pad(probs, (0, 2)), pad(boxes, (0, 2))
  owners = jnp.pad(
    hypotheses.owners,
    ((0, 0), (0, 0), (0, room[0]), (0, room[1])), constant_values=-1,
  )  # fmt: skip
  nearest = options.masks == "blocks"

  def one(place):
    place = [place // columns * tile, place % columns * tile]
    first, weights = zip(
      *(
        _weights(y, tile, window, stride, n, False)
        for y, n in zip(place, cells, strict=True)
      ),
      strict=True,
    )
    cut = functools.partial(_cut, first=first, window=window)
    found = _top(_resample(cut(probs, (0, 2)), weights), options.num_masks, 1)
    scores, categories = map(jnp.stack, found)
    if nearest:
      weights = [
        _weights(y, tile, window, stride, n, True)[1]
        for y, n in zip(place, cells, strict=True)
      ]
    labels = _paint_tile(
      hypotheses._replace(owners=cut(owners, (2, 3))),
      cut(probs, (0, 2)),
      cut(boxes, (0, 2)).reshape(window, *boxes_shape[2:], window),
      scores,
      categories,
      options,
      weights,
    )
    return Painted(labels, categories, scores)

  tiles = jax.lax.map(one, jnp.arange(rows * columns, dtype=jnp.int32))

  def whole(x):
    x = x.reshape(rows, columns, x.shape[1], tile, tile)
    x = x.transpose(2, 0, 3, 1, 4)
    x = x.reshape(x.shape[0], rows * tile, columns * tile)
    return x[:, : size[0], : size[1]]

  return jax.tree.map(whole, tiles)


def _cut(x, axes, first, window):
  for axis, start in zip(axes, first, strict=True):
    x = jax.lax.dynamic_slice_in_dim(x, start, window, axis)
  return x


def _weights(pixel, tile, window, stride, cells, nearest):
  """First cell of the window of a tile, and its pixels' weights of cells."""
  if stride == 1:
    return pixel, None
  if isinstance(stride, float):
    low = jnp.floor((pixel + 0.5) / stride - 0.5).astype(jnp.int32)
  else:
    low = (2 * pixel + 1 - stride) // (2 * stride)
  first = jnp.maximum(low, 0)
  # Relative to the window, so that every piece of an image computes the same.
  place = pixel - first * stride + jnp.arange(tile)
  place = (2 * place + 1) / (2 * stride)
  place = jnp.floor(place) if nearest else place - 0.5
  place = jnp.clip(place, -first, cells - 1 - first)
  return first, jnp.maximum(1 - abs(place[:, None] - jnp.arange(window)), 0)


def _resample(x, weights):
  """`y k x` of pixels from `i k j` of cells."""
  if weights[0] is None:
    return x
  exact = jax.lax.Precision.HIGHEST
  size, channels, _ = x.shape
  x = jnp.matmul(x, weights[1].T, precision=exact)
  x = jnp.matmul(weights[0], x.reshape(size, -1), precision=exact)
  return x.reshape(x.shape[0], channels, -1)


def _paint_tile(hypotheses, probs, boxes, scores, categories, options, weights):
  ranks = jnp.arange(options.num_masks)[:, None, None]
  candidate = (categories > 0) & (scores >= options.score_floor)
  present = jnp.zeros(probs.shape[1], bool).at[categories].max(candidate)
  hit = hypotheses.valid & present[hypotheses.classes]
  if options.masks in ("boxes", "votes"):
    hit &= _may_agree(hypotheses, boxes)
  else:
    owned = jnp.zeros_like(hit).at[hypotheses.owners].set(True)
    hit &= owned
  slots = jnp.arange(hit.size, dtype=jnp.int32)

  def next_hit(after):
    return jnp.where(hit & (slots > after), slots, hit.size).min()

  def agreement(j, category):
    if options.masks in ("boxes", "votes"):
      own = jax.lax.dynamic_index_in_dim(boxes, category - 1, 1, False)
      if options.masks == "votes":
        value = boxes_lib.iou(jnp.moveaxis(own, 1, -1), hypotheses.boxes[j])
        return _resample(value[:, None], weights)[:, 0]
      own = jnp.moveaxis(_resample(own, weights), 1, -1)
      return boxes_lib.iou(own, hypotheses.boxes[j])
    owned = (hypotheses.owners[hypotheses.mask[j]] == j).any(0)
    score = jax.lax.dynamic_index_in_dim(probs, category, 1, False)
    return _resample((score * owned)[:, None], weights)[:, 0]

  def add(state):
    j, best, labels = state
    category = hypotheses.classes[j]
    mine = candidate & (categories == category) & (ranks <= hypotheses.mask[j])
    value = agreement(j, category)
    better = mine & (value > best)
    best = jnp.where(better, value, best)
    return next_hit(j), best, jnp.where(better, j, labels)

  best = jnp.full(scores.shape, options.min_agreement, scores.dtype)
  labels = jnp.full(scores.shape, -1, jnp.int32)
  state = (next_hit(-1), best, labels)
  return jax.lax.while_loop(lambda s: s[0] < hit.size, add, state)[2]


def _may_agree(hypotheses, boxes):
  """Whether a hypothesis meets the hull of the boxes of its category."""
  low, high = boxes.min((0, 3)), boxes.max((0, 3))
  hull = jnp.concatenate([low[:, :2], high[:, 2:]], -1)
  hull = hull[jnp.maximum(hypotheses.classes - 1, 0)]
  own = hypotheses.boxes
  return ((own[:, :2] < hull[:, 2:]) & (hull[:, :2] < own[:, 2:])).all(-1)


def masks_of(labels: Int[Array, "r H W"], num: int) -> Bool[Array, "m H W"]:
  """One boolean mask per hypothesis from labels of pixels."""
  return (labels[None] == jnp.arange(num)[:, None, None, None]).any(1)
