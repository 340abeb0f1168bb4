"""What the grouping can be told, and what it tells."""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

from fcrn_jax.types import Array

Size = tuple[Any, Any]  # height and width, of int or symbolic dimensions
MASKS = ("boxes", "scores", "blocks", "full")
SEEDS = ("scores", "centers", "agreement")
# A setting is at least 0 and below this.
_LIMITS = {
  "score_floor": 1, "min_score": 1, "iou_threshold": 1, "region_overlap": 1,
  "min_extent": 1, "min_agreement": 1, "min_fill": math.inf,
  "min_area": math.inf,
}  # fmt: skip


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=[
    "score_floor",
    "min_score",
    "iou_threshold",
    "region_overlap",
    "min_area",
    "min_fill",
    "min_extent",
    "min_agreement",
  ],
  meta_fields=["num_masks", "max_instances", "room", "masks", "seeds"],
)
@dataclasses.dataclass(frozen=True)
class Options:
  """Settings of the grouping.

  Numbers that shape nothing are data to jit: a search over them compiles
  once. Paper: only num_masks (its n, no value given) and the any-pixel rule
  of region_overlap; every value here is ours.
  """

  # The paper's n. With 2, cells are found whose category is nearly the best:
  # AP gains a little, and by pixels near borders there are far more instances
  # that are none (nuclei, TP/(TP+FP+FN) 0.676 for 0.859).
  num_masks: int = 1
  score_floor: float | Array = 0.05  # of a candidate's score
  min_score: float | Array = 0.0  # of an instance's, the mean of its votes'
  iou_threshold: float | Array = 0.5  # of voting
  max_instances: int = 100
  # Slots while voting per slot of the result: fragments take some, too.
  room: int = 4
  region_overlap: float | Array = 0.0  # IoU of regions; 0 = any shared pixel
  min_area: float | Array = 0.0  # of a cluster, square pixels of the image
  # Pixels near a border predict poor boxes and make clusters of their own,
  # fragments. So the votes must fill this part of their box within the image,
  min_fill: float | Array = 0.05
  # and the box around the votes must have this IoU with it. Thin and hidden
  # objects fill little of their boxes, but reach from end to end.
  min_extent: float | Array = 0.4
  # What a pixel must exceed to have an owner: with masks "boxes" the IoU of its
  # box with the owner's, else the score of its cells that voted for it.
  min_agreement: float | Array = 0.0
  # boxes: a pixel goes to the hypothesis whose box its own agrees with best;
  # scores: to the cluster with the largest upsampled score; blocks: to the
  # cluster of its cell; full: voting at image resolution.
  masks: str = "boxes"
  # Whose box a cluster forms around: scores: the pixel with the best score;
  # centers: the best product of score and centre-ness, how near a pixel is to
  # the centre of its own box (FCOS); agreement: of score and the mean IoU of
  # its box with its neighbours'.
  seeds: str = "scores"

  def __post_init__(self):
    if self.masks not in MASKS:
      raise ValueError(f"masks is {self.masks!r}; expected one of {MASKS}.")
    if self.seeds not in SEEDS:
      raise ValueError(f"seeds is {self.seeds!r}; expected one of {SEEDS}.")
    for name in ("num_masks", "max_instances", "room"):
      value = getattr(self, name)
      if not isinstance(value, int | np.integer) or value < 1:
        raise ValueError(f"{name} is {value}; expected a whole number above 0.")
    for name, limit in _LIMITS.items():
      value = getattr(self, name)  # an array under jit
      if isinstance(value, int | float | np.number) and not 0 <= value < limit:
        raise ValueError(f"{name} is {value}; expected in [0, {limit}).")

  @classmethod
  def paper(cls) -> "Options":
    """The paper to the letter: nested masks, of which fragments stay; blocks
    on upsampled scores.
    """
    return cls(num_masks=2, min_fill=0.0, min_extent=0.0, masks="blocks")


class Hypotheses(NamedTuple):
  """What was found and why, sorted by falling score; `m` slots."""

  boxes: Float[Array, "m 4"]  # the seed's box
  classes: Int[Array, "m"]  # 1 ... C, 0 = empty slot
  scores: Float[Array, "m"]
  valid: Bool[Array, "m"]
  truncated: Bool[Array, ""]
  level: Int[Array, "m"]  # 0 ... n - 1: the nested mask it was found in
  seeds: Int[Array, "m 2"]  # cell (i, j) of the seed
  num_votes: Int[Array, "m"]  # cells that voted for it
  spread: Float[Array, "m"]  # RMS distance of their box centres, pixels
  fill: Float[Array, "m"]  # area of the votes / area of the box
  # owners[level, r]: the hypothesis of that level that owns each cell's r-th
  # best category, -1 = none
  owners: Int[Array, "k r h w"]
