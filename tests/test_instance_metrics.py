"""Typed-out cases, naive loops over masks, and pycocotools."""

import pickle
import time

import jaxtyping
import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from scipy import ndimage
from scipy.sparse import csr_array

from fcrn_jax.metrics import (
  InstanceEvaluator,
  confusion,
  connected_components,
  instance,
)
from fcrn_jax.metrics.protocols import (
  coco_ap,
  eleven_point_ap,
  match,
  voc_ap,
)

TENTHS = [k / 10 for k in range(1, 10)]
HALVES = np.linspace(0.5, 0.95, 10)


def bars(*rows):
  """Masks of one row of pixels each, typed as strings: '.##..'."""
  masks = np.array([[c != "." for c in row] for row in rows], bool)
  return masks.reshape(len(rows), 1, len(rows[0]))


def evaluate(images, protocol, num_classes=2):
  evaluator = InstanceEvaluator(num_classes, protocol)
  for image in images:
    evaluator.add(*image)
  return evaluator.result()


def image(masks, scores, gt_masks, classes=None, gt_classes=None):
  return (
    masks,
    np.ones(len(masks), int) if classes is None else np.array(classes),
    np.array(scores, float),
    gt_masks,
    np.ones(len(gt_masks), int) if gt_classes is None else np.array(gt_classes),
  )


# ---- integration ---------------------------------------------------------


def test_average_precisions_of_a_typed_out_curve():
  # Two true instances; predictions right, wrong, right:
  # recall 1/2, 1/2, 1; precision 1, 1/2, 2/3; envelope 1, 2/3, 2/3.
  recall, precision = np.array([0.5, 0.5, 1]), np.array([1, 0.5, 2 / 3])
  assert voc_ap(recall, precision) == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
  # Recalls 0 ... 0.5 (six points) see 1, 0.6 ... 1 (five points) see 2/3.
  assert eleven_point_ap(recall, precision) == pytest.approx(
    (6 * 1 + 5 * 2 / 3) / 11
  )
  # Recalls 0 ... 0.50 (51 points) see 1, 0.51 ... 1 (50 points) see 2/3.
  assert coco_ap(recall, precision) == pytest.approx(
    (51 * 1 + 50 * 2 / 3) / 101
  )


def test_average_precisions_without_predictions():
  for integrate in (voc_ap, eleven_point_ap, coco_ap):
    assert integrate(np.zeros(0), np.zeros(0)) == 0


def test_eleven_points_inflate_a_low_score():
  # One of ten found, at once: area 0.1, but 0 and 0.1 are 2 of 11 points.
  recall, precision = np.array([0.1]), np.array([1.0])
  assert voc_ap(recall, precision) == pytest.approx(0.1)
  assert eleven_point_ap(recall, precision) == pytest.approx(2 / 11)


# ---- what sets the protocols apart ---------------------------------------


def test_an_exact_tie_counts_for_mnc_and_not_for_sds():
  # Intersection 2, union 4: IoU is 0.5 to the last bit.
  tie = [image(bars("##.."), [0.9], bars("####"))]
  assert evaluate(tie, "sds")["ap_r_0.5"] == 0
  assert evaluate(tie, "mnc")["ap_r_0.5"] == 1
  seven_of_ten = [image(bars("#######..."), [0.9], bars("##########"))]
  assert evaluate(seven_of_ten, "mnc")["ap_r_0.7"] == 1
  assert evaluate(seven_of_ten, "sds")["ap_r_0.7"] == 0
  assert evaluate(tie, "coco")["ap_0.5"] == pytest.approx(1)
  assert evaluate(tie, "matching")["matching_0.5"] == 1


def test_below_one_half_the_next_best_instance_is_free_for_sds():
  # The first prediction covers all of the left instance. The second overlaps
  # the left one (IoU 4/8) more than the right one (4/12): for MNC that is a
  # second hit of the same instance, for SDS it takes the right one.
  truth = bars("####............", "........########")
  found = bars("####............", "####....####....")
  images = [image(found, [0.9, 0.8], truth)]
  # t = 0.1, 0.2, 0.3: SDS 1, MNC half the recall at precision 1 (6 of 11).
  sds, mnc = evaluate(images, "sds"), evaluate(images, "mnc")
  assert sds["ap_r_vol"] == pytest.approx((3 * 1 + 6 * 0.5) / 9)
  assert mnc["ap_r_vol"] == pytest.approx(6 / 11)


