"""Crops per second of the input pipeline: each stage on one core, then whole.

Options: path (a VOC folder; default the VOC sample in FCRN_DATA or
../shared/data), prepared (the same data as experiments.prepare_data writes
it), crop, stride, batch, cores, seconds, network (whose training step, over
all devices, takes the crops; "" for none).
"""

import os
import pathlib
import time
from collections.abc import Callable
from typing import Any

import cv2
import jax
import numpy as np

from experiments.benchmarks import timing, train
from fcrn_jax import data, models
from fcrn_jax.data import pipeline, transforms

_DATA = os.environ.get("FCRN_DATA", "../shared/data")
_VOC = pathlib.Path(_DATA) / "voc2012_sample" / "VOCdevkit" / "VOC2012"


OPTIONS = {
  "path": str(_VOC), "prepared": "", "crop": "321", "stride": "8", "batch": "8",
  "cores": "2", "seconds": "5", "network": "fcrn50_s8_k5_d12",
}  # fmt: skip


def run(options: dict[str, str]) -> list[dict]:
  """Rows of one data set and stage each."""
  crop, stride = int(options["crop"]), int(options["stride"])
  seconds, cores = float(options["seconds"]), int(options["cores"])
  settings = pipeline.PipelineOptions(
    crop=(crop, crop),
    scale=(0.7, 1.3),
    stride=stride,
    batch_size=int(options["batch"]),
  )
  sources = {"files": data.load("folder", "train", options["path"])}
  if options["prepared"]:
    sources["array_record"] = data.load("folder", "train", options["prepared"])
  sources["shapes"] = data.load("shapes")
  rows = []
  for name, dataset in sources.items():
    used = settings
    if name == "shapes":
      used = settings._replace(crop=(96, 96), stride=4)
    rows += [{"data": name, **row} for row in _stages(dataset, used, seconds)]
    for workers in (0, cores):
      rate = _stream(
        dataset, used._replace(num_workers=workers), cores, seconds
      )
      rows.append(
        {
          "data": name,
          "stage": f"batches, {workers} workers" if workers else "batches",
          "cores": cores,
          "crops_per_s": rate,
        }
      )
  if network := options["network"]:
    rate = _consumption(network, crop, settings.batch_size)
    rows.append({"stage": f"training step of {network}", "crops_per_s": rate})
  return rows


def _consumption(network: str, crop: int, batch: int) -> float:
  """Crops per second that a training step takes on this device."""
  images = np.zeros((batch, crop, crop, 3), np.uint8)
  cells = -(-crop // models.spec(network).stride)
  gpu = jax.default_backend() == "gpu"
  call, _ = train.jax_step(
    network,
    images,
    np.zeros((batch, cells, cells), np.uint8),
    "bfloat16" if gpu else "float32",
  )
  return batch / timing.in_turns({"step": call}, 3)["step"]


def _stages(
  dataset: Any, options: pipeline.PipelineOptions, seconds: float
) -> list[dict]:
  """Processor time of decoding, full boxes, augmentation and targets."""
  cv2.setNumThreads(0)
  number = min(len(dataset), 48)
  examples = [dataset[i] for i in range(number)]
  prepared = [pipeline.prepare(example, options) for example in examples]
  rng = np.random.default_rng(0)
  factors = (1.0, 1.0)
  crops = [
    transforms.random_crop(
      example, rng, factors, options.crop, options.stride, options.fill, True
    )
    for example in prepared
  ]

  def augment(k):
    # Without targets: semantic-only examples have none.
    example = {name: prepared[k][name] for name in ("image", "semantic")}
    pipeline.augment(example, options, rng)

  def targets(k):
    pipeline.prepare(examples[k], options)
    transforms.box_targets(
      crops[k]["instances"], crops[k]["boxes"], crops[k]["classes"],
      options.stride, options.box_weighting,
    )  # fmt: skip

  def everything(k):
    pipeline.augment(pipeline.prepare(dataset[k], options), options, rng)

  stages = {"decode": dataset.__getitem__, "augment": augment}
  if dataset.has_instances:
    stages["targets"] = targets
  stages["all"] = everything
  rows = []
  for stage, function in stages.items():
    spent = _processor_time(function, number, seconds)
    rows.append(
      {"stage": stage, "cores": 1, "ms": 1e3 * spent, "crops_per_s": 1 / spent}
    )
  return rows


def _processor_time(
  function: Callable[[int], Any], number: int, seconds: float
) -> float:
  """Mean seconds of processor time of a call."""
  function(0)
  start, calls = time.process_time(), 0
  # One call at least: other threads of this process may have spent the time.
  while not calls or time.process_time() - start < seconds / 2:
    function(calls % number)
    calls += 1
  return (time.process_time() - start) / calls


def _stream(
  dataset: Any,
  options: pipeline.PipelineOptions,
  cores: int,
  seconds: float,
) -> float:
  """Crops per second of wall time on so many cores, main process included."""
  allowed = os.sched_getaffinity(0)
  os.sched_setaffinity(0, sorted(allowed)[:cores])
  try:
    batches = pipeline.train_batches(dataset, options, seed=0)
    for _ in range(2 + 4 * options.num_workers):
      next(batches)  # starts the workers, empties what they had ready
    start, taken = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
      next(batches)
      taken += options.batch_size
    rate = taken / (time.perf_counter() - start)
    batches.close()
    return rate
  finally:
    os.sched_setaffinity(0, allowed)
