"""Voting against a naive NumPy loop, ties included."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fcrn_jax import boxes as box_algebra
from fcrn_jax.instances import voting


def naive_vote(scores, boxes, candidates, threshold, slots, groups):
  """One candidate at a time, in float64."""
  boxes = boxes.astype(np.float64)
  boxes[np.isnan(boxes).any(1)] = 0  # overlaps nothing
  keeper, owner = [], np.full(len(scores), -1)
  candidates = candidates & np.isfinite(scores)
  left = {i for i in range(len(scores)) if candidates[i]}
  while left and len(keeper) < slots:
    seed = min(left, key=lambda i: (-scores[i], i))
    for i in sorted(left):
      a, b = boxes[i], boxes[seed]
      shared = max(min(a[2], b[2]) - max(a[0], b[0]), 0)
      shared *= max(min(a[3], b[3]) - max(a[1], b[1]), 0)
      union = max(a[2] - a[0], 0) * max(a[3] - a[1], 0) - shared
      union += max(b[2] - b[0], 0) * max(b[3] - b[1], 0)
      overlap = shared / union if union else 0
      if i == seed or (overlap > threshold and groups[i] == groups[seed]):
        owner[i] = len(keeper)
        left.remove(i)
    keeper.append(seed)
  return keeper, owner, bool(left)


def random_case(rng, count):
  """Coarse integer boxes and scores, so that ties abound; a few NaNs."""
  corner = rng.integers(0, rng.choice([4, 12, 60]), (count, 2))
  size = rng.integers(-1, 9, (count, 2))
  boxes = np.concatenate([corner, corner + size], 1).astype(np.float32)
  boxes[rng.random(count) < 0.03, rng.integers(4)] = np.nan
  scores = rng.integers(0, 6, count).astype(np.float32) / 8
  scores[rng.random(count) < 0.03] = rng.choice([np.nan, np.inf, -np.inf])
  groups = rng.integers(0, rng.integers(1, 4), count).astype(np.int32)
  return scores, boxes, rng.random(count) < 0.8, groups


def check(votes, scores, boxes, candidates, threshold, slots, groups):
  keeper, owner, left = naive_vote(
    scores, boxes, candidates, threshold, slots, groups
  )
  assert votes.keeper[: len(keeper)].tolist() == keeper
  assert (votes.keeper[len(keeper) :] == -1).all()
  np.testing.assert_array_equal(votes.owner, owner)
  np.testing.assert_array_equal(votes.valid, np.arange(slots) < len(keeper))
  assert bool(votes.truncated) == left
  centers = (boxes[:, :2] + boxes[:, 2:]) / 2
  for k, seed in enumerate(keeper):
    mine = owner == k
    assert votes.num_votes[k] == mine.sum()
    np.testing.assert_allclose(
      votes.confidence[k], scores[mine].mean(), rtol=1e-5, atol=1e-6
    )
    square = ((centers[mine] - centers[seed]) ** 2).sum(1).mean()
    np.testing.assert_allclose(votes.spread[k] ** 2, square, atol=1e-4)
  for values in (votes.confidence, votes.num_votes, votes.spread):
    assert not values[len(keeper) :].any()


@pytest.mark.parametrize("program", ["by_chunks", "in_passes"])
@pytest.mark.parametrize("slots", [6, 40])
def test_equals_naive_loop(program, slots, monkeypatch):
  monkeypatch.setattr(voting, "CHUNK", 8)  # many chunks a case
  monkeypatch.setattr(voting, "_PARTS", 7)  # of six candidates, two short
  wanted, calls = getattr(voting, f"_vote_{program}"), []
  monkeypatch.setattr(
    voting, "_vote_by_chunks", lambda *args: calls.append(1) or wanted(*args)
  )
  jax.clear_caches()  # lest vote takes a program that it has traced before
  rng = np.random.default_rng(slots)
  cases, count = 500, 40
  run = jax.jit(
    jax.vmap(lambda s, b, c, g, t: voting.vote(s, b, c, t, slots, g))
  )
  data = [random_case(rng, count) for _ in range(cases)]
  thresholds = rng.choice([0, 0.25, 0.3, 0.5, 0.7], cases).astype(np.float32)
  votes = run(*map(np.stack, zip(*data, strict=True)), thresholds)
  votes = jax.tree.map(np.asarray, votes)
  for i, (scores, boxes, candidates, groups) in enumerate(data):
    one = jax.tree.map(lambda x, i=i: x[i], votes)
    threshold = float(str(thresholds[i]))
    check(one, scores, boxes, candidates, threshold, slots, groups)
  assert calls


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("side", [-1, 1])
def test_reach_is_the_furthest_that_boxes_overlap(threshold, axis, side):
  """The worst case: one box holds the other, at one of its ends."""
  box = np.float32([100, 100, 110, 110])
  other, beyond = box.copy(), box.copy()
  end = axis + 2 if side > 0 else axis
  other[end] += side * (10 / threshold - 10 - 0.02)
  beyond[end] += 1.1 * (other[end] - box[end])
  assert box_algebra.iou(box, other) > threshold
  assert box_algebra.iou(box, beyond) < threshold

  def reached(seen):
    ranges = voting._ranges(seen[:, None], jnp.int32([1]), jnp.array([True]))
    return bool(voting._within_reach(ranges, box, 1, threshold)[()])

  assert reached(other) and not reached(beyond)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_large_boxes_of_half_a_precision_vote_as_one(dtype):
  boxes = jnp.tile(jnp.array([0, 0, 300, 300], dtype), (6, 1))
  votes = voting.vote(jnp.ones(6, dtype), boxes, jnp.ones(6, bool), 0.5, 8)
  assert votes.valid.sum() == 1 and votes.num_votes[0] == 6