def test_a_second_hit_is_a_false_positive():
  truth = bars("####..", "....##")
  found = bars("####..", "####..", "....##")
  images = [image(found, [0.9, 0.8, 0.7], truth)]
  # Right, wrong, right: the typed-out curve above.
  assert evaluate(images, "sds")["ap_r_0.5"] == pytest.approx(5 / 6)
  assert evaluate(images, "matching")["matching_0.5"] == pytest.approx(2 / 3)


def test_predictions_are_ranked_over_all_images():
  truth = bars("##")
  good, bad = bars("##"), bars("..")
  # Ranked: wrong (0.9), right (0.8), right (0.2), wrong (0.1).
  images = [
    image(np.concatenate([good, bad]), [0.8, 0.9], truth),
    image(np.concatenate([good, bad]), [0.2, 0.1], truth),
  ]
  # Precision 0, 1/2, 2/3, 2/4: the envelope is 2/3 throughout.
  assert evaluate(images, "sds")["ap_r_0.5"] == pytest.approx(2 / 3)


def test_among_equal_ious_coco_takes_the_last_instance_and_sds_the_first():
  truth = bars("####.", ".####")
  found = bars("#####", "####.")  # IoU 4/5 with both; 1 and 3/5
  images = [image(found, [0.9, 0.8], truth)]
  assert evaluate(images, "coco")["ap_0.75"] == pytest.approx(1)
  assert evaluate(images, "sds")["ap_r_0.7"] == pytest.approx(0.5)
  expected = run_pycocotools(images, HALVES, 2, 100, [0, 1e10])
  expected.accumulate()
  assert expected.eval["precision"][5].mean() == pytest.approx(1)


def test_categories_are_scored_apart_and_absent_ones_left_out():
  truth = bars("####..", "....##")
  images = [
    # The right pixels, but one instance with the wrong category.
    image(truth, [0.9, 0.8], truth, classes=[1, 3], gt_classes=[1, 2])
  ]
  result = evaluate(images, "sds", num_classes=5)
  np.testing.assert_array_equal(
    result["ap_r_0.5_per_class"], [1, 0, np.nan, np.nan]
  )
  assert result["ap_r_0.5"] == 0.5
  result = evaluate(images, "matching", num_classes=5)
  assert result["matching_0.5"] == pytest.approx(1 / 3)
  assert result["f1"] == pytest.approx(0.5)


# ---- matching ------------------------------------------------------------


def test_matching_prefers_more_pairs_to_better_pairs():
  # The diagonal has three pairs of total 1.5; the best pairs first, or the
  # best total, would be the two of IoU 1 below it.
  ious = csr_array(np.array([[0.5, 0, 0], [1, 0.5, 0], [0, 1, 0.5]]))
  pairs = {
    threshold: set(
      zip(*(p.tolist() for p in match(ious, threshold)), strict=True)
    )
    for threshold in (0.5, 0.55)
  }
  assert pairs == {0.5: {(0, 0), (1, 1), (2, 2)}, 0.55: {(1, 0), (2, 1)}}


def test_matching_prefers_five_pairs_to_four_twice_as_good():
  ious = csr_array(0.5 * np.eye(5) + np.eye(5, k=1))
  rows, columns = match(ious, 0.5)
  assert sorted(rows) == sorted(columns) == [0, 1, 2, 3, 4]


def test_matching_prefers_better_pairs_among_as_many():
  ious = csr_array(np.array([[0.7, 0.6], [0.6, 0.9]]))
  rows, columns = match(ious, 0.5)
  assert set(zip(rows.tolist(), columns.tolist(), strict=True)) == {
    (0, 0),
    (1, 1),
  }


