"""Weights of other libraries' ResNets, and our own, into our networks.

What the weights presuppose (preprocessing, place of the stride, alignment of
the max-pool) travels with them as `Conventions`.
"""

import json
import os
import pathlib
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from absl import logging
from flax import traverse_util

from fcrn_jax.files import replacing
from fcrn_jax.models import naming
from fcrn_jax.models.fcrn import FCRN
from fcrn_jax.models.readers import read_arrays
from fcrn_jax.types import Preprocessing, listed


class Conventions(NamedTuple):
  """What weights presuppose of their input and of their network."""

  preprocessing: Preprocessing
  stride_in_1x1: bool
  caffe_pool: bool = False
  box_unit: float = 1.0  # pixels; of a box head in the file
  normalize: bool = False  # images stretched, see transforms
  input_scale: float = 1.0  # images at so many times their size


# PROTOCOL b.2: the Caffe ResNets take BGR less the mean, of no scale.
_CAFFE_INPUT = Preprocessing((103.939, 116.779, 123.68), (1.0, 1.0, 1.0), "bgr")
SOURCES = {
  "torchvision": Conventions(Preprocessing(), stride_in_1x1=False),
  "caffe": Conventions(_CAFFE_INPUT, stride_in_1x1=True, caffe_pool=True),
  "keras": Conventions(_CAFFE_INPUT, stride_in_1x1=True),
}


class Weights(NamedTuple):
  """A weight file in our terms.

  `variables` is {"params": {"backbone": ..., heads ...}, "batch_stats": ...}
  of float32 numpy arrays; an ImageNet classifier is the 1 x 1 classifier
  "semantic". `unknown` are names in the file that have no place in a ResNet.
  """

  variables: dict[str, Any]
  conventions: Conventions
  unknown: tuple[str, ...]


def read(path: str | os.PathLike, source: str | None = None) -> Weights:
  """Reads .pth .safetensors .npz .caffemodel .h5 files of known ResNets.

  The naming of the arrays tells whose weights they are: torchvision's (and
  timm's; also the backbone of a larger network of PyTorch's), the original
  Caffe ResNets', Keras applications' or our own.
  `source`, a key of SOURCES, says otherwise whose conventions the weights
  follow, e.g. "caffe" for Caffe's weights under torchvision's names.
  """
  if source is not None and source not in SOURCES:
    raise ValueError(f"source is {source!r}; expected one of {list(SOURCES)}.")
  arrays, metadata = read_arrays(path)
  arrays, others = naming.backbone_of(arrays)
  if others:
    logging.info("%s: only its backbone is read, not %s.", path, others)
  layout = naming.detect(arrays)
  if layout is None:
    raise ValueError(
      f"{path} holds no ResNet that is known here; its first arrays are"
      f" {sorted(arrays)[:5]}."
    )
  conventions = _conventions(path, source or layout, metadata)
  try:
    flat, unknown = naming.convert(layout, arrays)
  except (KeyError, ValueError, TypeError) as error:
    raise ValueError(
      f"{path} holds arrays that are none of a {layout} ResNet: {error!r}."
    ) from error
  flat = {
    name: np.ascontiguousarray(value, np.float32)
    for name, value in flat.items()
  }
  variables = {"params": {}, "batch_stats": {}}
  variables |= traverse_util.unflatten_dict(flat, sep="/")
  return Weights(variables, conventions, tuple(unknown))


def _conventions(path, source, metadata):
  """SOURCES' for a known source, else those that the file states."""
  if source in SOURCES:
    return SOURCES[source]
  if "conventions" not in metadata:
    raise ValueError(
      f"{path} does not say what its weights presuppose (preprocessing, place"
      f" of the stride); pass source, one of {list(SOURCES)}."
    )
  try:
    values = json.loads(metadata["conventions"])
    pixels = values.pop("preprocessing")
    mean, scale = tuple(pixels["mean"]), tuple(pixels["scale"])
    pixels = Preprocessing(mean, scale, pixels["channel_order"])
    return Conventions(pixels, **values)
  except (KeyError, TypeError, ValueError) as error:
    raise ValueError(
      f"{path} has broken metadata {metadata['conventions']!r}: {error!r}."
    ) from error


def preprocessing(
  path: str | os.PathLike, source: str | None = None
) -> Preprocessing:
  """The preprocessing that the file's weights expect; see `read`."""
  return read(path, source).conventions.preprocessing


