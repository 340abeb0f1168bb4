"""Step 4 of the paper's pipeline: pixels vote for boxes (section 2.1).

Greedy non-maximum suppression over the boxes that the pixels predict, which
also records who suppressed whom: the pixels that a keeper suppressed are its
cluster (step 5) and their mean score is its confidence.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from fcrn_jax import boxes as boxes_lib
from fcrn_jax.types import Array


class Votes(NamedTuple):
  """Keepers in the order they were found, that is by falling seed score.

  `owner` is the slot of the keeper that suppressed a candidate (a keeper
  owns itself), -1 for what is no candidate or was left over at `truncated`.
  """

  keeper: Int[Array, "m"]  # index of the seed, -1 = empty slot
  owner: Int[Array, "n"]
  confidence: Float[Array, "m"]  # mean score of the cluster
  valid: Bool[Array, "m"]
  truncated: Bool[Array, ""]  # candidates were left when slots ran out
  num_votes: Int[Array, "m"]  # size of the cluster
  spread: Float[Array, "m"]  # RMS distance of the voters' box centres, pixels


def vote(
  scores: Float[Array, "n"],
  boxes: Float[Array, "n 4"],
  candidates: Bool[Array, "n"],
  iou_threshold: float | Array = 0.5,
  max_instances: int = 100,
  groups: Int[Array, "n"] | None = None,
) -> Votes:
  """Greedy NMS of candidates by score; every candidate learns its keeper.

  The best remaining candidate (ties: the lowest index) becomes a keeper and
  takes all remaining candidates of its group whose boxes overlap its own with
  IoU > iou_threshold (strictly, as torchvision does), itself in any case.
  Candidates with a NaN score are ignored.
  """
  if groups is None:
    groups = jnp.zeros(scores.shape, jnp.int32)
  index = jnp.arange(scores.shape[0])
  centers = (boxes[:, :2] + boxes[:, 2:]) / 2

  def more(state):
    left, slot = state[:2]
    return (slot < max_instances) & (left.max() > -jnp.inf)

  def keep(state):
    left, slot, keeper, owner, total, votes, square = state
    seed = jnp.argmax(left)
    best = scores[seed]
    taken = boxes_lib.iou(boxes, boxes[seed]) > iou_threshold
    taken = (taken & (groups == groups[seed])) | (index == seed)
    taken &= left > -jnp.inf
    distance = ((centers - centers[seed]) ** 2).sum(-1)
    return (
      jnp.where(taken, -jnp.inf, left),
      slot + 1,
      keeper.at[slot].set(seed),
      jnp.where(taken, slot, owner),
      total.at[slot].set(jnp.where(taken, scores - best, 0).sum()),
      votes.at[slot].set(taken.sum()),
      square.at[slot].set(jnp.where(taken, distance, 0).sum()),
    )

  left = jnp.where(candidates & (scores > -jnp.inf), scores, -jnp.inf)
  empty = jnp.zeros(max_instances, scores.dtype)
  state = (
    left,
    jnp.int32(0),
    jnp.full(max_instances, -1, jnp.int32),
    jnp.full(scores.shape, -1, jnp.int32),
    empty,
    jnp.zeros(max_instances, jnp.int32),
    empty,
  )
  left, _, keeper, owner, total, votes, square = jax.lax.while_loop(
    more, keep, state
  )
  count = jnp.maximum(votes, 1)
  return Votes(
    keeper=keeper,
    owner=owner,
    # measured from the seed's score: exact where a cluster's scores are equal
    confidence=jnp.where(keeper >= 0, scores[keeper] + total / count, 0),
    valid=keeper >= 0,
    truncated=left.max() > -jnp.inf,
    num_votes=votes,
    spread=jnp.sqrt(square / count),
  )
