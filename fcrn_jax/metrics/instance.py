"""Scores of instance masks against true instances.

`add` reduces an image to the IoUs of the pairs that overlap, a few kilobytes
whatever the image's size, and `result` computes any protocol from those. The
state pickles, so hosts can send theirs and `merge` them.
"""

from collections.abc import Iterator
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Integer
from scipy import ndimage
from scipy.sparse import lil_array

from fcrn_jax.metrics import protocols
from fcrn_jax.metrics.semantic import nanmean
from fcrn_jax.types import Array

Protocol = Literal["sds", "mnc", "coco", "matching"]
# The one score that settings and checkpoints are chosen by.
MAIN_SCORE = {
  "sds": "ap_r_vol", "mnc": "ap_r_vol", "coco": "ap",
  "matching": "matching_0.5",
}  # fmt: skip
_AP = {"sds": protocols.SDS, "mnc": protocols.MNC, "coco": protocols.COCO}


class InstanceEvaluator:
  """Collects images, then scores them by a protocol.

  "sds": AP^r of Hariharan et al.: IoU > t, best uncovered true instance, all
  recall steps; AP^r_vol is the mean over t = 0.1 ... 0.9.
  "mnc": IoU >= t, best true instance (a false positive if it is taken),
  11 recalls. "coco": pycocotools with 100 predictions an image and category,
  void cut out of the predictions' masks, which COCO's own data do not have.
  "matching": one-to-one matching with the most pairs of IoU >= t, ties by
  total IoU; TP / (TP + FP + FN) of all predictions, whatever their score.
  A category without true instances has AP NaN and is left out of the mean.
  """

  def __init__(self, num_classes: int, protocol: Protocol = "sds"):
    """num_classes counts the background; categories are 1 and up."""
    if num_classes < 2:
      raise ValueError(
        f"num_classes is {num_classes}; it counts the background, so that one "
        "category makes 2."
      )
    self.num_classes = num_classes
    self.protocol = _checked(protocol)
    self.images: list[protocols.Image] = []

  def add(
    self,
    masks: Bool[Array, "m H W"]
    | Integer[Array, "m H W"]
    | Integer[Array, "H W"],
    classes: Integer[Array, "m"],
    scores: Float[Array, "m"],
    gt_masks: Bool[Array, "g H W"]
    | Integer[Array, "g H W"]
    | Integer[Array, "H W"],
    gt_classes: Integer[Array, "g"],
    void: Bool[Array, "_H _W"] | Integer[Array, "_H _W"] | None = None,
  ) -> None:
    """Adds one image.

    Masks one by one, which may overlap, or as a label map whose value k is
    instance k (0: none). True instances without a pixel are left out.
    Void pixels count neither way: they are cut out of all masks, and a
    prediction that is wrong at threshold t is forgiven if more than t of it
    lay there. (SDS and MNC know no void: pass None for their numbers.)
    """
    classes = self._categories("classes", classes)
    gt_classes = self._categories("gt_classes", gt_classes)
    scores = np.asarray(scores, np.float64)
    masks = _instances("masks", masks, len(classes))
    gt_masks = _instances("gt_masks", gt_masks, len(gt_classes))
    if masks.shape[-2:] != gt_masks.shape[-2:]:
      raise ValueError(
        f"masks are {masks.shape[-2:]} pixels and gt_masks "
        f"{gt_masks.shape[-2:]}; resize the masks to the image."
      )
    void = None if void is None else np.asarray(void, bool)
    if void is not None and void.shape != gt_masks.shape[-2:]:
      raise ValueError(
        f"void is of shape {void.shape}; expected {gt_masks.shape[-2:]}."
      )
    if scores.shape != classes.shape or np.isnan(scores).any():
      raise ValueError(
        f"scores have shape {scores.shape}; expected one number, not NaN, for "
        f"each of the {len(classes)} masks."
      )
    self.images.append(
      _reduce(masks, classes, scores, gt_masks, gt_classes, void)
    )

  def merge(self, other: "InstanceEvaluator") -> None:
    """Adds the images of another evaluator, say of another host."""
    if other.num_classes != self.num_classes:
      raise ValueError(
        f"other counts {other.num_classes} classes and this {self.num_classes};"
        " merge evaluators of the same data."
      )
    self.images.extend(other.images)

  def result(self, protocol: Protocol | None = None) -> dict:
    """Scores by name, by the evaluator's protocol or another one.

    sds, mnc: ap_r_0.5, ap_r_0.7, ap_r_vol. coco: ap, ap_0.5, ap_0.75. Each
    also as <name>_per_class, a list with category k at k - 1.
    matching: matching_<t>, matching_by_image_<t> (images with nothing to find
    and nothing found left out) and touching_recall_<t> for t = 0.5, 0.55 ...
    0.95; f1 and pq (all categories together) at 0.5; num_images,
    num_instances, num_touching.
    """
    protocol = _checked(self.protocol if protocol is None else protocol)
    if protocol == "matching":
      return protocols.matching_scores(self.images)
    ap = protocols.average_precision(
      self.images, self.num_classes, _AP[protocol]
    )
    if protocol == "coco":
      curves = {"ap": ap.mean(axis=0), "ap_0.5": ap[0], "ap_0.75": ap[5]}
    else:
      curves = {
        "ap_r_0.5": ap[4], "ap_r_0.7": ap[6], "ap_r_vol": ap.mean(axis=0)
      }  # fmt: skip
    result = {name: nanmean(values) for name, values in curves.items()}
    for name, values in curves.items():
      result[f"{name}_per_class"] = values.tolist()
    return result

  def _categories(self, name: str, classes) -> np.ndarray:
    classes = np.asarray(classes)
    wrong = classes[(classes < 1) | (classes >= self.num_classes)]
    if wrong.size:
      raise ValueError(
        f"{name} holds {wrong[0]}; expected 1 ... {self.num_classes - 1}: pass "
        "only valid instances, and count the background in num_classes."
      )
    return classes.astype(np.int64)


