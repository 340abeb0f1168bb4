"""One file that holds networks and grouping: any image size, any device.

The file is a zip of `metadata.json`, `weights.safetensors` and two programs
of jax.export for cpu, cuda and tpu, whose batch and image size are symbolic:

  network.jaxexport   (weights, images, sizes) -> outputs of the heads
  segment.jaxexport   (weights, images, sizes) -> category map and instances

`weights` is the dict of the safetensors file, `images` are uint8 RGB, `b H W
3` with H and W multiples of metadata["multiple"], `sizes` int32 `b 2` the part
(height, width) of each that is not padding. To run a file, neither the models
nor Flax are needed, and without this library jax, which reads programs by means
of flatbuffers, and safetensors are enough.
"""

import functools
import json
import os
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import flatbuffers  # noqa: F401  jax.export needs it to write and to read
import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from jax import export as jax_export
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Int, UInt8

from fcrn_jax import inference
from fcrn_jax.files import replacing
from fcrn_jax.types import FILL, Array

PLATFORMS = ("cpu", "cuda", "tpu")
FORMAT = 1


class Artefact:
  """An exported file, loaded.

  Attributes:
    metadata: categories, preprocessing, settings, versions; see
      predictor.artefact.
  """

  def __init__(self, metadata: dict[str, Any], weights, programs):
    """See `load`; programs are jax.export.Exported by name."""
    self.metadata = metadata
    self._weights = weights
    self._programs = programs
    self._placed: dict[int, Any] = {}  # weights and jitted programs

  def network(
    self, images: UInt8[Array, "b H W 3"], sizes: Int[Array, "b 2"]
  ) -> dict[str, Array]:
    """The heads' outputs, see inference.ApplyFn.

    H and W are multiples of metadata["multiple"].
    """
    return self._run("network", images, sizes)

  def call(self, images: UInt8[Array, "..."]) -> dict[str, Array]:
    """Category map and instances of images of any one size, b H W 3.

    They are padded as the Predictor pads them (inference.bucket), and must
    have been resized by metadata["input_scale"] and, where
    metadata["normalize"], stretched (transforms.normalize_intensity).

    Returns, in their pixels: semantic b H W (0 = background), confidence
    b H W, and with a box head labels b r H W (index of the instance that a
    pixel belongs to, or -1) and what instances.Hypotheses tells of each but
    the owners: classes b m (1 ... C), scores b m, boxes b m 4 (y0 x0 y1 x1),
    valid b m, truncated b and so on. A Predictor groups again with more room
    where fragments took that of instances, this program does not: export
    with a larger instances.Options.room where truncated says that it is full.
    """
    images = np.asarray(images)
    if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8:
      raise ValueError(
        f"images are {images.dtype} of shape {images.shape}; expected uint8 of"
        " shape (b, H, W, 3)."
      )
    count, height, width, _ = images.shape
    padded = [inference.bucket(n) for n in (height, width)]
    canvas = np.empty((count, *padded, 3), np.uint8)
    canvas[:] = FILL
    canvas[:, :height, :width] = images
    sizes = np.tile(np.int32([height, width]), (count, 1))
    out = self._run("segment", canvas, sizes)
    for name in ("semantic", "confidence", "labels"):
      if name in out:
        out[name] = out[name][..., :height, :width]
    return out

  def _run(self, name, *batch):
    """The program's result, the batch shared out where devices divide it."""
    devices = jax.local_devices()
    count = 1 if len(batch[0]) % len(devices) else len(devices)
    if count not in self._placed:
      mesh = Mesh(np.array(devices[:count]), ("batch",))
      weights = jax.device_put(
        self._weights, NamedSharding(mesh, PartitionSpec())
      )
      shared = PartitionSpec("batch")
      programs = {
        key: jax.jit(
          jax.shard_map(
            lambda weights, batch, program=program: program.call(
              weights, *batch
            ),
            mesh=mesh,
            in_specs=(PartitionSpec(), shared),
            out_specs=shared,
            check_vma=False,
          )
        )
        for key, program in self._programs.items()
      }
      self._placed[count] = weights, programs
    weights, programs = self._placed[count]
    return programs[name](weights, batch)


