"""From score and box maps to instances: steps 3 to 6 of section 2.1.

  top_categories   step 3: the n masks of every category
  vote             step 4: NMS over the boxes of their pixels
  masks.assign     step 5: the suppressed pixels, traced back to the image
  region_nms       step 6: one of the hypotheses that share pixels

`find` runs all but the painting at the resolution of the maps and explains
what it found; `extract` is the whole chain. All of it per image, without a
batch axis, under jit, vmap and jax.export.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from fcrn_jax import boxes as boxes_lib
from fcrn_jax.instances import masks as masks_lib
from fcrn_jax.instances.masks import top_categories
from fcrn_jax.instances.options import Hypotheses, Options
from fcrn_jax.instances.region_nms import region_nms, shared_pixels
from fcrn_jax.instances.voting import Votes, from_tiles, to_tiles, vote
from fcrn_jax.types import Array, Instances

__all__ = [
  "Hypotheses",
  "Options",
  "Votes",
  "extract",
  "find",
  "region_nms",
  "top_categories",
  "vote",
]


def find(
  probs: Float[Array, "h w c"],
  boxes: Float[Array, "h w C 4"],
  options: Options,
  image_size: tuple[int, int] | Int[Array, "2"] | None = None,
  stride: int | float = 1,
) -> Hypotheses:
  """Instance hypotheses of one image, at the resolution of its maps.

  probs: softmax scores, channel 0 the background; boxes: (y0, x0, y1, x1) of
  categories 1 ... C in pixels of an image `stride` times the maps' size, of
  which image_size (default: all) is not padding.
  """
  height, width, num_masks = *probs.shape[:2], options.num_masks
  if image_size is None:
    image_size = (height * stride, width * stride)
  scores, categories = top_categories(probs, num_masks)
  candidates = (categories > 0) & (scores >= options.score_floor)
  # From here on a flat list of `cell, rank` pairs in tiles.
  index = jnp.arange(height * width * num_masks, dtype=jnp.int32)
  index = to_tiles(index.reshape(scores.shape))
  scores, categories = to_tiles(scores), to_tiles(categories)
  candidates = to_tiles(candidates)
  cell, rank = index // num_masks, index % num_masks
  channel = cell * boxes.shape[2] + jnp.maximum(categories - 1, 0)
  own = boxes.reshape(-1, 4)[channel]

  def vote_in(level):  # a category's mask: where it is among the best
    return vote(
      scores, own, candidates & (rank <= level), options.iou_threshold,
      options.max_instances, categories, index,
    )  # fmt: skip

  levels = jnp.arange(num_masks)
  votes = jax.vmap(vote_in)(levels)
  slots = num_masks * options.max_instances
  seed = jnp.maximum(votes.keeper, 0).ravel()
  found = own[seed]
  areas = votes.num_votes.ravel()
  limit = jnp.asarray([*image_size, *image_size], found.dtype)
  visible = boxes_lib.area(jnp.clip(found, 0, limit))
  fill = areas * stride**2 / jnp.maximum(visible, 1)
  valid = votes.valid.ravel() & (fill >= options.min_fill)
  valid &= areas * stride**2 >= options.min_area
  shift = (levels * options.max_instances)[:, None]
  owner = jnp.where(votes.owner >= 0, votes.owner + shift, -1)
  owner = jnp.stack(
    [from_tiles(plane, height, width, num_masks) for plane in owner]
  )
  owner = jnp.moveaxis(owner, -1, 1)
  confidence = votes.confidence.ravel()
  kept = region_nms(
    confidence, valid, areas, shared_pixels(owner), options.region_overlap
  )
  order = jnp.argsort(-jnp.where(kept, confidence, -1), stable=True)
  order = order[: options.max_instances]
  valid = kept[order]
  place = jnp.full(slots, -1, jnp.int32)
  place = place.at[order].set(jnp.where(valid, jnp.arange(order.size), -1))

  def pick(values):
    values = values[order]
    where = valid.reshape((-1,) + (1,) * (values.ndim - 1))
    return jnp.where(where, values, 0)

  cell = cell[seed]
  return Hypotheses(
    boxes=pick(found),
    classes=pick(categories[seed]),
    scores=pick(confidence),
    valid=valid,
    truncated=votes.truncated.any() | (kept.sum() > options.max_instances),
    mask=pick(jnp.repeat(levels, options.max_instances)),
    seeds=pick(jnp.stack([cell // width, cell % width], -1)),
    num_votes=pick(areas),
    spread=pick(votes.spread.ravel()),
    fill=pick(fill),
    owners=jnp.where(owner >= 0, place[owner], -1),
  )


def extract(
  probs: Float[Array, "h w c"],
  boxes: Float[Array, "h w C 4"],
  options: Options | None = None,
  image_size: tuple[int, int] | None = None,
  stride: int | float = 1,
) -> Instances:
  """Instances of one image from its score map and its box map.

  See `find` for the maps. Masks have image_size where it is given (stride
  times the maps' size, less padding), else the size of the maps.
  """
  options = Options() if options is None else options
  if probs.shape[-1] != boxes.shape[-2] + 1:
    raise ValueError(
      f"probs has {probs.shape[-1]} channels and boxes {boxes.shape[-2]} "
      "categories; expected one channel more, the background's, at 0."
    )
  if options.masks == "full" and image_size is not None:
    probs = masks_lib.upsample(probs, image_size, stride)
    boxes = masks_lib.upsample(boxes, image_size, stride)
    stride = 1
  found = find(probs, boxes, options, image_size, stride)
  if image_size is None:
    image_size, scale = probs.shape[:2], 1
  else:
    scale = stride
  labels = masks_lib.assign(found, probs, boxes, options, image_size, scale)
  return Instances(
    masks=masks_lib.masks_of(labels, options.max_instances),
    classes=found.classes,
    scores=found.scores,
    boxes=found.boxes,
    valid=found.valid,
    truncated=found.truncated,
  )
