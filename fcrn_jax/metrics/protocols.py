"""What each published protocol fixes: thresholds, matching, integration.

SDS is the MATLAB evaluation of Hariharan et al. (the paper's section 3.2 and
the only one with AP^r_vol); MNC is the Python one that came with multi-task
cascades; COCO is pycocotools'.
"""

import itertools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Integer
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csr_array

from fcrn_jax.metrics.semantic import nanmean

Curve = Float[np.ndarray, "n"]


def voc_ap(recall: Curve, precision: Curve) -> float:
  """Area under the precision envelope at every recall step (VOCap)."""
  recall = np.concatenate([[0.0], recall, [1.0]])
  precision = np.concatenate([[0.0], precision, [0.0]])
  envelope = np.maximum.accumulate(precision[::-1])[::-1]
  return float(np.sum(np.diff(recall) * envelope[1:]))


def eleven_point_ap(recall: Curve, precision: Curve) -> float:
  """Mean over recalls 0, 0.1 ... 1 of the best precision from there on.

  The recalls are numpy's arange(0, 1.1, 0.1) as in the original, the fourth
  of which is a hair above 0.3.
  """
  points = np.arange(0.0, 1.1, 0.1)
  best = [np.max(precision[recall >= p], initial=0.0) for p in points]
  return float(np.mean(best))


def coco_ap(recall: Curve, precision: Curve) -> float:
  """Mean over 101 recalls of the precision envelope (pycocotools)."""
  envelope = np.maximum.accumulate(precision[::-1])[::-1]
  index = np.searchsorted(recall, np.linspace(0, 1, 101), side="left")
  return float(np.mean(np.append(envelope, 0.0)[index]))


class APProtocol(NamedTuple):
  """One way to turn ranked masks into an average precision.

  thresholds: the IoUs at which the AP is computed.
  strict: a match needs IoU > t rather than IoU >= t.
  uncovered: a prediction takes the best true instance that is still free;
    otherwise the best of all, and is a false positive if that one is taken.
  last_tie: among equal IoUs the last true instance wins, not the first.
  max_predictions: best predictions kept per image and category, or None.
  """

  thresholds: tuple[float, ...]
  strict: bool
  uncovered: bool
  last_tie: bool
  max_predictions: int | None
  integrate: Callable[[Curve, Curve], float]


_TENTHS = tuple(k / 10 for k in range(1, 10))
SDS = APProtocol(_TENTHS, True, True, False, None, voc_ap)
MNC = APProtocol(_TENTHS, False, False, False, None, eleven_point_ap)
# The very thresholds of pycocotools, to the last bit.
COCO_THRESHOLDS = tuple(np.linspace(0.5, 0.95, 10).tolist())
COCO = APProtocol(COCO_THRESHOLDS, False, True, True, 100, coco_ap)


class Image(NamedTuple):
  """All that the protocols need of one image; predictions by falling score.

  ious holds the pairs of one category that overlap; void is the share of each
  prediction that lies in void; touching marks the true instances that share
  a border or pixels with another of their category.
  """

  scores: Float[np.ndarray, "p"]
  classes: Integer[np.ndarray, "p"]
  void: Float[np.ndarray, "p"]
  gt_classes: Integer[np.ndarray, "g"]
  touching: Bool[np.ndarray, "g"]
  ious: csr_array  # p g


def average_precision(
  images: list[Image], num_classes: int, protocol: APProtocol
) -> Float[np.ndarray, "t c"]:
  """AP per threshold and category, NaN where there is no true instance."""
  thresholds = np.array(protocol.thresholds)
  kept = [_best_of_category(i, protocol.max_predictions) for i in images]
  right = [true_positives(i.ious, protocol) for i in kept]
  right = np.concatenate([np.zeros((len(thresholds), 0), bool), *right], axis=1)
  scores = np.concatenate([np.zeros(0), *(i.scores for i in kept)])
  void = np.concatenate([np.zeros(0), *(i.void for i in kept)])
  classes = np.concatenate([np.zeros(0, int), *(i.classes for i in kept)])
  truths = np.concatenate([np.zeros(0, int), *(i.gt_classes for i in kept)])
  forgiven = ~right & (void > thresholds[:, None])
  result = np.full((len(thresholds), num_classes - 1), np.nan)
  for category in range(1, num_classes):
    num_truths = np.count_nonzero(truths == category)
    if not num_truths:
      continue
    mine = np.flatnonzero(classes == category)
    mine = mine[np.argsort(-scores[mine], kind="stable")]
    for t in range(len(thresholds)):
      order = mine[~forgiven[t, mine]]
      hits = np.cumsum(right[t, order])
      precision = hits / np.arange(1, len(order) + 1)
      recall = hits / num_truths
      result[t, category - 1] = protocol.integrate(recall, precision)
  return result


