"""The chain of grouping: typed-out grids."""

import jax
import numpy as np
import pytest

from fcrn_jax import instances


def two_squares():
  """Two touching 3 x 3 objects of one category and a 2 x 2 of another."""
  grid = np.array(
    [
      [1, 1, 1, 2, 2, 2, 0, 0],
      [1, 1, 1, 2, 2, 2, 0, 0],
      [1, 1, 1, 2, 2, 2, 3, 3],
      [0, 0, 0, 0, 0, 0, 3, 3],
    ]
  )
  category = np.array([0, 1, 1, 2])[grid]
  corners = np.array(
    [[0, 0, 1, 1], [0, 0, 3, 3], [0, 3, 3, 6], [2, 6, 4, 8]], np.float32
  )
  top = np.array([0.8, 0.9, 0.8, 0.7])[grid][..., None]
  probs = np.where(category[..., None] == np.arange(3), top, (1 - top) / 2)
  boxes = np.repeat(corners[grid][:, :, None], 2, axis=2)
  return grid, probs.astype(np.float32), boxes


@pytest.mark.parametrize(
  ("mode", "stride"),
  [("boxes", 1), ("boxes", 4), ("scores", 4), ("blocks", 4), ("full", 1)],
)
def test_touching_objects_are_told_apart(mode, stride):
  grid, probs, boxes = two_squares()
  options = instances.Options(masks=mode, num_masks=1, max_instances=5)
  size = (4 * stride, 8 * stride)
  found = jax.jit(lambda p, b: instances.extract(p, b, options, size, stride))(
    probs, boxes * stride
  )
  assert found.valid.tolist() == [True] * 3 + [False] * 2
  assert found.classes.tolist() == [1, 1, 2, 0, 0]
  np.testing.assert_allclose(found.scores, [0.9, 0.8, 0.7, 0, 0], rtol=1e-6)
  truth = np.array([[0, 0, 3, 3], [0, 3, 3, 6], [2, 6, 4, 8]]) * stride
  np.testing.assert_array_equal(found.boxes[:3], truth)
  assert not found.truncated
  blocks = np.kron(grid, np.ones((stride, stride), int))
  for k in (1, 2, 3):
    mask, truth = np.asarray(found.masks[k - 1]), blocks == k
    iou = (mask & truth).sum() / (mask | truth).sum()
    assert iou == 1 if stride == 1 else iou > 0.7


def test_jit_takes_options_and_vmap_equals_a_loop():
  _, probs, boxes = two_squares()
  key = jax.random.key(0)
  probs = jax.nn.softmax(jax.random.normal(key, (3, *probs.shape)), axis=-1)
  boxes = boxes + jax.random.uniform(key, (3, *boxes.shape))
  options = instances.Options(max_instances=7)
  batch = jax.vmap(lambda p, b: instances.extract(p, b, options))(probs, boxes)
  for i in range(3):
    one = jax.jit(instances.extract)(probs[i], boxes[i], options)
    jax.tree.map(
      np.testing.assert_array_equal,
      one,
      jax.tree.map(lambda x, i=i: x[i], batch),
    )
