"""From cells to pixels, against naive loops over pixels."""

import functools

import jax
import numpy as np
import pytest

from fcrn_jax import instances
from fcrn_jax.instances import masks
from fcrn_jax.instances.options import Hypotheses, Options


def test_top_categories_prefers_the_lower_of_equal_ones():
  rng = np.random.default_rng(0)
  probs = rng.integers(0, 4, (9, 8, 6)).astype(np.float32)
  scores, categories = masks.top_categories(probs, 3)
  order = np.argsort(-probs, axis=-1, kind="stable")[..., :3]
  np.testing.assert_array_equal(categories, order)
  np.testing.assert_array_equal(scores, np.take_along_axis(probs, order, -1))


def bilinear(cells, y, x, stride):
  """One value at the point of pixel (y, x), the edges repeated."""
  value = 0.0
  place = [(p + 0.5) / stride - 0.5 for p in (y, x)]
  for di in (0, 1):
    for dj in (0, 1):
      weight, index = 1.0, []
      for p, d, n in zip(place, (di, dj), cells.shape[:2], strict=True):
        low = int(np.floor(p))
        weight *= p - low if d else 1 - (p - low)
        index.append(min(max(low + d, 0), n - 1))
      value = value + weight * cells[tuple(index)].astype(np.float64)
  return value


def iou(a, b):
  shared = max(min(a[2], b[2]) - max(a[0], b[0]), 0)
  shared *= max(min(a[3], b[3]) - max(a[1], b[1]), 0)
  union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
  return shared / (union - shared) if shared else 0.0


def scene(rng, height, width, categories, options):
  """Random maps and hypotheses of slots 0 ... 5, of which 4 is empty."""
  probs = rng.random((height, width, categories + 1)).astype(np.float32)
  corner = rng.integers(0, 40, (height, width, categories, 2))
  size = rng.integers(5, 30, (height, width, categories, 2))
  boxes = np.concatenate([corner, corner + size], -1).astype(np.float32)
  slots, n = 6, options.num_masks
  corner, size = (
    rng.integers(0, 40, (slots, 2)),
    rng.integers(9, 40, (slots, 2)),
  )
  owners = np.full((n, n, height, width), -1, np.int32)
  mask = rng.integers(0, n, slots).astype(np.int32)
  for k in range(n):
    ids = np.append(np.flatnonzero(mask == k), -1)
    ids = ids[ids != 4]
    owners[k, : k + 1] = rng.choice(ids, (k + 1, height, width))
  valid = np.arange(slots) != 4
  zeros = np.zeros(slots, np.float32)
  return (
    probs,
    boxes,
    Hypotheses(
      boxes=np.concatenate([corner, corner + size], -1).astype(np.float32),
      classes=np.where(valid, rng.integers(1, categories + 1, slots), 0),
      scores=zeros,
      valid=valid,
      truncated=np.zeros((), bool),
      level=mask,
      seeds=np.zeros((slots, 2), np.int32),
      num_votes=np.zeros(slots, np.int32),
      spread=zeros,
      fill=zeros,
      owners=owners,
    ),
  )