def load_pretrained(
  path: str | os.PathLike,
  model: FCRN,
  variables: dict[str, Any],
  source: str | None = None,
  preprocessing: Preprocessing | None = None,
) -> dict[str, Any]:
  """`variables` of `model` with the file's weights in their places.

  A head that the file lacks, or has for another number of classes, keeps its
  values, with a warning of one line.

  Args:
    path: see `read`; `fcrn.models.pretrained.preprocessing(path)` is the
      preprocessing that the result expects.
    model: the network, from models.create.
    variables: of model.init; not changed.
    source: see `read`.
    preprocessing: what the images will get; must be the file's. Without it, a
      file that expects another one than types.Preprocessing() by default is
      warned of.

  Raises:
    ValueError: the file cannot be read, or its weights do not fit: names,
      shapes, place of the stride, alignment of the max-pool, preprocessing.
  """
  weights = read(path, source)
  name = pathlib.Path(path).name
  _check_conventions(name, weights, model, preprocessing)
  flat = traverse_util.flatten_dict(weights.variables, sep="/")
  wanted = traverse_util.flatten_dict(dict(variables), sep="/")
  unused = _unused_in_heads(name, flat, wanted, model.heads)
  expected, found = set(wanted) - unused, set(flat) - unused
  shapes = {
    f"{key} {flat[key].shape}, expected {wanted[key].shape}"
    for key in expected & found
    if flat[key].shape != wanted[key].shape
  }
  if expected != found or shapes or weights.unknown:
    raise ValueError(
      f"{name} does not fit {model.spec.name}."
      + _listed("Missing", expected - found)
      + _listed("Unexpected", (found - expected) | set(weights.unknown))
      + _listed("Of another shape", shapes)
      + (
        f" The model's width is {model.width}; of other libraries' networks it"
        " is 64 (--config.model.width=64)."
        if shapes and model.width != 64
        else ""
      )
    )
  box_unit = weights.conventions.box_unit
  if "params/boxes/classifier/bias" in found and box_unit != model.box_unit:
    raise ValueError(
      f"{name} has boxes in units of {box_unit} pixels, the model of"
      f" {model.box_unit}; create it with box_unit={box_unit}."
    )
  conventions = weights.conventions
  inputs = [str(conventions.preprocessing)]
  if conventions.normalize:
    inputs.append("normalized images")
  if conventions.input_scale != 1:
    inputs.append(f"images at {conventions.input_scale} times their size")
  # Said aloud where nobody has said what the images get, and it is not what
  # they would get by default.
  usual = len(inputs) == 1 and _alike(
    conventions.preprocessing, Preprocessing()
  )
  logging.log(
    logging.INFO if usual or preprocessing is not None else logging.WARNING,
    "%s: %d arrays loaded; they expect %s.",
    name, len(found), ", ".join(inputs),
  )  # fmt: skip
  merged = wanted | {key: jnp.asarray(flat[key]) for key in found}
  return traverse_util.unflatten_dict(merged, sep="/")


def _unused_in_heads(name, flat, wanted, heads):
  """Keys of the file and of the model that need no partner; logs each head."""
  unused = set()
  for head in sorted({"semantic", "boxes"} & {*heads, *_heads(flat)}):
    prefix = f"params/{head}/"
    bias = f"{prefix}classifier/bias"
    inside = {key for key in {*flat, *wanted} if key.startswith(prefix)}
    if head not in heads:
      logging.info("%s: its head %r is not in the model.", name, head)
      unused |= inside
    elif bias not in flat:
      logging.warning("%s has no head %r: it keeps its values.", name, head)
      unused |= inside
    elif flat[bias].shape != wanted[bias].shape:
      logging.warning(
        "%s: classifier of head %r skipped: %d outputs, the model has %d.",
        name, head, flat[bias].size, wanted[bias].size,
      )  # fmt: skip
      # A hidden layer of both is of use; an ImageNet classifier has none.
      both = {
        key for key in inside & set(flat) & set(wanted) if "hidden" in key
      }
      unused |= inside - both
  return unused


def _heads(flat):
  return {key.split("/")[1] for key in flat if key.startswith("params/")}


def write(
  path: str | os.PathLike,
  variables: dict[str, Any],
  conventions: Conventions,
  card: dict[str, Any] | None = None,
) -> None:
  """Writes a .safetensors file that `read` takes; `card` goes along as JSON."""
  path = pathlib.Path(path)
  if path.suffix != ".safetensors":
    raise ValueError(f"{path} has another suffix than .safetensors.")
  values = conventions._asdict()
  values["preprocessing"] = conventions.preprocessing._asdict()
  metadata = {
    "format": "fcrn_jax",
    "conventions": json.dumps(values),
    "card": json.dumps(card or {}),
  }
  flat = traverse_util.flatten_dict(dict(variables), sep="/")
  arrays = {
    key: np.ascontiguousarray(value, np.float32) for key, value in flat.items()
  }
  with replacing(path) as temporary:
    # save_file leaves a file that its owner alone may read.
    temporary.write_bytes(safetensors.numpy.save(arrays, metadata))


def _check_conventions(name, weights, model, preprocessing):
  """Raises where weights and model, or weights and images, disagree."""
  found = weights.conventions
  if preprocessing is not None and not _alike(
    preprocessing, found.preprocessing
  ):
    raise ValueError(
      f"{name} expects {found.preprocessing}, but the images get"
      f" {preprocessing}; set the config's preprocessing to the file's."
    )
  # A basic block (ResNet-18, 34) has no 1 x 1 that could carry the stride.
  deep = model.spec.depth >= 50
  for setting in ("stride_in_1x1", "caffe_pool") if deep else ("caffe_pool",):
    theirs, ours = getattr(found, setting), getattr(model, setting)
    if theirs != ours:
      raise ValueError(
        f"{name} is of a network with {setting}={theirs}, the model has {ours}"
        f" and would see other features; create it with {setting}={theirs}"
        f" (--config.model.{setting}={theirs}). Where the file follows other"
        f" conventions than its names tell, pass source, one of {list(SOURCES)}"
        " (--source of experiments.convert_weights)."
      )


def _alike(a, b):
  """Whether two preprocessings are one, but for rounding in a config."""
  numbers = [np.concatenate([x.mean, x.scale]) for x in (a, b)]
  same = np.allclose(*numbers, rtol=1e-4, atol=0)
  return same and a.channel_order == b.channel_order


def _listed(title, keys):
  if not keys:
    return ""
  return f" {title}: {listed(sorted(keys))}."
