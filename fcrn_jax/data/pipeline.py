"""Training batches: shuffle, shard, augment, targets, batch (Grain).

The stream is one infinite sequence of examples, reshuffled every epoch, whose
element i and its random numbers depend on the seed and i only. An epoch has
each image once, or those of many instances more often (`visits`). Process p of
n takes the elements p, p + n, ...; so a global batch is the same set whatever
the number of processes, threads and workers, and its position is one number.
"""

import atexit
import logging
import sys
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import cv2
import numpy as np
from jaxtyping import Int
from tqdm import tqdm

from fcrn_jax.data import transforms
from fcrn_jax.types import FILL, Array


class PipelineOptions(NamedTuple):
  """What happens to an example; lengths in pixels of the network's input."""

  crop: tuple[int, int] = (321, 321)  # H, W; padded to multiples of stride
  scale: tuple[float, float] = (1.0, 1.0)  # jitter, uniform
  input_scale: float = 1.0  # network input pixels per image pixel
  aspect: float = 0.0  # height against width by exp(uniform(-v, v))
  flip: bool = True  # left and right, half of the time
  rot90: bool = False  # also upside down and quarter turns: microscopy
  rotation: float = 0.0  # up to so many degrees
  elastic: float = 0.0  # pixels of the original image
  normalize: bool = False  # transforms.normalize_intensity
  brightness: float = 0.0  # these five: transforms.jitter_intensity
  contrast: float = 0.0
  gamma: float = 0.0
  noise: float = 0.0
  invert: float = 0.0
  stride: int = 8
  label_stride: int = 0  # pixels per category label; 0: stride
  box_weighting: str = "area"  # or "sqrt_area", "none"
  full_boxes: bool = True  # False: boxes of what the crop shows (ours)
  fill: tuple[int, int, int] = FILL  # beside an image
  batch_size: int = 1  # per process
  num_workers: int = 0  # processes; 0 works in threads of this one
  cache: bool = False  # keep decoded examples in memory, in each worker
  instances_per_visit: int = 0  # see visits; 0: each image once an epoch
  on_error: str = "raise"  # or "skip": take the next image instead


def train_batches(
  dataset: Any,
  options: PipelineOptions,
  seed: int,
  process_index: int = 0,
  process_count: int = 1,
) -> Any:
  """Endless iterator of types.Batch with get_state() and set_state().

  It is a grain.DatasetIterator. A state is {"global_next_index": examples
  drawn by all processes}: it fits any number of processes and workers. Call
  close() to end the workers.
  """
  import grain  # here, since it imports JAX, and other parts need no Grain

  if len(dataset) == 0:
    raise ValueError(f"data set {dataset.name!r} has no images.")
  _check(options)
  indices = grain.MapDataset.range(len(dataset))
  if options.instances_per_visit:
    seen = visits(dataset, options.instances_per_visit, process_index == 0)
    indices = grain.MapDataset.source(seen.tolist())
  examples = (
    indices.seed(seed)
    .shuffle()
    .repeat()
    .random_map(TrainExample(dataset, options))
  )
  workers = None
  if options.num_workers:
    _mark_flags_parsed()
    workers = grain.MultiprocessingOptions(
      num_workers=options.num_workers, per_worker_buffer_size=2
    )
  # Elements are whole batches: Grain's default of 500 would fill the memory.
  batches = grain.experimental.ElasticIterator(
    examples,
    options.batch_size * process_count,
    grain.sharding.ShardOptions(process_index, process_count),
    read_options=grain.ReadOptions(num_threads=2, prefetch_buffer_size=2),
    multiprocessing_options=workers,
  )
  iterator = iter(batches)
  atexit.register(_close, weakref.ref(iterator))
  return iterator


def visits(
  dataset: Any, instances_per_visit: int, progress: bool = False
) -> Int[np.ndarray, "n"]:
  """The images of an epoch, each once for so many of its instances.

  Rounded, and at least once, as also where it cannot be read. Else crops of one
  size show an instance of a large or crowded image less often than one of a
  small or empty image (ours; docs/errors.md has what it gives). Reads all
  images; ValueError for data without instances.
  """
  if not dataset.has_instances:
    raise ValueError(
      f"{dataset.name} {dataset.split!r} has no instances, by which"
      " instances_per_visit draws images; set it to 0."
    )

  def number_of_instances(index):
    try:
      return len(dataset[index]["classes"])
    except ValueError:  # which is for training to tell
      return 0

  with ThreadPoolExecutor() as pool:
    numbers = pool.map(number_of_instances, range(len(dataset)))
    bar = tqdm(
      numbers, "count instances", len(dataset), unit="image", delay=3,
      disable=None if progress else True,
    )  # fmt: skip
    counts = np.rint(np.array(list(bar)) / instances_per_visit)
  return np.repeat(np.arange(len(dataset)), np.maximum(counts, 1).astype(int))


