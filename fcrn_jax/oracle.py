"""Perfect maps in place of a network's: what limits the scores."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from scipy import ndimage

from fcrn_jax import instances
from fcrn_jax.data import transforms
from fcrn_jax.inference import Maps
from fcrn_jax.predictor import Predictor, Result, grouping
from fcrn_jax.types import IGNORE

Oracle = Literal["", "categories", "boxes", "both"]
Example = Mapping[str, Any]


def true_maps(
  example: Example,
  stride: int | float,
  num_categories: int,
  with_boxes: bool = True,
  shape: tuple[int, int] | None = None,
) -> Maps:
  """The maps of perfect networks: categories and full boxes at each cell.

  Where with_boxes says that the boxes are to be used, cells of no instance
  are background and have the box of the nearest one. shape: the cells h w of
  the maps, by default those that cover the image.
  """
  labels = np.where(example["semantic"] == IGNORE, 0, example["semantic"])
  cells = shape or [math.ceil(n / stride) for n in labels.shape]
  places = np.ix_(
    *(
      np.minimum((np.arange(number) + 0.5) * stride, n - 1).astype(int)
      for number, n in zip(cells, labels.shape, strict=True)
    )
  )
  labels, boxes = labels[places], None
  if with_boxes:
    owner = example["instances"][places]
    labels = np.where(owner > 0, labels, 0)
    table = transforms.instance_boxes(
      example["instances"], len(example["classes"])
    )
    table = np.concatenate([np.zeros((1, 4), np.float32), table])
    # A network goes on predicting a box beyond its instance's border.
    nearest = ndimage.distance_transform_edt(
      owner == 0, return_distances=False, return_indices=True
    )
    own = table[owner[tuple(nearest)]]
    boxes = np.repeat(own[:, :, None], num_categories, axis=2)
  return Maps(np.eye(num_categories + 1, dtype=np.float32)[labels], boxes)


def perfect_result(
  example: Example, stride: int | float, options: instances.Options
) -> Result:
  """What the grouping makes of perfect maps: its own limit at that stride."""
  # Only the categories that are there, lest 80 box maps fill the memory; and
  # room for a power of two, lest every number of them be compiled.
  semantic = example["semantic"]
  present = np.setdiff1d(semantic, [0, IGNORE])
  table = np.zeros(256, np.uint8)  # void is background, as in true_maps
  table[present] = np.arange(1, len(present) + 1)
  number = 1 << max(len(present) - 1, 0).bit_length()
  maps = true_maps({**example, "semantic": table[semantic]}, stride, number)
  result = grouping.group_one(maps, example["image"], options, stride, ())
  back = np.zeros(256, np.uint8)
  back[1 : len(present) + 1] = present
  result.semantic = back[result.semantic]
  result.classes = back[result.classes].astype(np.int32)
  return result


def oracle_maps(predictor: Predictor, example: Example, oracle: Oracle) -> Maps:
  """The predictor's maps, with the categories, boxes or both made true."""
  number = len(predictor.categories)
  if oracle == "both":
    return true_maps(example, predictor.stride, number)
  maps = predictor.maps(example["image"])
  if not oracle:
    return maps
  # Scaled to whole pixels, an image may have a cell more or less.
  true = true_maps(
    example,
    predictor.stride,
    number,
    oracle == "boxes",
    maps.probs.shape[:2],
  )
  if oracle == "categories":
    return Maps(true.probs, maps.boxes)
  known = true.probs[..., :1, None] == 0
  others = 0 if maps.boxes is None else maps.boxes
  return Maps(maps.probs, np.where(known, true.boxes, others))


def predict(
  predictor: Predictor, examples: Sequence[Example], oracle: Oracle
) -> list[Result]:
  """The predictor's results, with the categories, boxes or both made true."""
  if not oracle:
    return predictor.predict_batch([example["image"] for example in examples])
  if oracle == "both":
    results = [
      perfect_result(example, predictor.stride, predictor.options)
      for example in examples
    ]
    for result in results:  # for pictures of them
      result.categories = predictor.categories
      result.background = predictor.background
    return results
  return [
    predictor.group(oracle_maps(predictor, example, oracle), example["image"])
    for example in examples
  ]