def connected_components(
  semantic: Integer[Array, "H W"],
  confidence: Float[Array, "H W"] | None = None,
  min_area: int = 1,
) -> tuple[
  Integer[np.ndarray, "H W"],
  Integer[np.ndarray, "m"],
  Float[np.ndarray, "m"],
]:
  """The plain alternative to voting: each connected region is one instance.

  Regions of one category, 8-neighbourhood, of at least min_area pixels, as a
  label map (which `InstanceEvaluator.add` takes for masks), categories and
  scores: the region's mean confidence, that is the probability of each pixel's
  own category, or 1 if not given. Classes 0 and 255 are none.
  """
  semantic = np.asarray(semantic)
  label_map = np.zeros(semantic.shape, np.int32)
  classes, scores = [], []
  for category in np.setdiff1d(semantic, [0, 255]):
    regions, count = ndimage.label(semantic == category, np.ones((3, 3)))
    area = np.bincount(regions.ravel(), minlength=count + 1)
    large = area >= min_area
    large[0] = False
    number = np.where(large, len(classes) + np.cumsum(large), 0)
    label_map += number[regions].astype(np.int32)
    total = area
    if confidence is not None:
      weights = np.asarray(confidence).ravel()
      total = np.bincount(regions.ravel(), weights, count + 1)
    classes.extend([int(category)] * np.count_nonzero(large))
    scores.extend((total / np.maximum(area, 1))[large].tolist())
  return label_map, np.array(classes, np.int64), np.array(scores, np.float64)


def _checked(protocol: str) -> Protocol:
  if protocol not in ("sds", "mnc", "coco", "matching"):
    raise ValueError(
      f"protocol is {protocol!r}; expected 'sds', 'mnc', 'coco' or 'matching'."
    )
  return protocol


