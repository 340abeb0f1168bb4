"""What grouping makes of perfect maps at each stride: its own limit.

  python -m experiments.benchmark --what=oracle --set=images=60

True categories and true boxes of each cell, see fcrn_jax.oracle, on
shapes and on the samples in $FCRN_DATA (default ../shared/data) that are
there. `small` is the share of the instances missed at IoU 0.5 that have less
than four cells, `same_box` that of those whose box overlaps another one of
their category with IoU above 0.5: what no grouping of these maps can tell
apart. Options: images, strides (joined by "+"); with pictures=DIR the worst
images are drawn there.
"""

import os
import pathlib

import numpy as np

from fcrn_jax import boxes as box_algebra
from fcrn_jax import data, instances, metrics, oracle, scoring, visualize
from fcrn_jax.data import transforms
from fcrn_jax.metrics import protocols
from fcrn_jax.types import IGNORE

_ROOT = pathlib.Path(os.environ.get("FCRN_DATA", "../shared/data"))
_SOURCES = {
  "shapes": ("shapes", "val", None),
  "nuclei": ("folder", "val_fluo", _ROOT / "nuclei"),
  "voc": ("folder", "train", _ROOT / "voc2012_sample/VOCdevkit/VOC2012"),
  "coco": ("coco", "sample", _ROOT / "coco_sample"),
}

OPTIONS = {"images": "200", "strides": "1+2+4+8", "pictures": ""}


def run(options: dict[str, str]) -> list[dict]:
  """One row per data set and stride."""
  number = int(options["images"])
  strides = [int(s) for s in options["strides"].split("+")]
  grouping = instances.Options(max_instances=400)
  rows = []
  for name, (kind, split, path) in _SOURCES.items():
    if path is not None and not path.is_dir():
      print(f"{name} left out: no {path}")
      continue
    dataset = data.load(kind, split, path)
    examples = [dataset[i] for i in range(min(number, len(dataset)))]
    for stride in strides:
      row, worst = _row(examples, dataset, stride, grouping)
      if options["pictures"] and worst:
        folder = pathlib.Path(options["pictures"])
        _draw(folder / f"{name}_stride{stride}.png", *worst)
      rows.append({"data": name, "images": len(examples), **row})
  return rows


def _row(examples, dataset, stride, options):
  """The row, and the example and result that miss the largest share."""
  evaluator = metrics.InstanceEvaluator(len(dataset.categories) + 1)
  missed, total, worst = [], 0, (1, None)
  for example in examples:
    result = oracle.perfect_result(example, stride, options)
    scoring.add_instances(evaluator, result, example, count_void=False)
    lost = _missed(example, evaluator.images[-1], stride)
    number = len(example["classes"])
    total += number
    missed += lost
    if number and 1 - len(lost) / number < worst[0]:
      worst = 1 - len(lost) / number, (example, result)
  scores = evaluator.result("sds") | evaluator.result("matching")
  missed = np.array(missed or [(0, 0)])
  return {
    "stride": stride,
    "instances": total,
    **{
      key: float(scores[key])
      for key in ("ap_r_0.5", "ap_r_0.7", "matching_0.5", "matching_0.7")
    },
    "small": float(missed[:, 0].mean()),
    "same_box": float(missed[:, 1].mean()),
  }, worst[1]


def _draw(path, example, result):
  path.parent.mkdir(parents=True, exist_ok=True)
  image, true = example["image"], example["instances"]
  scale = visualize.zoom(image.shape)
  pictures = [
    visualize.instances(image, true, example["classes"], scale=scale),
    visualize.overlay(image, result, scale),
    visualize.errors(image, result.label_map, true, scale=scale),
  ]
  titles = ["truth", "grouped", "green right, red wrong, yellow missed"]
  visualize.save(path, visualize.panel(pictures, titles))


def _missed(example, image, stride):
  """(small, same box) of the true instances that no mask meets at IoU 0.5.

  image: the example as the evaluator keeps it, without what is all void.
  """
  known = example["instances"][example["semantic"] != IGNORE]
  areas = np.bincount(known, minlength=len(example["classes"]) + 1)[1:]
  boxes = transforms.instance_boxes(example["instances"], len(areas))
  overlaps = box_algebra.iou(boxes[:, None], boxes[None])
  np.fill_diagonal(overlaps, 0)
  same = example["classes"][:, None] == example["classes"][None]
  shared = np.where(same, overlaps, 0).max(axis=1, initial=0)
  _, found = protocols.match(image.ious, 0.5)
  lost = np.delete(np.flatnonzero(areas), found)
  return [(areas[i] < 4 * stride**2, shared[i] > 0.5) for i in lost]
