"""The scores of many images, summed image by image; see evaluation."""

import math
from typing import Any

import numpy as np

from fcrn_jax import metrics
from fcrn_jax.metrics import protocols
from fcrn_jax.oracle import Example
from fcrn_jax.predictor import Result
from fcrn_jax.types import IGNORE


class Scores:
  """Sums over images, from which all scores are computed at the end.

  has_instances: of the data; finds_instances: whether the results have any,
  lest those of a network without boxes count as instances that it missed.
  """

  def __init__(
    self,
    num_classes: int,
    has_instances: bool,
    protocol: str,
    finds_instances: bool = True,
  ):
    self.confusion = np.zeros((num_classes, num_classes), np.int64)
    self.by_image: dict[str, float] = {}
    self.protocol = protocol
    self.ours = self.components = None
    if has_instances:
      self.components = metrics.InstanceEvaluator(num_classes)
    if has_instances and finds_instances:
      self.ours = metrics.InstanceEvaluator(num_classes, protocol)

  def add(self, result: Result, example: Example, count_void: bool) -> None:
    """Adds one image; see add_instances."""
    labels = np.asarray(example["semantic"])
    num_classes = len(self.confusion)
    matrix = metrics.confusion(labels, result.semantic, num_classes)
    self.confusion += matrix
    if self.ours is None:
      right, pixels = float(np.trace(matrix)), int(matrix.sum())
      self.by_image[example["id"]] = right / pixels if pixels else math.nan
    else:
      add_instances(self.ours, result, example, count_void)
      alone = protocols.matching_scores(self.ours.images[-1:])
      self.by_image[example["id"]] = alone["matching_0.5"]
    if self.components is not None:
      found = metrics.connected_components(result.semantic, result.confidence)
      self.components.add(*found, *_truth(example, count_void))

  def merge(self, other: "Scores") -> None:
    """Adds another host's images; ValueError for one that both have."""
    if both := sorted(self.by_image.keys() & other.by_image.keys()):
      raise ValueError(
        f"two processes scored {len(both)} images both, such as {both[0]}:"
        " their shares overlap, or the data set lists an image twice."
      )
    self.confusion += other.confusion
    self.by_image |= other.by_image
    for mine, theirs in (
      (self.ours, other.ours), (self.components, other.components)
    ):  # fmt: skip
      if mine is not None:
        mine.merge(theirs)

  def worst(self, number: int) -> list[str]:
    """The images of the lowest matching at 0.5, or else pixel accuracy."""
    known = {k: v for k, v in self.by_image.items() if not math.isnan(v)}
    return sorted(known, key=lambda key: (known[key], key))[:number]

  def result(
    self,
    names: tuple[str, ...],
    absent_class: str,
  ) -> dict[str, float]:
    """All scores by name; those of connected components with a prefix.

    names are those of the labels, 0 included.
    """
    scores = _flat(
      metrics.semantic_scores(self.confusion, absent_class), "iou", names
    )
    for prefix, evaluator in (
      ("", self.ours), ("components_", self.components)
    ):  # fmt: skip
      if evaluator is None:
        continue
      found = {}
      for protocol in dict.fromkeys(("sds", self.protocol, "matching")):
        found |= evaluator.result(protocol)
      for name in [name for name in found if name.endswith("_per_class")]:
        found = _flat(found, name, names[1:])
      scores |= {prefix + name: value for name, value in found.items()}
    return scores


def add_instances(
  evaluator: metrics.InstanceEvaluator,
  result: Result,
  example: Example,
  count_void: bool,
) -> None:
  """Adds one image; count_void: mask pixels on void are not left out."""
  masks = result.layers[0] if len(result.layers) == 1 else result.masks
  truth = _truth(example, count_void)
  evaluator.add(masks, result.classes, result.scores, *truth)


def _truth(example, count_void):
  void = np.asarray(example["semantic"]) == IGNORE
  void = void if void.any() and not count_void else None
  return example["instances"], example["classes"], void


def counts_void(dataset: Any) -> bool:
  """Whether void pixels count as mistakes of a mask, as in SDS's protocol.

  It is of SBD's annotation, which has no void; VOC's has void borders.
  """
  return dataset.name == "voc2012_sbd" and dataset.split.startswith("sbd")


def _flat(scores, name, labels):
  """Replaces a list under `name` by one value for each label."""
  scores = dict(scores)
  values = scores.pop(name)
  stem = name.removesuffix("_per_class")
  scores |= {
    f"{stem}_{label}": v for label, v in zip(labels, values, strict=True)
  }
  return scores
