"""What a config says to the training, refused before a run is started."""

import operator
from typing import Any

import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from fcrn_jax import evaluation, inference, instances, losses
from fcrn_jax.data import pipeline
from fcrn_jax.models import FCRN
from fcrn_jax.predictor import loading
from fcrn_jax.training import step
from fcrn_jax.types import IGNORE

_ENOUGH = 16  # images without a label to be warned of (ours)


def check(config: ConfigDict, model: FCRN, train_data: Any) -> None:
  """ValueError for a setting that the training or its evaluation refuses.

  Those of the evaluation count, too: a slip there must not cost a training.
  """
  _check_range(config)
  heads = config.model.heads
  if "boxes" in heads and not train_data.has_instances:
    raise ValueError(
      f"{train_data.name} {train_data.split!r} has no instances to learn boxes"
      " from; set --config.model.heads='(\"semantic\",)', or add"
      " SegmentationObject."
    )
  if config.eval_every and "semantic" not in heads:
    raise ValueError(
      "config.eval_every needs a network of categories; set it to 0."
    )
  crop = tuple(config.data.crop)
  if len(crop) != 2 or min(crop) < 1:
    raise ValueError(
      f"config.data.crop is {crop}; expected height and width in pixels, such"
      " as '(320, 320)'."
    )
  parts = jax.device_count() * config.accumulate
  if config.batch_size % parts:
    raise ValueError(
      f"config.batch_size is {config.batch_size}; expected a multiple of"
      f" {parts}: config.accumulate={config.accumulate} parts on each of"
      f" {jax.device_count()} devices."
    )
  if config.accumulate > 1 and config.loss.scope != "crop":
    raise ValueError(
      f"config.loss.scope is {config.loss.scope!r} and config.accumulate"
      f" {config.accumulate}; hard pixels can be sought in all images of a"
      " batch only if they are there at once. Set one to 'crop' or 1."
    )
  loading.fill(instances.Options, config.instances)
  inference.check_options(
    model.stride, loading.fill(inference.Options, config.inference)
  )
  if config.num_steps <= config.optim.warmup_steps:
    logging.warning(
      "config.optim.warmup_steps=%d is not over at config.num_steps=%d: the"
      " learning rate stays below config.optim.lr",
      config.optim.warmup_steps,
      config.num_steps,
    )
  _refuse_unlabelled(config, train_data)


def _refuse_unlabelled(config, train_data):
  """ValueError if no image teaches a category, or none a box that is learned.

  Masks of 0 and 255, say. Of sound data the first image is read, or a few.
  """
  boxes, seen = "boxes" in config.model.heads, set()
  for index in range(len(train_data)):
    example = evaluation.read(train_data, index, config.data.on_error)
    if example is None:
      continue
    labels = set(np.unique(example["semantic"]).tolist())
    if labels - {0, IGNORE} and not (boxes and not example["instances"].any()):
      return
    seen |= labels
    if index + 1 == _ENOUGH < len(train_data):
      logging.warning(
        "looking at all training images, for the first %d %s",
        _ENOUGH,
        _unlabelled(seen, train_data),
      )
  if seen:
    raise ValueError(f"all training images {_unlabelled(seen, train_data)}")


def _unlabelled(seen, data):
  """What such images have, and how to mend it."""
  if seen - {0, IGNORE}:
    text = (
      f"have labels {sorted(seen)}, but no instance to learn boxes from."
      " Number the objects of an image 1, 2, ... (in SegmentationObject; 255 of"
      " an 8-bit map is void), or set --config.model.heads='(\"semantic\",)'."
    )
  else:
    text = (
      f"have no label but {sorted(seen)}: 0 is background and 255 void, of"
      " which nothing is learned. Number the categories 1, 2, ... in the order"
      " of labels.txt; in masks of 0 and 255 write 1 for 255."
    )
  return f"{text} python -m experiments.check_data --data={data.path} says more"


def _check_range(config):
  """ValueError for a number beyond its range, or a name that is none."""
  positive = ("batch_size", "num_steps", "accumulate", "model.box_unit")
  not_negative = (
    "optim.lr", "optim.warmup_steps", "optim.weight_decay", "optim.clip_norm",
    "loss.k", "loss.box_k", "loss.box_weight", "loss.box_unit", "log_every",
    "checkpoint_every", "eval_every", "eval_images", "data.label_stride",
  )  # fmt: skip
  shares = ("ema", "coarse", "loss.threshold", "optim.momentum")
  for names, fits, expected in (
    (positive, lambda x: x > 0, "a number above 0"),
    (not_negative, lambda x: x >= 0, "a number of at least 0"),
    (shares, lambda x: 0 <= x <= 1, "a share, 0 to 1"),
  ):
    for name in names:
      value = operator.attrgetter(name)(config)
      if not fits(value):
        raise ValueError(f"config.{name} is {value}; expected {expected}.")
  if config.loss.scope not in losses.SCOPES:
    raise ValueError(
      f"config.loss.scope is {config.loss.scope!r}; expected one of"
      f" {losses.SCOPES}."
    )
  # Refuses an unknown order of channels.
  loading.preprocessing(config)(np.zeros(3, np.uint8))


def pipeline_options(
  config: ConfigDict, stride: int
) -> pipeline.PipelineOptions:
  """config.data as this process's input takes it."""
  names = set(pipeline.PipelineOptions._fields) & set(config.data.keys())
  return pipeline.PipelineOptions(
    **{name: config.data[name] for name in names},
    stride=stride,
    batch_size=config.batch_size // jax.process_count(),
  )


def loss_options(config: ConfigDict) -> step.LossOptions:
  """config.loss, where 0 stands for all pixels, none and the box unit."""
  return step.LossOptions(
    k=config.loss.k or None,
    threshold=config.loss.threshold or None,
    scope=config.loss.scope,
    box_k=config.loss.box_k or None,
    box_weight=config.loss.box_weight,
    box_unit=config.loss.box_unit or config.model.box_unit,
  )