def save(
  path: str | os.PathLike,
  network_fn: Callable[[Any, Array, Array], Mapping[str, Array]],
  segment_fn: Callable[[Mapping[str, Array], Array], Mapping[str, Array]],
  weights: Mapping[str, Any],
  multiple: int,
  metadata: Mapping[str, Any],
) -> None:
  """Writes the file, complete or not at all.

  Args:
    path: of the file.
    network_fn: (weights, images, sizes) -> outputs of the heads.
    segment_fn: (outputs, sizes) -> flat dict of the results.
    weights: nested dict of arrays.
    multiple: what image sizes must be multiples of.
    metadata: JSON values that go along.
  """
  flat = {key: np.asarray(value) for key, value in _flatten(weights)}
  shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), flat)
  b, h, w = jax_export.symbolic_shape("b, h, w")
  size = (b, multiple * h, multiple * w, 3)
  images = jax.ShapeDtypeStruct(size, jnp.uint8)
  sizes = jax.ShapeDtypeStruct((b, 2), jnp.int32)

  def network(flat, images, sizes):
    return dict(network_fn(_unflatten(flat), images, sizes))

  def segment(flat, images, sizes):
    return dict(segment_fn(network(flat, images, sizes), sizes))

  export = functools.partial(jax_export.export, platforms=PLATFORMS)
  programs = {
    "network": export(jax.jit(network))(shapes, images, sizes),
    "segment": export(jax.jit(segment))(shapes, images, sizes),
  }
  metadata = {
    **metadata,
    "format": FORMAT,
    "multiple": multiple,
    "platforms": PLATFORMS,
    "jax": jax.__version__,
  }
  with (
    replacing(path) as temporary,
    zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive,
  ):
    archive.writestr("metadata.json", json.dumps(metadata, indent=2))
    archive.writestr("weights.safetensors", safetensors.numpy.save(flat))
    for name, program in programs.items():
      archive.writestr(f"{name}.jaxexport", bytes(program.serialize()))


def load(path: str | os.PathLike) -> Artefact:
  """Loads a file of `save`; ValueError names one that is none, or is cut."""
  try:
    with zipfile.ZipFile(path) as archive:
      metadata = json.loads(archive.read("metadata.json"))
      weights = safetensors.numpy.load(archive.read("weights.safetensors"))
      programs = {
        name: archive.read(f"{name}.jaxexport")
        for name in ("network", "segment")
      }
  except (
    KeyError, ValueError, zipfile.BadZipFile, safetensors.SafetensorError,
  ) as error:  # fmt: skip
    raise ValueError(
      f"{path} is no whole file of experiments.export: {error!r}."
    ) from error
  if metadata.get("format") != FORMAT:
    raise ValueError(
      f"{path} is of format {metadata.get('format')}; this library reads"
      f" {FORMAT}. Export it again."
    )
  try:
    programs = {
      name: jax_export.deserialize(bytearray(program))
      for name, program in programs.items()
    }
  except Exception as error:  # whatever jaxlib raises; the cause is shown
    raise ValueError(
      f"{path} was exported by JAX {metadata['jax']}, which JAX"
      f" {jax.__version__} does not read: {error}. Export it again."
    ) from error
  return Artefact(metadata, weights, programs)


def _flatten(tree, prefix=""):
  """("a/b/c", array) of nested dicts."""
  for key, value in tree.items():
    if isinstance(value, Mapping):
      yield from _flatten(value, f"{prefix}{key}/")
    else:
      yield f"{prefix}{key}", value


def _unflatten(flat):
  tree: dict[str, Any] = {}
  for key, value in flat.items():
    *parents, leaf = key.split("/")
    node = tree
    for parent in parents:
      node = node.setdefault(parent, {})
    node[leaf] = value
  return tree