def test_matching_counts_pooled_and_by_image():
  truth = bars("####......", "....####..")
  images = [
    image(bars("####......"), [0.5], truth),  # 1 found, 1 missed: 1/2
    image(truth, [0.5, 0.4], truth),  # 1
    image(bars("##........"), [0.5], bars("......####")),  # 0
    image(truth[:0], [], truth[:0]),
  ]
  result = evaluate(images, "matching")
  # tp 3, fp 1, fn 2; the image with nothing to find is left out of the mean.
  assert result["matching_0.5"] == pytest.approx(3 / 6)
  assert result["matching_by_image_0.5"] == pytest.approx((1 / 2 + 1 + 0) / 3)
  assert result["f1"] == pytest.approx(3 / (3 + 3 / 2))
  assert result["pq"] == pytest.approx(3 / (3 + 3 / 2))
  assert (result["num_images"], result["num_instances"]) == (4, 5)


def test_pq_is_f1_times_the_mean_iou_of_the_pairs():
  images = [image(bars("###."), [0.5], bars("####"))]
  result = evaluate(images, "matching")
  assert (result["f1"], result["pq"]) == (1, 0.75)
  assert result["matching_0.75"] == 1 and result["matching_0.8"] == 0


def test_recall_of_the_touching():
  truth = np.array(
    [
      [1, 1, 0, 2, 2, 0],
      [1, 1, 0, 2, 2, 0],
      [0, 0, 3, 0, 0, 4],  # 3 meets 1 and 2 at corners; 4 meets 2 at one
      [0, 0, 0, 0, 0, 0],
      [5, 6, 0, 0, 7, 7],  # 5 and 6 differ in category; 7 is alone
    ]
  )
  evaluator = InstanceEvaluator(3, "matching")
  classes = np.array([1, 1, 1, 2, 1, 2, 1])
  # Found: 1, 3, 7 (of the touching 1, 2, 3).
  found = np.where(np.isin(truth, [1, 3, 7]), truth, 0)
  evaluator.add(found, classes, np.ones(7), truth, classes)
  result = evaluator.result()
  assert result["num_touching"] == 3
  assert result["touching_recall_0.5"] == pytest.approx(2 / 3)


def test_instances_of_the_same_pixels_touch():
  evaluator = InstanceEvaluator(2, "matching")
  evaluator.add(*image(bars("#....")[:0], [], bars("..#..", "..#..", "#....")))
  assert evaluator.images[0].touching.tolist() == [True, True, False]


def naive_touching(masks, classes):
  around = [ndimage.binary_dilation(m, np.ones((3, 3))) for m in masks]
  return [
    any(
      j != i and classes[j] == classes[i] and (around[i] & masks[j]).any()
      for j in range(len(masks))
    )
    for i in range(len(masks))
  ]


# ---- random images against naive loops and pycocotools --------------------


