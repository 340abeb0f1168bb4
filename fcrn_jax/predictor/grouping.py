"""From the maps of padded images to Results.

`instances` works on one map; here its steps run for batches on several
devices. `large` does the same for images that one program cannot hold.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Float16, Int, UInt8

from fcrn_jax import boxes as boxes_lib
from fcrn_jax import instances, visualize
from fcrn_jax.inference import Maps, bucket
from fcrn_jax.instances import masks as masks_lib
from fcrn_jax.predictor.result import Evidence, Result, layer_dtype
from fcrn_jax.types import Array

# Times Options.room, one after the other where fragments take the room of
# instances: seen of networks that were hardly trained.
_ROOMS = (1, 4, 16)


class Found(NamedTuple):
  """Arrays of one image, or of a batch with a leading axis."""

  semantic: UInt8[Array, "*b H W"]
  confidence: Float16[Array, "*b H W"]  # probability of that category
  labels: Int[Array, "*b r H W"] | None  # index of the hypothesis, -1 = none
  hypotheses: instances.Hypotheses | None  # owners only where asked for


def group_batch(
  maps: Maps,
  images: Sequence[UInt8[Array, "..."]],
  options: instances.Options,
  stride: int | float,
  categories: tuple[str, ...],
  with_owners: bool = False,
) -> list[Result]:
  """Results of images padded to one size, `b` maps for at most b images.

  Cells beyond an image must repeat its last ones (inference.batch_maps).
  with_owners fills in the results' evidence.owners.
  """
  count = len(maps.probs)
  sizes = [image.shape[:2] for image in images]
  sizes = np.array(sizes + sizes[-1:] * (count - len(sizes)), np.int32)
  devices = jax.local_devices()
  mesh = None
  if len(devices) > 1 and count % len(devices) == 0:
    mesh = Mesh(np.array(devices), ("batch",))
  for times in _ROOMS:
    roomy = dataclasses.replace(options, room=times * options.room)
    found = _group(maps, sizes, roomy, stride, with_owners, mesh)
    found = jax.device_get(found)
    if not _crowded(found.hypotheses):
      break
  return [
    _result(
      jax.tree.map(lambda x, i=index: x[i], found), image, stride, categories
    )
    for index, image in enumerate(images)
  ]


def _crowded(hypotheses: instances.Hypotheses | None) -> bool:
  """Whether fragments took the room of instances in one of a batch's images."""
  if hypotheses is None:
    return False
  number = hypotheses.valid.shape[1]
  return bool((hypotheses.truncated & (hypotheses.valid.sum(1) < number)).any())


def group_one(
  maps: Maps,
  image: UInt8[Array, "..."],
  options: instances.Options,
  stride: int | float,
  categories: tuple[str, ...],
  with_owners: bool = False,
) -> Result:
  """The result of one image of any size from its own `h w` maps."""
  return group_batch(
    pad(maps, stride), [image], options, stride, categories, with_owners
  )[0]


def pad(maps: Maps, stride: int | float) -> Maps:
  """`h w` maps as a batch of one, padded to the cells of a bucket."""
  # Those that a batch of such images would have, where there are some.
  unit = stride if 32 % stride == 0 else 1
  pads = [(0, round(bucket(n * unit) / unit) - n) for n in maps.probs.shape[:2]]
  return jax.tree.map(
    lambda x: np.pad(x, (*pads, *[(0, 0)] * (x.ndim - 2)), "edge")[None], maps
  )


@functools.partial(jax.jit, static_argnums=(3, 4, 5))
def _group(maps, sizes, options, stride, with_owners, mesh) -> Found:
  def batch(maps, sizes, options):
    return jax.vmap(
      lambda m, size: group_image(m, size, options, stride, with_owners)
    )(maps, sizes)

  if mesh is None:
    return batch(maps, sizes, options)
  # Each device by itself: under jit alone, the loops of all would wait for
  # each other at every turn.
  shared = PartitionSpec("batch")
  return jax.shard_map(
    batch,
    mesh=mesh,
    in_specs=(shared, shared, PartitionSpec()),
    out_specs=shared,
    check_vma=False,
  )(maps, sizes, options)


def group_image(
  maps: Maps,
  size: Int[Array, "2"],
  options: instances.Options,
  stride: int | float,
  with_owners: bool = False,
) -> Found:
  """What is found in one image of `size`, on the canvas of its maps."""
  canvas = maps.probs.shape[:2]
  if stride != 1:
    whole = isinstance(stride, int)  # as for export, whose sizes are symbolic
    canvas = [n * stride if whole else math.ceil(n * stride) for n in canvas]
  canvas = tuple(canvas)
  if maps.boxes is None:
    return paint(maps, None, options, stride, canvas)
  if options.masks == "full":
    maps = jax.tree.map(lambda x: masks_lib.upsample(x, canvas, stride), maps)
    stride = 1
  found = instances.find(maps.probs, maps.boxes, options, size, stride)
  painted = paint(maps, found, options, stride, canvas)
  if not with_owners:
    found = found._replace(owners=None)
  return painted._replace(hypotheses=found)