def true_positives(
  ious: csr_array, protocol: APProtocol
) -> Bool[np.ndarray, "t p"]:
  """Which predictions of one image are right at each threshold.

  ious: p g, predictions in falling order of score against true instances;
  pairs that are not stored do not overlap or differ in category.
  """
  thresholds = np.array(protocol.thresholds)
  result = np.zeros((len(thresholds), ious.shape[0]), bool)
  taken = np.zeros((len(thresholds), ious.shape[1]), bool)
  every = np.arange(len(thresholds))
  for k, (start, stop) in enumerate(itertools.pairwise(ious.indptr)):
    values, truths = ious.data[start:stop], ious.indices[start:stop]
    if not len(values) or values.max() < thresholds.min():
      continue
    if protocol.last_tie:
      values, truths = values[::-1], truths[::-1]
    free = ~taken[:, truths]
    usable = np.where(free | (not protocol.uncovered), values, -1)
    best = usable.argmax(axis=1)
    value = usable[every, best]
    enough = value > thresholds if protocol.strict else value >= thresholds
    result[:, k] = enough & free[every, best]
    taken[every, truths[best]] |= result[:, k]
  return result


def match(
  ious: csr_array, threshold: float
) -> tuple[Integer[np.ndarray, "k"], Integer[np.ndarray, "k"]]:
  """Predictions and true instances matched one to one at IoU >= threshold.

  As many pairs as possible, among those matchings the largest total IoU.
  """
  pairs = ious.tocoo()
  keep = pairs.data >= threshold
  rows, columns = pairs.row[keep], pairs.col[keep]
  # Most pairs have no rival; only the others need the Hungarian algorithm.
  alone = (np.bincount(rows, minlength=1)[rows] == 1) & (
    np.bincount(columns, minlength=1)[columns] == 1
  )
  some_rows, i = np.unique(rows[~alone], return_inverse=True)
  some_columns, j = np.unique(columns[~alone], return_inverse=True)
  gain = np.zeros((len(some_rows), len(some_columns)))
  gain[i, j] = 1 + pairs.data[keep][~alone] / (2 * max(len(i), 1))
  first, second = linear_sum_assignment(gain, maximize=True)
  real = gain[first, second] > 0
  return (
    np.concatenate([rows[alone], some_rows[first[real]]]),
    np.concatenate([columns[alone], some_columns[second[real]]]),
  )


def matching_scores(images: list[Image]) -> dict[str, float]:
  """The "matching" protocol; see InstanceEvaluator.result."""
  num_touching = sum(int(image.touching.sum()) for image in images)
  pooled, by_image, recall = {}, {}, {}
  for threshold in COCO_THRESHOLDS:
    # Of each image: true and false positives, misses, touching ones found.
    counts, total_iou = np.zeros((len(images), 4), np.int64), 0.0
    for count, image in zip(counts, images, strict=True):
      found, truths = match(image.ious, threshold)
      wrong = np.ones(len(image.scores), bool)
      wrong[found] = False
      wrong &= image.void <= threshold
      count[0], count[1] = len(found), wrong.sum()
      count[2] = len(image.gt_classes) - len(found)
      count[3] = image.touching[truths].sum()
      if len(found):
        total_iou += float(image.ious[found, truths].sum())
    tp, fp, fn, touching = counts.sum(axis=0).tolist()
    pooled[f"matching_{threshold:g}"] = _ratio(tp, tp + fp + fn)
    by_image[f"matching_by_image_{threshold:g}"] = nanmean(
      np.array([_ratio(c[0], c[:3].sum()) for c in counts])
    )
    recall[f"touching_recall_{threshold:g}"] = _ratio(touching, num_touching)
    if threshold == 0.5:
      overall = {
        "f1": _ratio(tp, tp + (fp + fn) / 2),
        "pq": _ratio(total_iou, tp + (fp + fn) / 2),
        "num_images": len(images),
        "num_instances": tp + fn,
        "num_touching": num_touching,
      }
  return {**pooled, **by_image, **recall, **overall}


def _best_of_category(image: Image, limit: int | None) -> Image:
  """Keeps the `limit` best predictions of each category."""
  if limit is None or len(image.classes) <= limit:
    return image
  keep = np.zeros(len(image.classes), bool)
  for category in np.unique(image.classes):
    keep[np.flatnonzero(image.classes == category)[:limit]] = True
  return image._replace(
    scores=image.scores[keep],
    classes=image.classes[keep],
    void=image.void[keep],
    ious=image.ious[np.flatnonzero(keep)],
  )


def _ratio(part, whole) -> float:
  return float(part / whole) if whole else np.nan
