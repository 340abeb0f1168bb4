"""From score and box maps to instances: steps 3 to 6 of section 2.1.

  top_categories   step 3: the n masks of every category
  vote             step 4: NMS over the boxes of their pixels
  masks.paint      step 5: the suppressed pixels, traced back to the image
  region_nms       step 6: one of the hypotheses that share pixels

`find` runs all but the painting at the resolution of the maps and explains
what it found; `extract` is the whole chain. All of it per image, without a
batch axis, under jit, vmap and jax.export.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from fcrn_jax import boxes as boxes_lib
from fcrn_jax.instances import masks as masks_lib
from fcrn_jax.instances.masks import top_categories
from fcrn_jax.instances.options import Hypotheses, Options, Size
from fcrn_jax.instances.region_nms import region_nms, shared_pixels
from fcrn_jax.instances.voting import Votes, from_tiles, to_tiles, vote
from fcrn_jax.types import Array, Instances

__all__ = [
  "Hypotheses",
  "Options",
  "Votes",
  "extract",
  "find",
  "from_tiles",
  "region_nms",
  "to_tiles",
  "top_categories",
  "vote",
]


def find(
  probs: Float[Array, "h w c"],
  boxes: Float[Array, "h w C 4"],
  options: Options,
  image_size: Size | Int[Array, "2"] | None = None,
  stride: int | float = 1,
) -> Hypotheses:
  """Instance hypotheses of one image, at the resolution of its maps.

  probs: softmax scores, channel 0 the background; boxes: (y0, x0, y1, x1) of
  categories 1 ... C in pixels of an image `stride` times the maps' size, of
  which image_size (default: all) is not padding: cells wholly beyond it have no
  vote.
  """
  if probs.shape != (*boxes.shape[:2], boxes.shape[2] + 1):
    raise ValueError(
      f"probs is {probs.shape} and boxes {boxes.shape}; expected maps of equal"
      " height and width, and one channel more in probs, the background's, at"
      " 0."
    )
  probs, boxes = _single_precision(probs, boxes)
  if image_size is None:
    image_size = tuple(n * stride for n in probs.shape[:2])
  limit = jnp.asarray([*image_size], jnp.float32)
  return _find(probs, boxes, options, limit, stride)


def _single_precision(*maps):
  """Half a precision tells neither close scores nor pixels apart."""
  return [jnp.asarray(x, jnp.float32) for x in maps]


@functools.partial(jax.jit, static_argnames="stride")
def _find(probs, boxes, options, image_size, stride) -> Hypotheses:
  height, width = probs.shape[:2]
  ballot = _ballot(probs, boxes, options, image_size, stride)
  votes = _vote_in_masks(ballot, options)
  first = jnp.arange(options.num_masks)[:, None] * votes.keeper.shape[1]
  owners = jnp.where(votes.owner >= 0, votes.owner + first, -1)
  owners = jnp.stack([
    from_tiles(owner, (height, width, options.num_masks)) for owner in owners
  ]).transpose(0, 3, 1, 2)  # fmt: skip
  all_found = _describe(ballot, votes, owners, options, image_size, stride)
  kept = region_nms(
    all_found.scores,
    all_found.valid,
    all_found.num_votes,
    shared_pixels(owners),
    options.region_overlap,
  )
  return _best(all_found._replace(valid=kept), options.max_instances)


class _Ballot(NamedTuple):
  """Candidates as a flat list in tiles: `n` pairs of a cell and a rank."""

  scores: Float[Array, "n"]
  seeds: Float[Array, "n"]  # by falling order of these, clusters form
  categories: Int[Array, "n"]
  boxes: Float[Array, "n 4"]
  candidates: Bool[Array, "n"]
  index: Int[Array, "n"]  # cell * num_masks + rank
  cells: Int[Array, "n 2"]


def _ballot(probs, boxes, options, image_size, stride) -> _Ballot:
  """Steps 1 to 3: what every cell may vote for, and the box it votes with."""
  height, width, num_masks = *probs.shape[:2], options.num_masks
  scores, categories = map(to_tiles, top_categories(probs, num_masks))
  index = jnp.arange(height * width * num_masks, dtype=jnp.int32)
  index = to_tiles(index.reshape(height, width, num_masks))
  rows, columns = (
    jnp.arange(n) * stride < image_size[axis]
    for axis, n in enumerate((height, width))
  )
  inside = jnp.broadcast_to(
    (rows[:, None] & columns)[..., None], (height, width, num_masks)
  )
  cell = index // num_masks
  channel = cell * boxes.shape[2] + jnp.maximum(categories - 1, 0)
  boxes = boxes.reshape(-1, 4)[channel]
  cells = jnp.stack([cell // width, cell % width], -1)
  seeds = scores
  if options.seeds == "centers":
    seeds = scores * boxes_lib.centerness(boxes, (cells + 0.5) * stride)
  elif options.seeds == "agreement":
    ranked = [
      from_tiles(x, (height, width, num_masks))
      for x in jnp.moveaxis(boxes, -1, 0)
    ]
    seeds = scores * to_tiles(_agreement(jnp.stack(ranked, -1)))
  return _Ballot(
    scores,
    seeds,
    categories,
    boxes,
    to_tiles(inside) & (categories > 0) & (scores >= options.score_floor),
    index,
    cells,
  )


def _agreement(boxes):
  """Mean IoU of every box of a map `h w r 4` with its eight neighbours'."""
  height, width = boxes.shape[:2]
  padded = jnp.pad(boxes, ((1, 1), (1, 1), (0, 0), (0, 0)), mode="edge")
  return sum(
    boxes_lib.iou(boxes, padded[y : y + height, x : x + width])
    for y in range(3)
    for x in range(3)
    if (y, x) != (1, 1)
  ) / 8  # fmt: skip