def paint(
  maps: Maps,
  hypotheses: instances.Hypotheses | None,
  options: instances.Options,
  stride: int | float,
  canvas: tuple[int, int],
) -> Found:
  """Category, its probability and instance of every pixel of the canvas."""
  if hypotheses is None:
    upsampled = masks_lib.upsample(maps.probs, canvas, stride)
    category, score, labels = upsampled.argmax(-1), upsampled.max(-1), None
  else:
    labels, categories, scores = masks_lib.paint(
      hypotheses, maps.probs, maps.boxes, options, canvas, stride
    )
    category, score = categories[0], scores[0]
  category, score = category.astype(jnp.uint8), score.astype(jnp.float16)
  return Found(category, score, labels, None)


def _result(found: Found, image, stride, categories) -> Result:
  """One image's arrays, cropped, without instances that got no pixel."""
  height, width = image.shape[:2]
  semantic, confidence = (
    np.ascontiguousarray(x[:height, :width])
    for x in (found.semantic, found.confidence)
  )
  if found.hypotheses is None:
    return without_instances(semantic, confidence, image, categories)
  hypotheses, owners = found.hypotheses, found.hypotheses.owners
  if owners is not None:
    cells = [math.ceil(n / stride) for n in (height, width)]
    owners = owners[..., : cells[0], : cells[1]]
  labels = found.labels[:, :height, :width] + 1
  number = len(hypotheses.valid)
  areas = np.bincount(labels.ravel(), minlength=number + 1)
  return with_instances(
    semantic,
    confidence,
    labels.astype(layer_dtype(number)),
    areas,
    hypotheses._replace(owners=owners),
    image,
    categories,
  )


def with_instances(
  semantic, confidence, layers, areas, hypotheses, image, categories
) -> Result:
  """The result of the valid hypotheses that got a pixel.

  layers: k + 1 where a pixel belongs to hypothesis k, overwritten; areas: how
  many pixels have 0, 1 ... there.
  """
  found = Result(
    semantic,
    confidence,
    layers,
    hypotheses.classes,
    hypotheses.scores,
    hypotheses.boxes,
    bool(hypotheses.truncated),
    categories,
    Evidence(
      hypotheses.seeds,
      hypotheses.num_votes,
      hypotheses.spread,
      hypotheses.fill,
      hypotheses.owners,
    ),
    image,
  )
  return found.select(hypotheses.valid & (areas[1:] > 0), out=layers)


def without_instances(semantic, confidence, image, categories) -> Result:
  """The result of a network that has no box head."""
  empty = np.zeros((0, 4), np.float32)
  return Result(
    semantic,
    confidence,
    np.zeros((0, *semantic.shape), np.uint16),
    np.zeros(0, np.int32),
    empty[:, 0],
    empty,
    categories=categories,
    image=image,
  )


def draw_evidence(
  maps: Maps, image: UInt8[Array, "..."], result: Result, stride: int | float,
  number: int,
) -> UInt8[np.ndarray, "_H _W 3"]:  # fmt: skip
  """A panel with the votes for `number` instances, see Predictor.explain."""
  evidence, pictures, titles = result.evidence, [], []
  points = boxes_lib.cell_points(*maps.probs.shape[:2], stride, np)
  count = len(result)
  worst = min(number, count) // 2
  best = min(number, count) - worst
  for k in [*range(best), *range(count - worst, count)]:
    cells = (evidence.owners == k).any(axis=(0, 1))
    # The seed first.
    cells[tuple(evidence.seeds[k])] = False
    index = np.concatenate([evidence.seeds[k][None], np.argwhere(cells)]).T
    votes = maps.boxes[*index, result.classes[k] - 1]
    voters = points[*index]
    pictures.append(
      visualize.explain(image, result.mask(k), voters[0], votes, voters)
    )
    y, x = voters[0]
    titles.append(
      f"{k + 1} of {count}: {result.categories[result.classes[k] - 1]}"
      f" {result.scores[k]:.2f} at {y:.0f}, {x:.0f};"
      f" {evidence.num_votes[k]} votes, spread {evidence.spread[k]:.1f},"
      f" fill {evidence.fill[k]:.2f}"
    )
  if not pictures:
    return visualize.overlay(image, result)
  return visualize.panel(pictures, titles, columns=min(4, len(pictures)))
