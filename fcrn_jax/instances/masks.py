"""Step 5 of the paper's pipeline: from clusters of cells to masks of pixels."""

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from fcrn_jax import boxes as boxes_lib
from fcrn_jax.types import Array

MODES = ("boxes", "scores", "blocks", "full")


def top_categories(
  probs: Float[Array, "*hw c"], num: int
) -> tuple[Float[Array, "*hw r"], Int[Array, "*hw r"]]:
  """Scores and categories of a pixel's `num` best, ties: lower category.

  Category c is in the paper's k-th mask where it is among the first k.
  """
  scores, categories = [], []
  index = jnp.arange(probs.shape[-1])
  for _ in range(num):
    best = jnp.argmax(probs, axis=-1).astype(jnp.int32)
    scores.append(probs.max(-1))
    categories.append(best)
    probs = jnp.where(index == best[..., None], -jnp.inf, probs)
  return jnp.stack(scores, -1), jnp.stack(categories, -1)


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
  hypotheses,
  probs: Float[Array, "h w c"],
  boxes: Float[Array, "h w C 4"],
  options,
  image_size: tuple[int, int],
  stride: int | float,
) -> Int[Array, "r H W"]:
  """Labels of image pixels: the hypothesis of its r-th best category, or -1."""
  scores, categories = top_categories(
    upsample(probs, image_size, stride), options.num_masks
  )
  candidate = (categories > 0) & (scores >= options.score_floor)
  rank = jnp.arange(options.num_masks)
  floor = jnp.full(scores.shape, options.min_agreement)

  def add(j, state):
    best, label = state
    category = hypotheses.classes[j]
    mine = candidate & (categories == category) & (rank <= hypotheses.mask[j])
    mine &= hypotheses.valid[j]
    if options.masks == "boxes":
      own = jnp.take(boxes, jnp.maximum(category - 1, 0), axis=2)
      agreement = boxes_lib.iou(
        upsample(own, image_size, stride), hypotheses.boxes[j]
      )
    else:
      owned = (hypotheses.owners == j).any((0, 1))
      score = jnp.take(probs, category, axis=2) * owned
      if options.masks == "scores":
        agreement = upsample(score, image_size, stride)
      else:
        agreement = jnp.repeat(jnp.repeat(score, stride, 0), stride, 1)
        agreement = agreement[: image_size[0], : image_size[1]]
    agreement = agreement[..., None]
    better = mine & (agreement > best)
    return jnp.where(better, agreement, best), jnp.where(better, j, label)

  state = (floor, jnp.full(scores.shape, -1, jnp.int32))
  _, label = jax.lax.fori_loop(0, hypotheses.valid.shape[0], add, state)
  return jnp.moveaxis(label, -1, 0)


def masks_of(labels: Int[Array, "r H W"], num: int) -> Bool[Array, "m H W"]:
  """One boolean mask per hypothesis from labels of pixels."""
  return (labels[None] == jnp.arange(num)[:, None, None, None]).any(1)
