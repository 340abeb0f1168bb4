"""Image in, Result out; loaded from a workdir or an exported file.

predictor = Predictor.load("runs/shapes")
result = predictor(image)
result.semantic, result.label_map, result.classes, result.scores
"""

import collections
import dataclasses
import functools
import math
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from typing import Any

import jax
import numpy as np
from absl import logging
from jaxtyping import Shaped

from fcrn_jax import inference, instances
from fcrn_jax.data import transforms
from fcrn_jax.predictor import grouping, large
from fcrn_jax.predictor.result import Result
from fcrn_jax.types import Array

__all__ = ["Predictor", "Result"]

_LARGE = 2048 * 2048  # pixels

# H W 3 RGB or H W gray, uint8; check_image tells callers what is wrong.
Image = Shaped[Array, "..."]


class Predictor:
  """Networks with their settings, ready to be called.

  Attributes:
    categories: names of the categories 1 ... C.
    background: name of label 0.
    has_boxes: whether there is a box head; without it, no instances.
    stride: image pixels per cell of the maps.
    views: inference.Options; replace it to look at images in another way.
    options: instances.Options; replace it to group in another way.
    source: where the networks came from.
    step: the checkpoint's; of two, that of the network with the boxes.
    trained_on: the training sets as arguments of data.load.
    tuned_on: thresholds.json, which names the images that experiments.tune
      saw; None where nothing is known of that.
  """

  def __init__(
    self,
    apply_fn: inference.ApplyFn | None,
    network_stride: int,
    categories: Sequence[str],
    *,
    views: inference.Options = inference.ONE_VIEW,
    options: instances.Options | None = None,
    input_scale: float = 1.0,
    normalize: bool = False,
    source: str = "",
    step: int | None = None,
    trained_on: Sequence[Mapping[str, Any]] = (),
    category_ids: Sequence[int] = (),
    tuned_on: Mapping[str, Any] | None = None,
    background: str = "background",
    has_boxes: bool = True,
  ):
    """See `load`; this is for networks of one's own.

    apply_fn: see inference.ApplyFn; None to group maps from elsewhere only.
    network_stride: its input pixels per output pixel.
    input_scale: the network sees images resized by this factor.
    normalize: it sees images after transforms.normalize_intensity.
    """
    if input_scale <= 0:
      raise ValueError(
        f"input_scale is {input_scale}; expected a factor above 0."
      )
    self.apply_fn = apply_fn
    self._network_stride = network_stride
    self.categories = tuple(categories)
    self.views = views
    self.options = instances.Options() if options is None else options
    self.input_scale = input_scale
    self.normalize = normalize
    self.source = source
    self.step = step
    self.trained_on = tuple(trained_on)
    self.category_ids = tuple(category_ids)
    self.tuned_on = tuned_on
    self.background = background
    self.has_boxes = has_boxes
    self._networks = None

  @classmethod
  def load(
    cls,
    path: str | os.PathLike | None = None,
    *,
    semantic: str | os.PathLike | None = None,
    localization: str | os.PathLike | None = None,
    step: int | None = None,
  ) -> "Predictor":
    """From one joint workdir, from two of one head each, or from a file.

    Args:
      path: a workdir of experiments.train, or a file of experiments.export.
      semantic: workdir whose network gives the scores.
      localization: workdir whose network gives the boxes.
      step: checkpoint of a workdir; default the newest.

    Thresholds are those of thresholds.json in the workdir (experiments.tune),
    else of its config.
    """
    if (path is None) == (semantic is None and localization is None):
      raise ValueError(
        "Predictor.load needs either a path, or semantic= and localization=;"
        f" got path={path}, semantic={semantic}, localization={localization}."
      )
    if path is not None and not pathlib.Path(path).exists():
      raise ValueError(f"{path} does not exist; pass a workdir or a file.")
    # Only here, so that an exported file needs neither models nor Flax.
    if path is not None and pathlib.Path(path).is_file():
      from fcrn_jax.predictor import artefact

      if step is not None:
        raise ValueError(
          f"{path} is a file, which holds one checkpoint, but step={step} was"
          " asked for; pass the workdir."
        )
      return cls(**artefact.load(path))
    from fcrn_jax.predictor import loading

    if path is not None:
      semantic = localization = path
    networks, arguments = loading.load(semantic, localization, step)
    predictor = cls(**arguments)
    predictor._networks = networks
    return predictor

  def __repr__(self) -> str:
    names = ", ".join(self.categories)
    return f"Predictor({self.source or 'own networks'}: {names})"

  def save(self, path: str | os.PathLike) -> None:
    """Writes one file, for `load`, with the networks and these settings.

    See fcrn_jax.export for what it holds. Only of what came from workdirs.
    """
    from fcrn_jax.predictor import artefact

    if self._networks is None:
      raise ValueError(
        f"{path} cannot be written: the networks are not of a workdir; use"
        " fcrn_jax.export.save for networks of your own."
      )
    artefact.save(path, self, self._networks)

  @property
  def stride(self) -> int | float:
    """Image pixels per cell of the maps."""
    cell = inference.map_stride(self._network_stride, self.views)
    stride = cell / self.input_scale
    return int(stride) if stride == int(stride) else stride

  @property
  def batch_size(self) -> int:
    """How many images to hand to predict_batch at a time."""
    devices = jax.local_devices()
    return len(devices) * (1 if devices[0].platform == "cpu" else 16)

  def __call__(self, image: Image, progress: bool = False) -> Result:
    """The prediction for one image of any size, uint8.

    Larger images than views.tile go through in tiles, with a progress bar if
    `progress`; they may be memory-mapped.
    """
    check_image(image)
    if self._is_large(image):
      return self.group(self.maps(image, progress), image, None, progress)
    return self.predict_batch([image])[0]

  def predict_batch(self, images: Sequence[Image]) -> list[Result]:
    """Predictions for images of any sizes, in order.

    Images that are padded to the same size go through together, shared out
    among the local devices.
    """
    results: list[Result | None] = [None] * len(images)
    buckets: dict[tuple[int, ...], list[int]] = {}
    for index, image in enumerate(images):
      check_image(image)
      if self._is_large(image):
        results[index] = self(image)
      else:
        buckets.setdefault(self._padded_shape(image), []).append(index)
    for bucket, indices in buckets.items():
      # Alone or in batches of one size, so that little is compiled.
      count = self._images_at_once(bucket) if len(indices) > 1 else 1
      for first in range(0, len(indices), count):
        batch = indices[first : first + count]
        found = self._one_batch([images[index] for index in batch], count)
        for index, result in zip(batch, found, strict=True):
          results[index] = result
    return results

  def maps(self, image: Image, progress: bool = False) -> inference.Maps:
    """Score and box maps of one image of any size, `h w`, in numpy.

    Boxes are in pixels of the image; a cell covers `stride` of them.
    """
    check_image(image)
    _say_compiling(self._padded_shape(image), 1)
    maps = inference.predict_maps(
      self.apply_fn,
      self._network_image(image),
      self._network_stride,
      self.views,
      batch_size=jax.local_device_count(),
      progress=progress,
    )
    return self._in_image_pixels(maps)

  def group(
    self,
    maps: inference.Maps,
    image: Image,
    options: instances.Options | None = None,
    progress: bool = False,
  ) -> Result:
    """Steps 3 to 6 of the paper's section 2.1 for maps of that image.

    ValueError for maps that do not cover it.
    """
    size = image.shape[:2]
    covered = tuple(math.ceil(n * self.stride) for n in maps.probs.shape[:2])
    if covered[0] < size[0] or covered[1] < size[1]:
      raise ValueError(
        f"the maps cover {covered} pixels, and the image has {size}; pass the"
        " image that they were computed of."
      )
    settings = options or self.options, self.stride, self.categories
    if self._is_large(image):
      result = large.group_large(maps, image, *settings, progress)
    else:
      result = grouping.group_one(maps, image, *settings)
    result.background = self.background
    return result

  def explain(
    self, image: Image, number: int = 12, min_score: float = 0.0
  ) -> Image:
    """A picture of why instances are there, of at least that score.

    Of more than `number` the best and the worst, half and half. Titles begin
    with an instance's number in the label map and give its seed's y and x.

    ValueError for images that are grouped in regions (explain a part) and
    for networks without boxes.
    """
    if self._is_large(image):
      raise ValueError(
        f"an image of {image.shape[:2]} pixels is too large to be explained as"
        " a whole; cut out a part."
      )
    maps, options = self.maps(image), self.options
    if maps.boxes is None:
      raise ValueError("a network without boxes has no votes to explain.")
    if options.masks == "full":  # whose votes are not the maps' cells
      options = dataclasses.replace(options, masks="boxes")
    result = grouping.group_one(
      maps, image, options, self.stride, self.categories, True
    )
    result = result.select(result.scores >= min_score)
    return grouping.draw_evidence(maps, image, result, self.stride, number)

  def _is_large(self, image):
    """Whether it is tiled, or its pixels are too many for one program."""
    tiled = inference.is_tiled(self._network_size(image), self.views)
    return tiled or math.prod(image.shape[:2]) > _LARGE

  def _one_batch(self, images, count):
    _say_compiling(self._padded_shape(images[0]), count)
    inputs = [inference.as_rgb(self._network_image(image)) for image in images]
    inputs += inputs[-1:] * (count - len(inputs))
    maps = inference.batch_maps(
      self.apply_fn, inputs, self._network_stride, self.views
    )
    results = grouping.group_batch(
      self._in_image_pixels(maps),
      images,
      self.options,
      self.stride,
      self.categories,
    )
    for result in results:
      result.background = self.background
    return results

  def _network_image(self, image):
    """The image as the network sees it; untouched (mapped) where it can be."""
    if self.normalize:
      image = transforms.normalize_intensity(inference.as_rgb(image))
    if self.input_scale == 1:
      return image
    image = inference.as_rgb(image)
    pads = [(0, n) for n in self._margin(image)]
    return inference.resize(
      np.pad(image, (*pads, (0, 0)), "edge"), self.input_scale
    )

  def _margin(self, image):
    """What it takes to scale to whole pixels, so that cells stay in place."""
    multiple = Fraction(self.input_scale).limit_denominator(16).denominator
    scale, margins = self.input_scale, []
    for length in image.shape[:2]:
      margin = -length % multiple
      # Of other scales, 0.33 say, rounding must not cut off the image's end.
      while round((length + margin) * scale) < length * scale:
        margin += multiple
      margins.append(margin)
    return margins

  def _network_size(self, image):
    """Height and width of its network image."""
    size = np.add(image.shape[:2], self._margin(image)) * self.input_scale
    return np.rint(size)

  def _padded_shape(self, image):
    """What its network image, or a tile of it, is padded to."""
    size = np.minimum(self._network_size(image), self.views.tile or np.inf)
    return inference.padded_shape(size, self._network_stride, self.views)

  def _in_image_pixels(self, maps):
    if maps.boxes is None or self.input_scale == 1:
      return maps
    return maps._replace(boxes=maps.boxes / np.float32(self.input_scale))

  def _images_at_once(self, bucket):
    """How many images of that size go through together."""
    devices = jax.local_devices()
    if devices[0].platform == "cpu":
      return len(devices)
    # Small images alone would leave an accelerator idle; ours.
    return len(devices) * max(1, min(8, 2**21 // math.prod(bucket)))


@functools.cache
def _say_compiling(shape, count):
  """One line before the first images of a shape, which may take minutes."""
  if jax.process_index():
    return
  cache = jax.config.jax_compilation_cache_dir
  logging.info(
    "compiling for %s of up to %d x %d%s",
    "an image" if count == 1 else f"{count} images at a time",
    *shape,
    f", or reading that from {cache}" if cache else "",
  )


def read_ahead(
  function: Callable[[Any], Any], items: Iterable[Any], ahead: int
) -> Iterator[Any]:
  """function(item) in order, computed in threads, `ahead` at a time."""
  with ThreadPoolExecutor(max(1, min(ahead, 4))) as pool:
    waiting: collections.deque = collections.deque()
    for item in items:
      waiting.append(pool.submit(function, item))
      if len(waiting) > ahead:
        yield waiting.popleft().result()
    while waiting:
      yield waiting.popleft().result()


def check_image(image: Any) -> None:
  """ValueError for what is not an H W 3 or H W image of uint8."""
  if not hasattr(image, "shape"):
    raise ValueError(
      f"the image is a {type(image).__name__}; expected an array, which"
      " data.pictures.load_image reads from a file."
    )
  shape, dtype = image.shape, image.dtype
  if (
    dtype != np.uint8
    or len(shape) not in (2, 3)
    or 0 in shape
    or (len(shape) == 3 and shape[2] != 3)
  ):
    raise ValueError(
      f"the image is {dtype} of shape {shape}; expected uint8 of shape (H, W,"
      " 3) or (H, W). data.pictures.load_image reads files so, and"
      " data.pictures.stretch brings other values to 0 ... 255."
    )