def blobs(rng, count, shape, overlap):
  """Random discs, overlapping or as they remain under later ones."""
  y, x = np.mgrid[: shape[0], : shape[1]]
  masks = np.zeros((count, *shape), bool)
  for k in range(count):
    cy, cx = rng.uniform(0, shape[0]), rng.uniform(0, shape[1])
    ry, rx = rng.uniform(2, 9, 2)
    masks[k] = ((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 < 1
    if not overlap:
      masks[:k] &= ~masks[k]
  return masks[masks.any(axis=(1, 2))]


def random_images(seed, num_images=25, overlap=True, num_classes=4):
  rng = np.random.default_rng(seed)
  images = []
  for _ in range(num_images):
    shape = tuple(rng.integers(25, 45, 2))
    truth = blobs(rng, rng.integers(0, 9), shape, overlap)
    gt_classes = rng.integers(1, num_classes, len(truth))
    shifted = [np.roll(m, rng.integers(-1, 2, 2), (0, 1)) for m in truth]
    noise = blobs(rng, rng.integers(0, 6), shape, True)
    masks = np.concatenate([*(s[None] for s in shifted), noise])
    masks = masks.reshape(-1, *shape).astype(bool)
    classes = np.concatenate(
      [gt_classes, rng.integers(1, num_classes, len(noise))]
    )
    wrong = rng.random(len(classes)) < 0.1
    classes[wrong] = rng.integers(1, num_classes, wrong.sum())
    scores = rng.random(len(classes))
    scores[: len(truth)] += 0.4  # scores tell something
    images.append((masks, classes, scores, truth, gt_classes))
  return images


def all_ious(masks, truth):
  inter = np.einsum("phw,ghw->pg", masks.astype(int), truth.astype(int))
  return inter / (masks.sum((1, 2))[:, None] + truth.sum((1, 2)) - inter)


def without_ties(images):
  """Images where no IoU is a threshold or the same with two true instances.

  There the protocols differ by design.
  """
  kept = []
  for image in images:
    ious = all_ious(image[0], image[3])
    positive = [row[row > 0] for row in ious]
    same = any(len(set(row)) < len(row) for row in positive)
    if not same and np.abs(ious[..., None] - TENTHS).min(initial=1) > 1e-9:
      kept.append(image)
  return kept


def naive_ap(images, category, threshold, protocol):
  """Average precision, one prediction and one mask at a time."""
  ranked, num_truths = [], 0
  for masks, classes, scores, truth, gt_classes in images:
    truths = [
      m for m, c in zip(truth, gt_classes, strict=True) if c == category
    ]
    num_truths += len(truths)
    covered = set()
    for k in sorted(range(len(masks)), key=lambda k: -scores[k]):
      if classes[k] != category:
        continue
      best, best_iou = None, -1
      for g, other in enumerate(truths):
        if protocol == "sds" and g in covered:
          continue
        iou = (masks[k] & other).sum() / (masks[k] | other).sum()
        if iou > best_iou:
          best, best_iou = g, iou
      if protocol == "sds":
        right = best_iou > threshold
      else:
        right = best_iou >= threshold and best not in covered
      if right:
        covered.add(best)
      ranked.append((scores[k], right))
  if not num_truths:
    return np.nan
  ranked.sort(key=lambda pair: -pair[0])
  curve, hits = [], 0
  for n, (_, right) in enumerate(ranked, 1):
    hits += right
    curve.append((hits / num_truths, hits / n))
  if protocol == "mnc":
    points = np.arange(0, 1.1, 0.1)
    return (
      sum(max([p for r, p in curve if r >= t], default=0) for t in points) / 11
    )
  total, previous = 0.0, 0.0
  for k, (recall, _) in enumerate(curve):
    total += (recall - previous) * max(p for _, p in curve[k:])
    previous = recall
  return total


@pytest.mark.parametrize("protocol", ["sds", "mnc"])
@pytest.mark.parametrize("overlap", [True, False])
def test_average_precision_equals_a_naive_loop(protocol, overlap):
  images = random_images(1, overlap=overlap)
  result = evaluate(images, protocol, num_classes=5)
  table = np.array(
    [[naive_ap(images, c, t, protocol) for c in range(1, 5)] for t in TENTHS]
  )
  assert 0.2 < table[4, 0] < 0.9  # the case is neither hopeless nor trivial
  for name, expected in [
    ("ap_r_0.5", table[4]),
    ("ap_r_0.7", table[6]),
    ("ap_r_vol", table.mean(axis=0)),
  ]:
    np.testing.assert_allclose(result[f"{name}_per_class"], expected)
    assert result[name] == pytest.approx(np.nanmean(expected))


def run_pycocotools(images, thresholds, num_classes, max_predictions, area):
  def encode(mask):
    return coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))

  data = {"images": [], "annotations": [], "info": {}}
  data["categories"] = [{"id": c} for c in range(1, num_classes)]
  found = []
  for i, (masks, classes, scores, truth, gt_classes) in enumerate(images):
    height, width = truth.shape[1:]
    data["images"].append({"id": i, "height": height, "width": width})
    for mask, category in zip(truth, gt_classes, strict=True):
      rle = encode(mask)
      data["annotations"].append(
        {
          "id": len(data["annotations"]) + 1,
          "image_id": i,
          "category_id": int(category),
          "segmentation": rle,
          "area": float(coco_mask.area(rle)),
          "bbox": list(coco_mask.toBbox(rle)),
          "iscrowd": 0,
        }
      )
    for mask, category, score in zip(masks, classes, scores, strict=True):
      found.append(
        {
          "image_id": i,
          "category_id": int(category),
          "segmentation": encode(mask),
          "score": float(score),
        }
      )
  truth = COCO()
  truth.dataset = data
  truth.createIndex()
  evaluation = COCOeval(truth, truth.loadRes(found), "segm")
  evaluation.params.iouThrs = np.array(thresholds)
  evaluation.params.maxDets = [max_predictions]
  evaluation.params.areaRng = [area]
  evaluation.params.areaRngLbl = ["all"]
  evaluation.evaluate()
  return evaluation


