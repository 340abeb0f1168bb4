"""Semantic and instance segmentation with dilated FCRNs in JAX.

The public names, imported on first use so that data-loading processes stay
free of JAX.
"""

import importlib

__version__ = "0.1.0"

_MODULES = (
  "boxes", "checkpoint", "cpu", "data", "evaluation", "export", "inference",
  "instances", "losses", "metrics", "models", "oracle", "predictor",
  "training", "types", "visualize",
)  # fmt: skip
_NAMES = {
  "IGNORE": "types",
  "Batch": "types",
  "Instances": "types",
  "Preprocessing": "types",
  "Predictor": "predictor",
  "Result": "predictor",
  "train_and_evaluate": "training.loop",
}
__all__ = [*_MODULES, *_NAMES]


def __getattr__(name: str):
  if name in _MODULES:
    return importlib.import_module(f"fcrn_jax.{name}")
  if name in _NAMES:
    module = importlib.import_module(f"fcrn_jax.{_NAMES[name]}")
    return getattr(module, name)
  raise AttributeError(f"module 'fcrn_jax' has no attribute {name!r}")


def __dir__():
  return sorted(__all__)
