"""Step 4 of the paper's pipeline: pixels vote for boxes (section 2.1).

Greedy non-maximum suppression over the boxes that the pixels predict, which
also records who suppressed whom: the pixels that a keeper suppressed are its
cluster (step 5) and their mean score is its confidence.

Two programs with the same result. On CPUs the candidates lie in chunks; each
knows its best remaining candidate and the range of its boxes' centres, so
that a keeper reads only the chunks it can reach. Elsewhere, passes over all
candidates that find many keepers each, and that a batch shares. Both need
memory linear in the candidates.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from fcrn_jax.types import Array

TILE = 32  # cells; of 16, 32 and 64 the best on maps of 63² to 2048²
CHUNK = TILE * TILE
_PARTS = 128  # of 32, 64, 128 and 256; more would hardly save passes
_LAST = np.iinfo(np.int32).max


class Votes(NamedTuple):
  """Keepers in the order they were found, that is by falling seed score.

  `owner` is the slot of the keeper that suppressed a candidate (a keeper
  owns itself), -1 for what is no candidate or was left over at `truncated`.
  """

  keeper: Int[Array, "m"]  # index of the seed, -1 = empty slot
  owner: Int[Array, "n"]
  confidence: Float[Array, "m"]  # mean score of the cluster
  valid: Bool[Array, "m"]
  truncated: Bool[Array, ""]  # candidates were left when the slots ran out
  num_votes: Int[Array, "m"]  # size of the cluster
  spread: Float[Array, "m"]  # RMS distance of its box centres from the seed's


@functools.partial(jax.jit, static_argnames="max_instances")
def vote(
  scores: Float[Array, "n"],
  boxes: Float[Array, "n 4"],
  candidates: Bool[Array, "n"],
  iou_threshold: float | Array = 0.5,
  max_instances: int = 100,
  groups: Int[Array, "n"] | None = None,
  priority: Int[Array, "n"] | None = None,
  values: Float[Array, "n"] | None = None,
) -> Votes:
  """Greedy NMS of candidates by score; every candidate learns its keeper.

  The best remaining candidate (ties: the lowest index, or the lowest of the
  distinct `priority` where given) becomes a keeper and takes all remaining
  candidates of its group whose boxes overlap its own with IoU > iou_threshold
  (strictly above, as torchvision's nms), itself in any case. Candidates
  without a finite score are ignored. A cluster's confidence is its mean of
  `values`, by default the scores. Quick where neighbours in the array are
  neighbours in the image, see to_tiles.
  """
  # Areas overflow half a precision.
  scores, boxes = (jnp.asarray(x, jnp.float32) for x in (scores, boxes))
  count = scores.shape[0]
  if isinstance(count, int) and count == 0:
    nothing = jnp.zeros(max_instances)
    return Votes(
      keeper=jnp.full(max_instances, -1, jnp.int32),
      owner=jnp.zeros(0, jnp.int32),
      confidence=nothing,
      valid=nothing > 0,
      truncated=jnp.zeros((), bool),
      num_votes=nothing.astype(jnp.int32),
      spread=nothing,
    )
  if groups is None:
    groups = jnp.zeros(count, jnp.int32)
  if priority is None:
    priority = jnp.arange(count, dtype=jnp.int32)
  scores = jnp.where(candidates & jnp.isfinite(scores), scores, -jnp.inf)
  corners = tuple(boxes[:, i] for i in range(4))
  return jax.lax.platform_dependent(
    scores, corners, groups, priority, iou_threshold,
    scores if values is None else values,
    # One image after the other on a CPU, where a batch of scatters is slow.
    cpu=jax.custom_batching.sequential_vmap(
      functools.partial(_vote, _vote_by_chunks, max_instances)
    ),
    default=functools.partial(_vote, _vote_in_passes, max_instances),
  )  # fmt: skip


def _vote(program, slots, scores, corners, groups, priority, threshold, values):
  """Votes with the statistics of the clusters."""
  keeper, owner, truncated = program(
    scores, corners, groups, priority, threshold, slots
  )
  seed, leader = jnp.maximum(keeper, 0), jnp.maximum(owner, 0)
  slot = jnp.where(owner >= 0, owner, slots)  # out of bounds: dropped
  num_votes = jnp.zeros(slots, jnp.int32).at[slot].add(1)

  def mean_of(values):
    total = jnp.zeros(slots, values.dtype).at[slot].add(values)
    return total / jnp.maximum(num_votes, 1)

  def from_seed(values):  # exact where the values of a cluster are equal
    return values - values[seed][leader]

  y, x = ((corners[i] + corners[i + 2]) / 2 for i in range(2))
  square = mean_of(from_seed(y) ** 2 + from_seed(x) ** 2)
  valid = keeper >= 0
  confidence = values[seed] + mean_of(from_seed(values))
  return Votes(
    keeper=keeper,
    owner=owner,
    confidence=jnp.where(valid, confidence, 0),
    valid=valid,
    truncated=truncated,
    num_votes=num_votes,
    spread=jnp.sqrt(square),
  )


def to_tiles(x: Shaped[Array, "h w r"]) -> Shaped[Array, "n"]:
  """Flattens a map in squares, so that a chunk is a compact part of it.

  Edges are padded with zeros; the order is tile row, tile column, r, y, x.
  """
  height, width, ranks = x.shape
  rows, columns = (-(-size // TILE) for size in (height, width))
  padding = (0, rows * TILE - height), (0, columns * TILE - width), (0, 0)
  x = jnp.pad(x, padding).reshape(rows, TILE, columns, TILE, ranks)
  return x.transpose(0, 2, 4, 1, 3).reshape(rows * columns * ranks * CHUNK)


def from_tiles(
  x: Shaped[Array, "n"], shape: tuple[Any, Any, int]
) -> Shaped[Array, "h w r"]:
  """The map of that shape that to_tiles flattened."""
  height, width, ranks = shape
  rows, columns = (-(-size // TILE) for size in (height, width))
  x = x.reshape(rows, columns, ranks, TILE, TILE).transpose(0, 3, 1, 4, 2)
  return x.reshape(rows * TILE, columns * TILE, ranks)[:height, :width]


def overlap(corners, box):
  """boxes.iou with each corner in an array of its own, for speed."""
  y0, x0, y1, x1 = corners
  height = jnp.maximum(jnp.minimum(y1, box[2]) - jnp.maximum(y0, box[0]), 0)
  width = jnp.maximum(jnp.minimum(x1, box[3]) - jnp.maximum(x0, box[1]), 0)
  area = jnp.maximum(y1 - y0, 0) * jnp.maximum(x1 - x0, 0)
  own = jnp.maximum(box[2] - box[0], 0) * jnp.maximum(box[3] - box[1], 0)
  shared = height * width
  # Not area + own: where that is fused with a product it is another number for
  # the two boxes exchanged, and two boxes could each suppress the other.
  both = jnp.minimum(area, own) + jnp.maximum(area, own)
  return shared / jnp.maximum(both - shared, 1e-9)


def _best(scores, priority):
  """Of the last axis: the highest score and the lowest priority that has it."""
  best = scores.max(-1)
  ties = scores == best[..., None]
  return best, jnp.where(ties, priority, _LAST).min(-1)


def _first(mask):
  """Index of the first True; argmax is several times as slow on a CPU."""
  index = jnp.arange(mask.shape[0], dtype=jnp.int32)
  return jnp.where(mask, index, _LAST).min()


def _vote_in_passes(scores, corners, groups, priority, threshold, slots):
  """Keepers, owners and whether some are left; candidates: score above -inf.

  A candidate is a keeper if no better one that is left overlaps it, whatever
  the order in which keepers are found. So each pass looks at the best one left
  in every part of the list and keeps those that are not beaten: 5 passes where
  there are 127 keepers, 61 where there are 5,296 (`--what=voting`); keepers of
  one part take a pass each. A candidate's owner is the best keeper found so far
  that overlaps it.
  """
  count = scores.shape[0]
  length = -(-count // _PARTS)
  live = scores > -jnp.inf
  order = jnp.lexsort((priority, -scores)).astype(jnp.int32)
  places = jnp.arange(count, dtype=jnp.int32)
  place = jnp.zeros(count, jnp.int32).at[order].set(places)

  def left_of(owner):
    return jnp.where(live & (owner == _LAST), place, _LAST)

  def more(owner):  # until nothing is left that one of the slots may get
    first = left_of(owner).min()
    ahead = ((owner == place) & (place < first)).sum()
    return (first < _LAST) & (ahead < slots)

  def sweep(owner):
    left = left_of(owner)
    padding = 0, _PARTS * length - count
    seed = jnp.pad(left, padding, constant_values=_LAST)
    seed = seed.reshape(_PARTS, length).min(-1)[:, None]
    index = order[jnp.minimum(seed, count - 1)]
    taken = overlap(corners, [c[index] for c in corners]) > threshold
    taken &= live & (groups == groups[index]) & (seed < _LAST)
    taken |= place == seed
    beaten = (taken & (left < seed)).any(1, keepdims=True)
    return jnp.minimum(owner, jnp.where(taken & ~beaten, seed, _LAST).min(0))

  # The place of the owner; a keeper's own.
  owner = jax.lax.while_loop(more, sweep, jnp.full(count, _LAST, jnp.int32))
  is_keeper = (owner == place)[order]
  slot = jnp.where(is_keeper, jnp.cumsum(is_keeper, dtype=jnp.int32) - 1, slots)
  keeper = jnp.full(slots, -1, jnp.int32).at[slot].set(order, mode="drop")
  owner = jnp.where(owner < _LAST, slot[jnp.minimum(owner, count - 1)], slots)
  owner = jnp.where(owner < slots, owner, -1)
  return keeper, owner, (live & (owner < 0)).any()


def _vote_by_chunks(scores, corners, groups, priority, threshold, slots):
  """The same, reading only the chunks that a keeper can reach."""
  count = scores.shape[0]
  num_chunks = -(-count // CHUNK)

  def chunked(x, fill):
    x = jnp.pad(x, (0, num_chunks * CHUNK - count), constant_values=fill)
    return x.reshape(num_chunks, CHUNK)

  scores, groups = chunked(scores, -jnp.inf), chunked(groups, -1)
  corners = [chunked(c, 0) for c in corners]
  priority = chunked(priority, _LAST)
  ranges = _ranges(corners, groups, scores > -jnp.inf)

  def more(state):
    slot, _, best, _, _ = state
    return (slot < slots) & (best.max() > -jnp.inf)

  def keep(state):
    slot, owner, best, first, keeper = state
    _, seed = _best(best, first)
    home = _first((best > -jnp.inf) & (first == seed))
    is_seed = (scores[home] > -jnp.inf) & (priority[home] == seed)
    lane = _first(is_seed)
    box = [c[home, lane] for c in corners]
    group = groups[home, lane]
    hit = _within_reach(ranges, box, group, threshold) & (best > -jnp.inf)
    hit |= jnp.arange(num_chunks) == home

    def take(owner, scores, corners, groups, priority):
      taken = overlap(corners, box) > threshold
      taken = (taken & (groups == group)) | (priority == seed)
      owner = jnp.where(taken & (owner < 0), slot, owner)
      left = jnp.where(owner < 0, scores, -jnp.inf)
      return owner, *_best(left, priority)

    rows = (scores, corners, groups, priority)
    owner, best, first = _update(take, hit, (owner, best, first), rows)
    keeper = keeper.at[slot].set(home * CHUNK + lane)
    return slot + 1, owner, best, first, keeper

  owner = jnp.full(scores.shape, -1, jnp.int32)
  keeper = jnp.full(slots, -1, jnp.int32)
  state = (jnp.int32(0), owner, *_best(scores, priority), keeper)
  _, owner, best, _, keeper = jax.lax.while_loop(more, keep, state)
  owner = jnp.where(scores > -jnp.inf, owner, -1).reshape(-1)[:count]
  return keeper, owner, best.max() > -jnp.inf


def _update(take, hit, state, rows):
  """Replaces each hit row of state = (owner, ...) by take(owner, *rows)."""
  num_chunks = hit.shape[0]
  chunks = jnp.arange(num_chunks, dtype=jnp.int32)

  def next_hit(after):
    return jnp.where(hit & (chunks > after), chunks, num_chunks).min()

  def step(carry):
    chunk, state = carry
    at = functools.partial(
      jax.lax.dynamic_index_in_dim, index=chunk, keepdims=False
    )
    # Always true; the branch keeps XLA from fusing the read of the owners
    # into several loops, for which it would copy all of them every time.
    new = jax.lax.cond(
      at(hit),
      lambda owner: take(owner, *jax.tree.map(at, rows)),
      lambda owner: (owner, *map(at, state[1:])),
      at(state[0]),
    )
    put = functools.partial(
      jax.lax.dynamic_update_index_in_dim, index=chunk, axis=0
    )
    return next_hit(chunk), tuple(map(put, state, new))

  carry = (next_hit(-1), state)
  return jax.lax.while_loop(lambda c: c[0] < num_chunks, step, carry)[1]


def _ranges(corners, groups, live):
  """Lowest and highest doubled centre (y, x) and group of chunks' candidates.

  A chunk without candidates has an empty range, infinity to -infinity.
  """
  y0, x0, y1, x1 = corners
  values = (y0 + y1, x0 + x1, groups.astype(y0.dtype))
  return [
    (
      jnp.where(live, value, jnp.inf).min(-1),
      jnp.where(live, value, -jnp.inf).max(-1),
    )
    for value in values
  ]


def _within_reach(ranges, box, group, threshold):
  """Which chunks may hold a box of the group of IoU > threshold with `box`.

  With height h of the box, IoU > t implies that the centres' distance in y is
  below h (1 - t) / (2 t): the IoU of the two intervals bounds that of the
  boxes, and the other's height is below h / t. Likewise in x. Some room is
  left for rounding, and the tests are written so that a NaN is a hit.
  """
  factor = 1.001 * (1 - threshold) / threshold
  low, high = ranges[2]
  hit = ~((low > group) | (high < group))
  for axis, (low, high) in enumerate(ranges[:2]):
    start, end = box[axis], box[axis + 2]
    reach = factor * (end - start) + 1e-5 * (abs(start) + abs(end))
    hit &= ~((low > start + end + reach) | (high < start + end - reach))
  return hit