@pytest.mark.parametrize("overlap", [True, False])
def test_sds_equals_pycocotools_matches(overlap):
  images = without_ties(random_images(2, num_images=60, overlap=overlap))
  assert len(images) > 15
  evaluation = run_pycocotools(images, TENTHS, 4, 100000, [0, 1e10])
  expected = np.full((9, 3), np.nan)
  for c in range(3):
    parts = [
      e
      for e in evaluation.evalImgs
      if e is not None and e["category_id"] == c + 1
    ]
    scores = np.concatenate([p["dtScores"] for p in parts])
    hits = np.concatenate([p["dtMatches"] for p in parts], axis=1) > 0
    num_truths = sum(len(p["gtIds"]) for p in parts)
    order = np.argsort(-scores, kind="stable")
    for t in range(9):
      cumulative = np.cumsum(hits[t, order])
      expected[t, c] = voc_ap(
        cumulative / num_truths, cumulative / np.arange(1, len(order) + 1)
      )
  result = evaluate(images, "sds", num_classes=4)
  np.testing.assert_allclose(result["ap_r_0.5_per_class"], expected[4])
  np.testing.assert_allclose(result["ap_r_0.7_per_class"], expected[6])
  np.testing.assert_allclose(result["ap_r_vol_per_class"], expected.mean(0))


@pytest.mark.parametrize("ties", [False, True])
def test_coco_equals_pycocotools(ties):
  images = random_images(3, num_images=40)
  if ties:  # equal scores, within images and between them
    images = [(m, c, np.round(s, 1), *rest) for m, c, s, *rest in images]
  evaluation = run_pycocotools(images, HALVES, 4, 100, [0, 1e10])
  evaluation.accumulate()
  precision = evaluation.eval["precision"][..., 0, 0]  # t recall c
  expected = precision.mean(axis=1)
  result = evaluate(images, "coco", num_classes=4)
  np.testing.assert_allclose(result["ap_per_class"], expected.mean(axis=0))
  np.testing.assert_allclose(result["ap_0.5_per_class"], expected[0])
  np.testing.assert_allclose(result["ap_0.75_per_class"], expected[5])
  assert 0.1 < result["ap"] < 0.9


def test_coco_keeps_the_hundred_best_of_each_category():
  truth = bars("##")
  found = np.concatenate([np.repeat(bars(".."), 100, axis=0), truth])
  scores = np.linspace(1, 0.5, 101)
  assert evaluate([image(found, scores, truth)], "coco")["ap"] == 0
  assert evaluate([image(found, scores, truth)], "sds")["ap_r_0.5"] > 0


@pytest.mark.parametrize("overlap", [True, False])
def test_touching_equals_dilation(overlap):
  for masks, _, _, truth, gt_classes in random_images(4, overlap=overlap):
    evaluator = InstanceEvaluator(4, "matching")
    evaluator.add(masks[:0], np.zeros(0, int), np.zeros(0), truth, gt_classes)
    assert evaluator.images[0].touching.tolist() == naive_touching(
      truth, gt_classes
    )


def naive_best_count(ious, threshold):
  """Size of the largest matching, by augmenting paths."""
  owner = {}

  def place(p, seen):
    for g in np.flatnonzero(ious[p] >= threshold):
      if g not in seen:
        seen.add(g)
        if g not in owner or place(owner[g], seen):
          owner[g] = p
          return True
    return False

  return sum(place(p, set()) for p in range(len(ious)))


