"""Step 6 of the paper's pipeline: region-based NMS between the n masks.

Clusters of one mask never overlap; those of the n nested masks of a category
do. The rule is that of SDS (Hariharan et al. 2014): in falling order of score
a hypothesis is dropped if it shares a pixel with a kept one.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from fcrn_jax.types import Array


def shared_pixels(owners: Int[Array, "k r *hw"]) -> Int[Array, "2 p"]:
  """Pairs of hypotheses that own the same pixel in two of the n masks.

  `owners[k, r]` is the hypothesis of mask k that owns the pixel's r-th best
  category, -1 for none. One column per pixel and pair of masks, -1 where
  there is no pair.
  """
  num_masks = owners.shape[0]
  pairs = [
    jnp.stack([owners[a, r].ravel(), owners[b, r].ravel()])
    for b in range(num_masks)
    for a in range(b)
    for r in range(a + 1)  # mask a holds the a + 1 best categories
  ]
  if not pairs:
    return jnp.zeros((2, 0), jnp.int32)
  pairs = jnp.concatenate(pairs, axis=1)
  return jnp.where((pairs >= 0).all(0), pairs, -1)


@jax.jit
def region_nms(
  scores: Float[Array, "m"],
  valid: Bool[Array, "m"],
  areas: Int[Array, "m"],
  pairs: Int[Array, "2 p"],
  region_overlap: float | Array = 0.0,
) -> Bool[Array, "m"]:
  """Which hypotheses stay: those that no better kept one overlaps.

  Two overlap if the IoU of their pixels is above region_overlap; 0 is the
  rule of SDS, any shared pixel. Better: higher score, ties lower index.
  Linear in pairs and hypotheses: every undecided hypothesis looks at its best
  better neighbour only, and at the next one if they overlap too little.
  """
  size = scores.shape[0]
  order = jnp.argsort(-jnp.where(valid, scores, -jnp.inf), stable=True)
  place = (
    jnp.zeros(size, jnp.int32).at[order].set(jnp.arange(size, dtype=jnp.int32))
  )
  first, second = jnp.concatenate([pairs, pairs[::-1]], axis=1)
  usable = (first >= 0) & valid[first] & valid[second]
  usable &= place[first] < place[second]  # first is the better one
  first, second = jnp.where(usable, first, 0), jnp.where(usable, second, 0)

  def decide(state):
    kept, dropped, cursor = state
    rival = place[first]
    live = usable & ~dropped[first] & (rival > cursor[second])
    nearest = jnp.full(size, size).at[second].min(jnp.where(live, rival, size))
    is_nearest = live & (rival == nearest[second])
    shared = jnp.zeros(size, jnp.int32).at[second].add(is_nearest)
    alone = nearest == size
    rival = order[jnp.minimum(nearest, size - 1)]
    overlap = shared / jnp.maximum(areas + areas[rival] - shared, 1)
    hit = ~alone & (overlap > region_overlap)
    undecided = ~kept & ~dropped
    return (
      kept | (undecided & alone),
      dropped | (undecided & hit & kept[rival]),
      jnp.where(alone | hit, cursor, nearest),
    )

  def open_cases(state):
    return ~(state[0] | state[1]).all()

  state = (jnp.zeros(size, bool), ~valid, jnp.full(size, -1))
  return jax.lax.while_loop(open_cases, decide, state)[0]