def _instances(name: str, masks, count: int) -> np.ndarray:
  masks = np.asarray(masks)
  if masks.ndim != 3 and not (masks.ndim == 2 and masks.dtype.kind in "iu"):
    raise ValueError(
      f"{name} are {masks.dtype} of shape {masks.shape}; expected masks m H W"
      " (np.zeros((0, H, W)) for none), or a label map H W of integers."
    )
  found = len(masks) if masks.ndim == 3 else masks.max(initial=0)
  lowest = 0 if masks.ndim == 3 else masks.min(initial=0)
  if lowest < 0 or found > count or (masks.ndim == 3 and found < count):
    raise ValueError(
      f"{name} hold instance {lowest if lowest < 0 else found} and there are "
      f"{count} classes; expected one class for each instance, in order."
    )
  if masks.ndim == 2:
    return masks
  hard = masks.astype(bool, copy=False)
  if masks.dtype.kind == "f" and (masks != hard).any():
    raise ValueError(
      f"{name} are {masks.dtype} with values between 0 and 1, such as"
      f" {masks[masks != hard][0]:.4g}; say which pixels count: masks > 0.5."
    )
  return hard


def _reduce(
  masks, classes, scores, gt_masks, gt_classes, void
) -> protocols.Image:
  """The IoUs, void shares and neighbours of one image."""
  clear = np.ones(masks.shape[-2:], bool) if void is None else ~void
  truths = [
    (k, window, mask & clear[window]) for k, window, mask in _pieces(gt_masks)
  ]
  layers = _layers(truths, clear.shape)
  gt_area = np.zeros(len(gt_classes), np.int64)
  for k, _, mask in truths:
    gt_area[k] = np.count_nonzero(mask)
  void_share = np.zeros(len(classes))
  ious = lil_array((len(classes), len(gt_classes)))
  for k, window, mask in _pieces(masks):
    whole, mask = np.count_nonzero(mask), mask & clear[window]
    area = np.count_nonzero(mask)
    void_share[k] = 1 - area / whole
    for layer in layers:
      shared = np.bincount(layer[window][mask], minlength=1)
      truth = np.flatnonzero(shared[1:])
      truth = truth[gt_classes[truth] == classes[k]]
      inter = shared[1:][truth]
      ious[k, truth] = inter / (area + gt_area[truth] - inter)
  order = np.argsort(-scores, kind="stable")
  present = np.flatnonzero(gt_area)
  return protocols.Image(
    scores[order],
    classes[order],
    void_share[order],
    gt_classes[present],
    _touching(truths, layers, gt_classes)[present],
    ious.tocsr()[order][:, present].sorted_indices(),
  )


def _pieces(
  masks: np.ndarray,
) -> Iterator[tuple[int, tuple[slice, slice], Bool[np.ndarray, "y x"]]]:
  """(index, bounding window, mask within it) of each instance with pixels."""
  if masks.ndim == 2:
    for k, window in enumerate(ndimage.find_objects(masks)):
      if window is not None:
        yield k, window, masks[window] == k + 1
    return
  rows, columns = masks.any(axis=2), masks.any(axis=1)
  for k in np.flatnonzero(rows.any(axis=1)):
    window = _extent(rows[k]), _extent(columns[k])
    yield int(k), window, masks[k][window]


def _extent(line: Bool[np.ndarray, "n"]) -> slice:
  """From the first to the last true value."""
  return slice(int(line.argmax()), len(line) - int(line[::-1].argmax()))


def _layers(pieces, shape: tuple[int, int]) -> list[np.ndarray]:
  """Label maps that together hold all pieces: one if none overlap."""
  layers = []
  for k, window, mask in pieces:
    for layer in layers:
      if not layer[window][mask].any():
        break
    else:
      layer = np.zeros(shape, np.int32)
      layers.append(layer)
    layer[window][mask] = k + 1
  return layers


def _touching(pieces, layers, classes) -> Bool[np.ndarray, "g"]:
  """Instances with a pixel on or next to one of another of their category.

  Next to is the 8-neighbourhood.
  """
  layers = [np.pad(layer, 1) for layer in layers]
  result = np.zeros(len(classes), bool)
  for k, (y, x), mask in pieces:
    grown = slice(y.start, y.stop + 2), slice(x.start, x.stop + 2)
    around = ndimage.binary_dilation(np.pad(mask, 1), np.ones((3, 3)))
    for layer in layers:
      near = np.flatnonzero(np.bincount(layer[grown][around], minlength=1)[1:])
      result[k] |= bool((classes[near[near != k]] == classes[k]).any())
  return result