def _check(options: PipelineOptions) -> None:
  """ValueError for a setting that fails only later, or without a word."""
  o = options
  if o.on_error not in ("raise", "skip"):
    raise ValueError(f"on_error is {o.on_error!r}; expected 'raise' or 'skip'.")
  if len(o.scale) != 2 or not 0 < o.scale[0] <= o.scale[1]:
    raise ValueError(
      f"scale is {o.scale}; expected two numbers above 0, the lower one first."
    )
  if o.input_scale <= 0:
    raise ValueError(f"input_scale is {o.input_scale}; expected one above 0.")
  for name in (
    "aspect", "rotation", "elastic", "brightness", "contrast", "gamma", "noise",
  ):  # fmt: skip
    if getattr(o, name) < 0:
      raise ValueError(
        f"{name} is {getattr(o, name)}; expected 0 (none) or more."
      )
  if not 0 <= o.invert <= 1:
    raise ValueError(f"invert is {o.invert}; expected a share, 0 ... 1.")
  if o.label_stride < 0 or (o.label_stride and o.stride % o.label_stride):
    raise ValueError(
      f"label_stride is {o.label_stride}; expected a divisor of the network's"
      f" stride, {o.stride}, or 0 for the stride itself."
    )
  if o.instances_per_visit < 0:
    raise ValueError(
      f"instances_per_visit is {o.instances_per_visit}; expected 0 (each image"
      " once an epoch) or more."
    )
  if o.box_weighting not in transforms.WEIGHTINGS:
    raise ValueError(
      f"box_weighting is {o.box_weighting!r}; expected one of"
      f" {transforms.WEIGHTINGS}."
    )


def _mark_flags_parsed() -> None:
  """Lets Grain start workers in programs that do not use absl's flags.

  Grain reads its own flags then, and absl raises where nobody parsed any.
  """
  flags = sys.modules["absl.flags"].FLAGS  # imported by Grain
  if not flags.is_parsed():
    flags.mark_as_parsed()


def _close(iterator: weakref.ReferenceType) -> None:
  """Ends threads and workers; Grain fails where the interpreter does it."""
  alive = iterator()
  if alive is not None:
    # close() keeps what it has closed; setting the state lets go of it.
    alive.set_state(alive.get_state())


class TrainExample:
  """Maps an index and a generator to one crop with its targets."""

  def __init__(self, dataset: Any, options: PipelineOptions):
    self._dataset = dataset
    self._options = options
    self._cache: dict[int, dict[str, Any]] = {}
    self._bad: set[int] = set()

  def __call__(self, index: int, rng: np.random.Generator) -> dict[str, Array]:
    """One element of types.Batch."""
    # Workers share the cores already. (Each worker process comes by here.)
    cv2.setNumThreads(0)
    return augment(self._read(int(index)), self._options, rng)

  def _read(self, index: int) -> dict[str, Any]:
    """Example `index`, or with on_error="skip" the next one that is sound."""
    for shift in range(len(self._dataset)):
      k = (index + shift) % len(self._dataset)
      if k in self._cache:
        return self._cache[k]
      try:
        example = self._dataset[k]
      except ValueError as error:
        if self._options.on_error == "raise":
          raise
        if k not in self._bad:
          self._bad.add(k)
          logging.warning("skipped image %d: %s", len(self._bad), error)
        continue
      example = prepare(example, self._options)
      if self._options.cache:
        self._cache[k] = example
      return example
    raise ValueError(f"no image of {self._dataset.path} can be read.")


def prepare(
  example: dict[str, Any], options: PipelineOptions
) -> dict[str, Any]:
  """What is the same at every visit: full boxes, normalised intensity."""
  example = {k: v for k, v in example.items() if k != "id"}
  if options.normalize:
    example["image"] = transforms.normalize_intensity(example["image"])
  if "instances" in example:
    example["boxes"] = transforms.instance_boxes(
      example["instances"], len(example["classes"])
    )
  return example


def augment(
  example: dict[str, Any], options: PipelineOptions, rng: np.random.Generator
) -> dict[str, Array]:
  """One element of types.Batch from a prepared example."""
  o = options
  if o.rotation or o.elastic:
    example = transforms.warp(example, rng, o.rotation, o.elastic, o.fill)
  mirror, upset, turn = rng.random(3) < 0.5
  if mirror and (o.flip or o.rot90):
    example = transforms.flip(example, axis=1)
  if upset and o.rot90:
    example = transforms.flip(example, axis=0)
  if turn and o.rot90:
    example = transforms.transpose(example)
  factor = o.input_scale * rng.uniform(*o.scale)
  aspect = np.exp(rng.uniform(-o.aspect, o.aspect) / 2)
  example = transforms.random_crop(
    example, rng, (factor * aspect, factor / aspect), o.crop, o.stride,
    o.fill, o.full_boxes, o.label_stride,
  )  # fmt: skip
  image = transforms.jitter_intensity(
    example["image"], rng, o.brightness, o.contrast, o.gamma, o.noise, o.invert
  )
  batch = {"image": image, "semantic": example["semantic"]}
  if "instances" in example:
    batch |= transforms.box_targets(
      example["instances"], example["boxes"], example["classes"], o.stride,
      o.box_weighting,
    )  # fmt: skip
  return batch
