"""Scores of category maps and of instance masks, in numpy alone."""

from fcrn_jax.metrics.instance import (
  MAIN_SCORE,
  InstanceEvaluator,
  connected_components,
)
from fcrn_jax.metrics.semantic import (
  CITYSCAPES,
  VOC,
  confusion,
  semantic_scores,
)

__all__ = [
  "CITYSCAPES",
  "MAIN_SCORE",
  "VOC",
  "InstanceEvaluator",
  "confusion",
  "connected_components",
  "semantic_scores",
]