def test_matching_equals_augmenting_paths():
  images = random_images(5, num_images=30)
  images = [
    (np.concatenate([m, m]), np.tile(c, 2), np.tile(s, 2), t, g)
    for m, c, s, t, g in images
  ]
  counts = {0.5: np.zeros(3, int), 0.7: np.zeros(3, int)}
  for masks, classes, _, truth, gt_classes in images:
    ious = all_ious(masks, truth) * (classes[:, None] == gt_classes)
    for threshold, count in counts.items():
      tp = naive_best_count(ious, threshold)
      count += [tp, len(masks) - tp, len(truth) - tp]
  result = evaluate(images, "matching", num_classes=4)
  for threshold, count in counts.items():
    assert result[f"matching_{threshold}"] == pytest.approx(
      count[0] / count.sum()
    )


# ---- inputs --------------------------------------------------------------


def as_label_map(masks):
  return (masks * np.arange(1, len(masks) + 1)[:, None, None]).sum(
    axis=0, dtype=np.int32
  )


@pytest.mark.parametrize("protocol", ["sds", "mnc", "coco", "matching"])
def test_label_maps_give_the_same_as_masks(protocol):
  images = []
  for masks, classes, scores, truth, gt_classes in random_images(
    6, overlap=False
  ):
    for k in range(1, len(masks)):
      masks[k] &= ~masks[:k].any(axis=0)
    images.append((masks, classes, scores, truth, gt_classes))
  maps = [
    (as_label_map(m), c, s, as_label_map(t).astype(np.uint16), g)
    for m, c, s, t, g in images
  ]
  np.testing.assert_equal(
    evaluate(maps, protocol, 4), evaluate(images, protocol, 4)
  )


@pytest.mark.parametrize("protocol", ["sds", "coco", "matching"])
def test_merged_and_pickled_states_equal_the_whole(protocol):
  images = random_images(7)
  parts = [InstanceEvaluator(4, protocol) for _ in range(2)]
  for k, one in enumerate(images):
    parts[k >= 10].add(*one)
  whole = pickle.loads(pickle.dumps(parts[0]))
  whole.merge(pickle.loads(pickle.dumps(parts[1])))
  expected = evaluate(images, protocol, 4)
  np.testing.assert_equal(whole.result(), expected)
  with pytest.raises(ValueError, match="other counts 3 classes"):
    whole.merge(InstanceEvaluator(3, protocol))


def test_another_protocol_can_be_read_from_the_same_state():
  images = random_images(8)
  evaluator = InstanceEvaluator(4, "sds")
  for one in images:
    evaluator.add(*one)
  np.testing.assert_equal(
    evaluator.result("matching"), evaluate(images, "matching", 4)
  )


def test_void_counts_neither_way():
  truth = bars("####......")
  found = bars("######....", "........##")
  void = np.array([[c == "v" for c in "....vv..vv"]])
  one = image(found, [0.9, 0.8], truth)
  # With the void, the first is exact and the second lies in nothing but void.
  result = evaluate([(*one, void)], "matching")
  assert result["matching_0.95"] == 1
  assert evaluate([(*one, void)], "sds")["ap_r_vol"] == 1
  # Without it, the first has IoU 4/6 and the second is wrong.
  assert evaluate([one], "matching")["matching_0.5"] == pytest.approx(1 / 2)
  # A true instance of nothing but void is not there.
  hidden = image(found[:0], [], bars("....##...."))
  assert evaluate([(*hidden, void)], "matching")["num_instances"] == 0


def test_a_prediction_half_in_the_void_is_forgiven_below_half():
  void = np.array([[False, False, True, True, True]])
  one = image(bars(".####"), [0.9], bars("#...."))
  # 3/4 of the wrong prediction lies in void: forgiven at t < 0.75.
  result = evaluate([(*one, void)], "matching")
  assert result["matching_0.7"] == 0 and result["matching_0.8"] == 0
  evaluator = InstanceEvaluator(2, "matching")
  evaluator.add(*one, void)
  assert evaluator.images[0].void.tolist() == [0.75]
  # One miss only, then one miss and one false positive.
  images = [(*one, void), image(bars("#...."), [0.5], bars("#...."))]
  result = evaluate(images, "matching")
  assert result["matching_0.7"] == pytest.approx(1 / 2)
  assert result["matching_0.8"] == pytest.approx(1 / 3)