def naive_paint(hypotheses, probs, boxes, options, size, stride):
  """Labels, and the agreement that won and the next best, pixel by pixel."""
  labels = np.full((options.num_masks, *size), -1)
  margin = np.full(labels.shape, np.inf)
  for y, x in np.ndindex(*size):
    scores = bilinear(probs, y, x, stride)
    home = int((y + 0.5) // stride), int((x + 0.5) // stride)
    order = np.argsort(-scores, kind="stable")[: options.num_masks]
    for rank, category in enumerate(order):
      if category == 0 or scores[category] < options.score_floor:
        continue
      found = {}
      for j in np.flatnonzero(hypotheses.valid):
        k = hypotheses.level[j]
        if hypotheses.classes[j] != category or rank > k:
          continue
        owned = (hypotheses.owners[k] == j).any(0) * probs[..., category]
        if options.masks == "scores":
          found[j] = bilinear(owned, y, x, stride)
        elif options.masks == "blocks":
          found[j] = owned[home]
        else:
          own = boxes[:, :, category - 1].reshape(-1, 4)
          agreement = np.array([iou(b, hypotheses.boxes[j]) for b in own])
          agreement = agreement.reshape(probs.shape[:2])
          found[j] = bilinear(agreement, y, x, stride)
      ranked = sorted(found, key=lambda j: (-found[j], j))
      if ranked and found[ranked[0]] > options.min_agreement:
        labels[rank, y, x] = ranked[0]
        others = [found[ranked[0]] - found[j] for j in ranked[1:]]
        margin[rank, y, x] = min([*others, found[ranked[0]]])
  return labels, margin


@pytest.mark.parametrize("mode", ["boxes", "scores", "blocks"])
@pytest.mark.parametrize(
  ("stride", "size"),
  [(1, (7, 9)), (2, (13, 18)), (3, (21, 26)), (2.5, (17, 22))],
)
def test_paint_equals_naive_loop(mode, stride, size, monkeypatch):
  monkeypatch.setattr(masks, "TILE", 8)  # several tiles
  monkeypatch.setattr(masks, "TURN", 1 if stride == 1 else 3)
  options = Options(masks=mode, num_masks=2, score_floor=0.5)
  rng = np.random.default_rng(1)
  probs, boxes, found = scene(rng, 7, 9, 3, options)
  labels = masks.paint(found, probs, boxes, options, size, stride).labels
  expected, margin = naive_paint(found, probs, boxes, options, size, stride)
  # The rest are ties but for rounding; blocks need none.
  sure = (margin > 1e-5) | (mode == "blocks")
  assert sure.mean() > 0.99
  np.testing.assert_array_equal(labels[sure], expected[sure])
  assert len(np.unique(expected)) > 4


def test_paint_is_the_same_for_all_tiles_and_in_a_batch():
  options = Options(num_masks=2)
  rng = np.random.default_rng(2)
  batch = [scene(rng, 12, 10, 2, options) for _ in range(2)]
  probs, boxes, found = jax.tree.map(lambda *x: np.stack(x), *batch)

  def paint(tile, turn):
    run = functools.partial(
      masks._paint, size=(45, 38), stride=4, tile=tile, turn=turn
    )
    return jax.jit(jax.vmap(run, (0, 0, 0, None)))(found, probs, boxes, options)

  small, large = paint(16, 1), paint(64, 16)
  np.testing.assert_array_equal(small.labels, large.labels)
  np.testing.assert_array_equal(small.categories, large.categories)
  np.testing.assert_allclose(small.scores, large.scores, rtol=1e-6)


def test_a_large_image_may_be_painted_in_pieces():
  options = Options(num_masks=2)
  probs, boxes, found = scene(np.random.default_rng(3), 14, 9, 2, options)
  stride, size = 4, (56, 36)
  whole = masks.paint(found, probs, boxes, options, size, stride)
  # Rows 6 ... 10 of cells with one more on either side.
  piece = masks.paint(
    found._replace(owners=found.owners[:, :, 5:12]),
    probs[5:12],
    boxes[5:12],
    options,
    (7 * stride, 36),
    stride,
  )
  for a, b in zip(whole, piece, strict=True):
    np.testing.assert_array_equal(
      a[:, 6 * stride : 11 * stride], b[:, stride : 6 * stride]
    )


def test_pixels_that_agree_with_nobody_stay_free():
  # One row of cells whose boxes move away from the hypothesis's: IoU 1, 1/3, 0.
  boxes = np.float32([[0, 0, 4, 4], [0, 2, 4, 6], [0, 4, 4, 8]])[None, :, None]
  probs = np.tile(np.float32([0.2, 0.8]), (1, 3, 1))
  options = Options(num_masks=1)
  _, _, found = scene(np.random.default_rng(0), 1, 3, 1, options)
  found = found._replace(
    boxes=np.tile(boxes[0, 0], (6, 1)), valid=np.arange(6) == 2
  )
  for floor, expected in [
    (0.0, [2, 2, -1]),
    (0.3, [2, 2, -1]),
    (0.4, [2, -1, -1]),
  ]:
    options = Options(num_masks=1, min_agreement=floor)
    labels = masks.paint(found, probs, boxes, options, (1, 3), 1).labels
    assert labels[0, 0].tolist() == expected


def test_masks_of():
  labels = np.int32([[[0, 0, 2], [-1, 2, 2]], [[-1, 1, -1], [0, -1, 1]]])
  found = masks.masks_of(labels, np.arange(4))
  assert found.sum((1, 2)).tolist() == [3, 2, 3, 0]
  assert found[0].tolist() == [[True, True, False], [True, False, False]]


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_upsample_is_half_pixel_bilinear(stride):
  rng = np.random.default_rng(0)
  maps = rng.random((4, 5, 2)).astype(np.float32)
  size = 4 * stride - 1 if stride > 1 else 4, 5 * stride
  expected = [
    [bilinear(maps, y, x, stride) for x in range(size[1])]
    for y in range(size[0])
  ]
  found = masks.upsample(maps, size, stride)
  np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("which", ["probs", "boxes"])
def test_a_cell_that_is_not_finite_costs_its_neighbours_alone(which, value):
  probs = np.zeros((16, 16, 2), np.float32)
  probs[..., 0] = 1
  probs[2:6, 2:6] = 0, 1
  boxes = np.broadcast_to(np.float32([8, 8, 24, 24]), (16, 16, 1, 4)).copy()
  options = instances.Options(num_masks=1)
  extract = functools.partial(instances.extract, options=options, stride=4)
  whole = extract(probs, boxes, image_size=(64, 64))
  assert whole.valid.sum() == 1 and whole.masks[0].sum() > 200
  {"probs": probs, "boxes": boxes}[which][14, 14] = value
  found = extract(probs, boxes, image_size=(64, 64))
  np.testing.assert_array_equal(found.masks[0], whole.masks[0])
