"""Scores of category maps and of instance masks, in numpy alone."""

from fcrn_jax.metrics.instance import InstanceEvaluator, connected_components
from fcrn_jax.metrics.semantic import (
  CITYSCAPES,
  VOC,
  confusion,
  semantic_scores,
)

__all__ = [
  "CITYSCAPES",
  "VOC",
  "InstanceEvaluator",
  "confusion",
  "connected_components",
  "semantic_scores",
]