def test_a_wrong_prediction_in_the_void_does_not_lower_precision():
  # The better one is wrong, and half of it is void: forgiven below 0.5, so
  # that the right one is the first; from 0.5 on it is the second of two.
  one = image(bars("......####", "####......"), [0.9, 0.8], bars("####......"))
  void = np.array([[c == "v" for c in "........vv"]])
  found = evaluate([(*one, void)], "sds")
  assert found["ap_r_0.5"] == pytest.approx(1 / 2)
  assert found["ap_r_vol"] == pytest.approx((4 * 1 + 5 / 2) / 9)
  assert evaluate([(*one, void)], "matching")["matching_0.5"] == 1 / 2


def test_void_stays_with_its_prediction_where_coco_drops_some():
  # 101 of category 1, the last of which is dropped; of category 2 one in the
  # void, which is forgiven, and then the true one.
  found = np.concatenate(
    [bars("##......")] * 101 + [bars("......##", "..##....")]
  )
  classes, scores = [1] * 101 + [2, 2], np.linspace(1, 0, 103)
  one = image(found, scores, bars("..##...."), classes, [2])
  void = np.array([[c == "v" for c in "......vv"]])
  assert evaluate([(*one, void)], "coco", 3)["ap_per_class"][1] == 1


def test_no_image_and_empty_images():
  for protocol in ("sds", "mnc", "coco", "matching"):
    assert InstanceEvaluator(3, protocol).result()
  nothing = np.zeros((0, 4, 4), bool)
  result = evaluate([image(nothing, [], nothing)], "sds")
  assert np.isnan(result["ap_r_0.5"])
  # Something true and nothing found scores 0; the reverse scores nothing.
  some = np.ones((1, 4, 4), bool)
  assert evaluate([image(nothing, [], some)], "sds")["ap_r_vol"] == 0
  assert np.isnan(evaluate([image(some, [0.5], nothing)], "sds")["ap_r_vol"])
  assert (
    evaluate([image(some, [0.5], nothing)], "matching")["matching_0.5"] == 0
  )


@pytest.mark.parametrize(
  "change, message",
  [
    ({"classes": np.array([0])}, "classes holds 0; expected 1 ... 2"),
    ({"classes": np.array([3])}, "classes holds 3"),
    ({"gt_classes": np.array([3])}, "gt_classes holds 3"),
    ({"classes": np.array([1, 1])}, "there are 2 classes"),
    ({"masks": np.full((4, 4), 2)}, "masks hold instance 2 and there are 1"),
    ({"masks": np.full((4, 4), -1)}, "masks hold instance -1"),
    ({"masks": np.ones((1, 8, 8), bool)}, r"masks are \(8, 8\) pixels"),
    ({"scores": np.array([np.nan])}, "not NaN"),
    ({"scores": np.array([0.5, 0.5])}, "scores"),
  ],
)
def test_mistakes_are_named(change, message):
  mask = np.ones((1, 4, 4), bool)
  given = {
    "masks": mask,
    "classes": np.array([1]),
    "scores": np.array([0.5]),
    "gt_masks": mask,
    "gt_classes": np.array([2]),
  }
  with pytest.raises((ValueError, TypeError)) as error:
    InstanceEvaluator(3).add(**{**given, **change})
  if error.type is ValueError:
    error.match(message)


def test_wrong_settings_are_named():
  with pytest.raises((ValueError, TypeError)):
    InstanceEvaluator(3, "voc")
  with pytest.raises(ValueError, match="counts the background"):
    InstanceEvaluator(1)


def grid_of_nuclei(size, count):
  side = int(np.ceil(np.sqrt(count)))
  pitch = size // side
  label_map = np.zeros((size, size), np.int32)
  for k in range(count):
    y, x = divmod(k, side)
    label_map[
      y * pitch : (y + 1) * pitch, x * pitch : (x + 1) * pitch - x % 2
    ] = k + 1
  return label_map


def test_hundreds_of_instances_take_seconds():
  truth = grid_of_nuclei(1024, 400)
  found = np.roll(truth, 3, axis=1)
  classes, scores = np.ones(400, int), np.linspace(0, 1, 400)
  masks = found[None] == np.arange(1, 401)[:, None, None]
  evaluator = InstanceEvaluator(2, "matching")
  start = time.process_time()
  evaluator.add(found, classes, scores, truth, classes)
  evaluator.add(masks, classes, scores, truth, classes)
  assert evaluator.result()["matching_0.5"] > 0.9
  assert evaluator.result("sds")["ap_r_0.5"] > 0.9
  assert time.process_time() - start < 5
  assert len(pickle.dumps(evaluator)) < 200_000


