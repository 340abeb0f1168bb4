"""Region NMS against a naive loop over pixel sets."""

import jax
import numpy as np
import pytest

from fcrn_jax.instances import region_nms, shared_pixels


def random_case(rng, num_masks, per_mask, cells):
  """Owners `k r cells` as voting gives them, scores with ties, validity."""
  owners = np.full((num_masks, num_masks, cells), -1, np.int32)
  for k in range(num_masks):
    ids = k * per_mask + rng.integers(0, per_mask, (k + 1, cells))
    owners[k, : k + 1] = np.where(rng.random((k + 1, cells)) < 0.7, ids, -1)
  count = num_masks * per_mask
  scores = rng.integers(0, 5, count).astype(np.float32) / 4
  return owners, scores, rng.random(count) < 0.9


def naive(owners, scores, valid, threshold):
  regions = []
  for j in range(len(scores)):
    places = np.argwhere((owners == j).any(0))
    regions.append({tuple(place) for place in places})
  kept = np.zeros(len(scores), bool)
  for j in sorted(range(len(scores)), key=lambda j: (-scores[j], j)):
    overlaps = [
      len(regions[i] & regions[j]) / max(len(regions[i] | regions[j]), 1)
      for i in np.flatnonzero(kept)
    ]
    kept[j] = valid[j] and all(overlap <= threshold for overlap in overlaps)
  return kept


@pytest.mark.parametrize("num_masks", [1, 2, 3])
def test_equals_naive_loop(num_masks):
  rng = np.random.default_rng(num_masks)
  cases = [random_case(rng, num_masks, 5, 24) for _ in range(400)]
  thresholds = rng.choice([0, 0.1, 0.25, 0.5], len(cases)).astype(np.float32)

  @jax.jit
  @jax.vmap
  def run(owners, scores, valid, threshold):
    areas = (owners.ravel() == np.arange(scores.size)[:, None]).sum(1)
    pairs = shared_pixels(owners)
    return region_nms(scores, valid, areas, pairs, threshold)

  found = run(*map(np.stack, zip(*cases, strict=True)), thresholds)
  dropped = 0
  for case, threshold, kept in zip(cases, thresholds, found, strict=True):
    np.testing.assert_array_equal(kept, naive(*case, threshold))
    dropped += (case[2] & ~np.asarray(kept)).sum()
  assert dropped > 100 or num_masks == 1


def test_a_dropped_hypothesis_drops_nobody():
  # 0 shares a cell with 1 and 1 with 2; 0 and 2 are apart:
  #   mask 0:  0 0 . 2 2      mask 1:  . 1 1 1 .
  owners = np.full((2, 2, 5), -1, np.int32)
  owners[0, 0] = [0, 0, -1, 2, 2]
  owners[1, 0] = [-1, 1, 1, 1, -1]
  kept = region_nms(
    np.float32([0.9, 0.8, 0.7]),
    np.ones(3, bool),
    np.int32([2, 3, 2]),
    shared_pixels(owners),
  )
  assert kept.tolist() == [True, False, True]
