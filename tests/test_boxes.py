"""Box algebra on typed-out boxes, numpy and JAX alike."""

import jax.numpy as jnp
import numpy as np
import pytest

from fcrn_jax import boxes

BOTH = pytest.mark.parametrize("xp", [np, jnp])


@BOTH
def test_area_and_iou(xp):
  # a covers rows 0-3 and columns 0-1 (8 px), b rows 2-5 and columns 0-3
  # (16 px); they share rows 2-3, columns 0-1: 4 of 8 + 16 - 4 = 20 px.
  a = xp.asarray([0.0, 0, 4, 2])
  b = xp.asarray([2.0, 0, 6, 4])
  assert boxes.area(a) == 8
  assert boxes.area(xp.asarray([6.0, 0, 2, 4])) == 0
  np.testing.assert_allclose(boxes.iou(a, b), 4 / 20)
  # Also of boxes below a pixel.
  np.testing.assert_allclose(boxes.iou(a / 100, b / 100), 4 / 20, rtol=1e-5)
  assert boxes.iou(a, a + 100) == 0
  assert boxes.iou(a * 0, a * 0) == 0


@BOTH
def test_iou_of_all_pairs(xp):
  rows = xp.asarray([[0.0, 0, 1, 1], [0, 0, 2, 2], [1, 1, 2, 2]])
  expected = [[1, 0.25, 0], [0.25, 1, 0.25], [0, 0.25, 1]]
  np.testing.assert_allclose(boxes.iou(rows[:, None], rows[None]), expected)


@BOTH
def test_encoding_seen_from_cell_points(xp):
  # At stride 2 cell (1, 0) stands for the point (3, 1); the box's centre is
  # (4, 3), so the offsets are (1, 2), the size 6 x 4.
  points = boxes.cell_points(2, 3, 2, xp)
  box = xp.asarray([1.0, 1, 7, 5])
  encoded = boxes.encode(box, points)
  assert encoded.shape == (2, 3, 4)
  np.testing.assert_allclose(encoded[1, 0], [1, 2, 6, 4])
  decoded = boxes.decode(encoded, points)
  np.testing.assert_allclose(decoded, np.broadcast_to(box, (2, 3, 4)))


@BOTH
def test_negative_sizes_count_as_zero(xp):
  decoded = boxes.decode(xp.asarray([0.0, 0, -2, 4]), xp.asarray([5.0, 5]))
  np.testing.assert_allclose(decoded, [5, 3, 5, 7])


@BOTH
def test_centerness_typed_out(xp):
  # Of a box of 4 x 8: the centre; a pixel from the top, where the ratio is
  # 1 / 3 in y and 2 / 6 in x; the border; outside of it in both axes.
  box = xp.asarray([1.0, 1, 5, 9])
  points = xp.asarray([[3.0, 5], [2, 3], [1, 5], [0, 0], [0, 5]])
  found = boxes.centerness(box, points)
  np.testing.assert_allclose(found, [1, 1 / 3, 0, 0, 0], rtol=1e-6)
  points = xp.asarray([[2.0, 5]])
  np.testing.assert_allclose(boxes.centerness(box, points), [(1 / 3) ** 0.5])
  empty = xp.asarray([3.0, 5, 3, 5])
  assert boxes.centerness(empty, xp.asarray([3.0, 5])) == 0