# ---- baseline ------------------------------------------------------------


def test_connected_components_of_a_typed_out_map():
  semantic = np.array(
    [
      [1, 1, 0, 2],
      [0, 0, 1, 2],  # the third 1 meets the first two at a corner
      [255, 0, 0, 0],
      [1, 0, 2, 0],
    ],
    np.uint8,
  )
  label_map, classes, scores = connected_components(semantic)
  np.testing.assert_array_equal(
    label_map, [[1, 1, 0, 3], [0, 0, 1, 3], [0, 0, 0, 0], [2, 0, 4, 0]]
  )
  np.testing.assert_array_equal(classes, [1, 1, 2, 2])
  np.testing.assert_array_equal(scores, [1, 1, 1, 1])
  confidence = np.full((4, 4), 0.75, np.float32)
  confidence[0, :2] = 1, 0.25
  confidence[1, 2] = 0.25
  label_map, classes, scores = connected_components(
    semantic, confidence, min_area=2
  )
  np.testing.assert_array_equal(
    label_map, [[1, 1, 0, 2], [0, 0, 1, 2], [0, 0, 0, 0], [0, 0, 0, 0]]
  )
  np.testing.assert_array_equal(classes, [1, 2])
  np.testing.assert_allclose(scores, [0.5, 0.75])


def test_connected_components_are_evaluated_as_they_are():
  truth = grid_of_nuclei(60, 9)
  evaluator = InstanceEvaluator(2, "matching")
  found = connected_components((truth > 0).astype(np.uint8))
  evaluator.add(*found, truth, np.ones(9, int))
  # Nuclei that touch become one region: here nothing but one.
  assert evaluator.result()["matching_0.5"] < 0.5
  nothing = connected_components(np.zeros((60, 60), np.uint8))
  evaluator.add(*nothing, truth, np.ones(9, int))


@pytest.mark.parametrize("dtype", [np.uint8, np.int32])
def test_stacks_of_numbers_are_masks_and_void_is_checked(dtype):
  truth = bars("##..", "..##")
  evaluator = InstanceEvaluator(2, "sds")
  images = image(truth.astype(dtype), [0.9, 0.8], truth.astype(dtype))
  evaluator.add(*images, void=np.zeros((1, 4), np.uint8))
  assert evaluator.result()["ap_r_0.5"] == 1
  with pytest.raises(ValueError, match=r"void is of shape \(2, 4\)"):
    evaluator.add(*images, void=np.zeros((2, 4), bool))


@pytest.mark.parametrize(
  "masks", [np.zeros((4, 4), bool), [], np.zeros((4, 4))]
)
def test_masks_of_no_known_form_are_named(masks):
  # Of the evaluator, whose types are checked before, in tests alone.
  with pytest.raises(ValueError, match=r"masks are .*expected masks m H W"):
    instance._instances("masks", masks, 0)


@pytest.fixture
def no_types():
  jaxtyping.config.update("jaxtyping_disable", True)  # as callers have it
  yield
  jaxtyping.config.update("jaxtyping_disable", False)


def test_soft_masks_are_refused(no_types):
  truth, classes = np.zeros((1, 4, 4)), np.array([1])
  truth[0, :2] = 1
  evaluator = InstanceEvaluator(2)
  evaluator.add(truth, classes, np.array([0.9]), truth, classes)
  assert evaluator.result()["ap_r_vol"] == 1  # whole numbers are clear
  soft = np.maximum(truth, 0.1)
  with pytest.raises(ValueError, match=r"such as 0.1; .* masks > 0.5"):
    evaluator.add(soft, classes, np.array([0.9]), truth, classes)


def test_scores_are_no_category_map(no_types):
  labels = np.array([0, 1, 1])
  for pair in ((labels, labels * 0.7), (labels * 0.7, labels)):
    with pytest.raises(ValueError, match="float64; expected integers"):
      confusion(*pair, 2)
