"""Pixel accuracy, mean accuracy and mean IoU from one confusion matrix.

The matrix is summed over images, then over hosts, and scored once: scores are
never averaged over images or batches.
"""

from typing import Literal

import numpy as np
from jaxtyping import Int, Integer

from fcrn_jax.types import IGNORE, Array

AbsentClass = Literal["nan_excluded", "zero", "one_denominator"]
# VOCevalseg: the mean is over all 21 classes, background included.
VOC: AbsentClass = "one_denominator"
# cityscapesscripts: classes that never occur are left out of the mean. Labels
# are the 19 train ids, so label 0 is road and counts.
CITYSCAPES: AbsentClass = "nan_excluded"


def confusion(
  labels: Integer[Array, "*shape"],
  predictions: Integer[Array, "*shape"],
  num_classes: int,
  ignore: int = IGNORE,
) -> Int[np.ndarray, "c c"]:
  """Counts of (true class, predicted class) pixels, int64, rows = truth.

  Pixels labelled `ignore` count nowhere, whatever is predicted there.
  num_classes counts the background. Raises ValueError for classes outside
  0 ... num_classes - 1 and for what is no integer.
  """
  labels, predictions = np.asarray(labels), np.asarray(predictions)
  if labels.shape != predictions.shape:
    raise ValueError(
      f"labels have shape {labels.shape} and predictions "
      f"{predictions.shape}; resize the predictions to the labels' size."
    )
  for what, values in (("labels", labels), ("predictions", predictions)):
    if values.dtype.kind not in "uib":
      raise ValueError(
        f"{what} are {values.dtype}; expected integers, one class a pixel: of"
        " scores take the argmax."
      )
  counted = labels != ignore
  labels, predictions = labels[counted], predictions[counted]
  _check_range("label", labels, num_classes, ignore)
  _check_range("prediction", predictions, num_classes, ignore)
  # In int64: a uint8 label times num_classes would wrap around.
  pairs = labels.astype(np.int64) * num_classes
  pairs += predictions.astype(np.int64)
  counts = np.bincount(pairs, minlength=num_classes**2)
  return counts.reshape(num_classes, num_classes).astype(np.int64)


def semantic_scores(
  confusion: Int[Array, "c c"],
  absent_class: AbsentClass = "nan_excluded",
) -> dict[str, float | list[float]]:
  """pixel_accuracy, mean_accuracy, mean_iou (0 ... 1) and iou per class.

  pixel accuracy = trace / total, mean accuracy = mean over classes of
  c_jj / row_j, IoU_j = c_jj / (row_j + column_j - c_jj).

  absent_class says what a class scores whose denominator is 0:
  "nan_excluded" NaN, left out of the mean (Cityscapes); "zero" 0, counted in
  the mean; "one_denominator" 0 / 1, the arithmetic of later VOC devkits and
  therefore the same number as "zero".
  """
  matrix = np.asarray(confusion, np.int64)
  correct = np.diagonal(matrix).astype(np.float64)
  rows, columns = matrix.sum(axis=1), matrix.sum(axis=0)
  iou = _divide(correct, rows + columns - correct, absent_class)
  accuracy = _divide(correct, rows, absent_class)
  total = matrix.sum()
  return {
    "pixel_accuracy": float(correct.sum() / total) if total else np.nan,
    "mean_accuracy": nanmean(accuracy),
    "mean_iou": nanmean(iou),
    "iou": iou.tolist(),
  }


def _check_range(what: str, values, num_classes: int, ignore: int) -> None:
  if not values.size:
    return
  low, high = int(values.min()), int(values.max())
  if low >= 0 and high < num_classes:
    return
  value = low if low < 0 else high
  raise ValueError(
    f"{what} {value} is outside 0 ... {num_classes - 1}; set num_classes "
    "(background included) to the data's, or mark such pixels in the labels "
    f"with ignore={ignore}."
  )


def _divide(numerator, denominator, absent_class: AbsentClass):
  policies = ("nan_excluded", "zero", "one_denominator")
  if absent_class not in policies:
    raise ValueError(
      f"absent_class is {absent_class!r}; expected one of {policies}."
    )
  empty = np.nan if absent_class == "nan_excluded" else 0.0
  ratio = numerator / np.maximum(denominator, 1)
  return np.where(denominator == 0, empty, ratio)


def nanmean(values) -> float:
  """Mean of the numbers among the values; NaN if there are none."""
  present = values[~np.isnan(values)]
  return float(present.mean()) if present.size else np.nan
