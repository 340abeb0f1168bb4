import numpy as np
import pytest
from sklearn.metrics import confusion_matrix

from fcrn_jax.metrics import CITYSCAPES, VOC, confusion, semantic_scores


@pytest.mark.parametrize("num_classes", [2, 21, 150])
def test_confusion_equals_scikit_learn(num_classes):
  rng = np.random.default_rng(num_classes)
  labels = rng.integers(0, num_classes, (3, 40, 50)).astype(np.uint8)
  predictions = rng.integers(0, num_classes, (3, 40, 50)).astype(np.int32)
  void = rng.random(labels.shape) < 0.2
  labels[void] = 255
  expected = confusion_matrix(
    labels[~void], predictions[~void], labels=np.arange(num_classes)
  )
  counts = confusion(labels, predictions, num_classes)
  assert counts.dtype == np.int64
  np.testing.assert_array_equal(counts, expected)


def test_rows_are_the_truth_and_void_counts_nowhere():
  labels = np.array([[0, 0, 1], [1, 2, 255]], np.uint8)
  predictions = np.array([[0, 1, 1], [1, 0, 255]], np.uint8)
  # (0,0) (0,1) (1,1) (1,1) (2,0); the last pixel is void, whatever is there.
  np.testing.assert_array_equal(
    confusion(labels, predictions, 3), [[1, 1, 0], [0, 2, 0], [1, 0, 0]]
  )


def test_another_void_value():
  counts = confusion(np.array([-1, 0]), np.array([9, 1]), 2, ignore=-1)
  np.testing.assert_array_equal(counts, [[0, 1], [0, 0]])


@pytest.mark.parametrize(
  "label, prediction, message",
  [
    (21, 0, "label 21 is outside 0 ... 20; set num_classes"),
    (-1, 0, "label -1 is outside"),
    (0, 21, "prediction 21 is outside"),
    (0, 255, "prediction 255 is outside"),
  ],
)
def test_a_value_out_of_range_is_named(label, prediction, message):
  with pytest.raises(ValueError, match=message):
    confusion(np.array([3, label]), np.array([3, prediction]), 21)


def test_shapes_must_agree():
  with pytest.raises((ValueError, TypeError)):
    confusion(np.zeros((4, 4), int), np.zeros((2, 2), int), 2)


# Truth 0: 3 of 4 right; truth 1: 1 of 2 right, one taken for class 2, which is
# nowhere true; class 3 is neither true nor predicted.
MATRIX = np.array([[3, 1, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
# IoU: 3 / 4, 1 / 3, 0 / 1, 0 / 0. Accuracy: 3 / 4, 1 / 2, 0 / 0, 0 / 0.


@pytest.mark.parametrize(
  "absent_class, mean_iou, mean_accuracy",
  [
    ("nan_excluded", (3 / 4 + 1 / 3 + 0) / 3, (3 / 4 + 1 / 2) / 2),
    ("zero", (3 / 4 + 1 / 3) / 4, (3 / 4 + 1 / 2) / 4),
    ("one_denominator", (3 / 4 + 1 / 3) / 4, (3 / 4 + 1 / 2) / 4),
  ],
)
def test_absent_classes(absent_class, mean_iou, mean_accuracy):
  result = semantic_scores(MATRIX, absent_class)
  assert result["pixel_accuracy"] == pytest.approx(4 / 6)
  assert result["mean_iou"] == pytest.approx(mean_iou)
  assert result["mean_accuracy"] == pytest.approx(mean_accuracy)
  assert np.isnan(result["iou"][3]) == (absent_class == "nan_excluded")


def test_presets():
  assert semantic_scores(MATRIX, VOC)["mean_iou"] == pytest.approx(
    (3 / 4 + 1 / 3) / 4
  )
  # Cityscapes leaves out what never occurs; label 0 is road.
  result = semantic_scores(MATRIX, CITYSCAPES)
  assert result["mean_iou"] == pytest.approx((3 / 4 + 1 / 3 + 0) / 3)


def test_scores_of_a_sum_are_not_the_mean_of_scores():
  first = np.array([[90, 0], [10, 0]])
  second = np.array([[0, 0], [0, 10]])
  result = semantic_scores(first + second)
  assert result["iou"] == pytest.approx([90 / 100, 10 / 20])


def test_nothing_but_void_has_no_score():
  result = semantic_scores(confusion(np.full(4, 255), np.zeros(4, int), 3))
  assert np.isnan(result["pixel_accuracy"]) and np.isnan(result["mean_iou"])


def test_an_unknown_policy_is_refused():
  with pytest.raises((ValueError, TypeError)):
    semantic_scores(MATRIX, "skip")


def test_confusion_takes_integers_of_every_type():
  labels = np.array([[0, 1], [1, 255]])
  for kind in (np.uint64, np.int8, np.uint16):
    found = confusion(labels, np.array([[0, 1], [0, 1]], kind), 2)
    assert found.tolist() == [[1, 0], [1, 1]]