def _vote_in_masks(ballot, options) -> Votes:
  """Step 4 in each of the n masks, stacked."""
  rank = ballot.index % options.num_masks

  def vote_in(level):  # a category's mask: where it is among the best
    return vote(
      ballot.seeds,
      ballot.boxes,
      ballot.candidates & (rank <= level),
      options.iou_threshold,
      options.room * options.max_instances,
      ballot.categories,
      ballot.index,
      ballot.scores,
    )

  return jax.vmap(vote_in)(jnp.arange(options.num_masks))


def _describe(ballot, votes, owners, options, image_size, stride):
  """All keepers as hypotheses, those valid that are large and full enough."""
  seed = jnp.maximum(votes.keeper, 0).ravel()
  boxes, num_votes = ballot.boxes[seed], votes.num_votes.ravel()
  areas = num_votes * stride**2
  visible = jnp.clip(boxes, 0, jnp.tile(image_size, 2))
  fill = areas / jnp.maximum(boxes_lib.area(visible), 1)
  extent = jax.vmap(_extents, (0, None, None))(
    votes.owner, ballot.cells, votes.keeper.shape[1]
  )
  extent = extent.reshape(-1, 4) * stride
  extent = jnp.clip(extent, 0, jnp.tile(image_size, 2))
  extent = boxes_lib.iou(extent, visible)
  valid = votes.valid.ravel() & (areas >= options.min_area)
  valid &= extent >= options.min_extent
  valid &= votes.confidence.ravel() >= options.min_score
  return Hypotheses(
    boxes=boxes,
    classes=ballot.categories[seed],
    scores=votes.confidence.ravel(),
    valid=valid & (fill >= options.min_fill),
    truncated=votes.truncated.any(),
    level=jnp.repeat(jnp.arange(options.num_masks), votes.keeper.shape[1]),
    seeds=ballot.cells[seed],
    num_votes=num_votes,
    spread=votes.spread.ravel(),
    fill=fill,
    owners=owners,
  )


def _extents(owner, cells, slots):
  """The box, in cells, around the votes of each slot."""
  slot = jnp.where(owner >= 0, owner, slots)  # out of bounds: dropped
  low = jnp.full((slots, 2), jnp.inf).at[slot].min(cells)
  high = jnp.zeros((slots, 2)).at[slot].max(cells + 1)
  return jnp.concatenate([low, high], axis=-1)


def _best(found: Hypotheses, number: int) -> Hypotheses:
  """The `number` best valid ones by falling score, the rest zero."""
  order = jnp.argsort(-jnp.where(found.valid, found.scores, -jnp.inf))
  order = order[:number]
  valid = found.valid[order]
  place = jnp.where(valid, jnp.arange(number), -1)
  place = jnp.full(found.valid.shape, -1).at[order].set(place)

  def pick(values):
    where = valid.reshape((-1,) + (1,) * (values.ndim - 1))
    return jnp.where(where, values[order], jnp.zeros((), values.dtype))

  per_slot = found._asdict()
  owners = per_slot.pop("owners")
  truncated = per_slot.pop("truncated") | (found.valid.sum() > number)
  return Hypotheses(
    **{name: pick(values) for name, values in per_slot.items()},
    truncated=truncated,
    owners=jnp.where(owners >= 0, place[owners], -1),
  )


@functools.partial(jax.jit, static_argnames=("image_size", "stride"))
def extract(
  probs: Float[Array, "h w c"],
  boxes: Float[Array, "h w C 4"],
  options: Options | None = None,
  image_size: Size | None = None,
  stride: int | float = 1,
) -> Instances:
  """Instances of one image from its score map and its box map.

  See `find` for the maps. Masks have image_size where it is given (stride
  times the maps' size, less padding), else the size of the maps.
  """
  options = Options() if options is None else options
  probs, boxes = _single_precision(probs, boxes)
  if options.masks == "full" and image_size is not None:
    probs = masks_lib.upsample(probs, image_size, stride)
    boxes = masks_lib.upsample(boxes, image_size, stride)
    stride = 1
  found = find(probs, boxes, options, image_size, stride)
  if image_size is None:
    image_size, scale = probs.shape[:2], 1
  else:
    scale = stride
  labels = masks_lib.paint(
    found, probs, boxes, options, image_size, scale
  ).labels
  # Without those that others left no pixel to.
  number = options.max_instances
  owner = jnp.where(labels >= 0, labels, number)  # out of bounds: dropped
  kept = found.valid & jnp.zeros(number, bool).at[owner].set(True, mode="drop")
  order = jnp.argsort(~kept)
  slots = jnp.where(kept[order], order, -2)  # a pixel of nobody's has -1
  found = _best(found._replace(valid=kept), number)
  return Instances(
    masks=masks_lib.masks_of(labels, slots),
    classes=found.classes,
    scores=found.scores,
    boxes=found.boxes,
    valid=found.valid,
    truncated=found.truncated,
  )
