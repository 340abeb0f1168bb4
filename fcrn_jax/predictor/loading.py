"""Networks from workdirs, ready to be applied to uint8 images."""

import functools
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Int, UInt8
from ml_collections import ConfigDict

from fcrn_jax import checkpoint, files, inference, instances, models
from fcrn_jax.types import Array, Preprocessing

PathLike = str | os.PathLike


def create_model(config: ConfigDict) -> models.FCRN:
  """The network of a config whose categories are filled in."""
  if not config.categories:
    raise ValueError(
      "config.categories is empty; training fills it in from the data set."
    )
  number = len(config.categories)
  sizes = {"semantic": number + 1, "boxes": number}
  heads = tuple(config.model.heads)
  if not heads or set(heads) - sizes.keys():
    raise ValueError(
      f"config.model.heads is {heads}; expected 'semantic', 'boxes' or both,"
      " such as '(\"semantic\",)'."
    )
  if config.model.dtype not in ("float32", "bfloat16"):
    raise ValueError(
      f"config.model.dtype is {config.model.dtype!r}; expected 'float32' or"
      " 'bfloat16'."
    )
  return models.create(
    config.model.name,
    {head: sizes[head] for head in heads},
    stride_in_1x1=config.model.stride_in_1x1,
    batch_norm=config.model.batch_norm,
    dtype=jnp.dtype(config.model.dtype),
    remat=config.model.remat,
    dropout=config.model.dropout,
    classifier_width=config.model.classifier_width,
    box_unit=config.model.box_unit,
    width=config.model.width,
    caffe_pool=config.model.get("caffe_pool", False),
  )


def preprocessing(config: ConfigDict) -> Preprocessing:
  """config.preprocessing as a function of images."""
  return Preprocessing(**config.preprocessing.to_dict())


class Network:
  """One workdir's network, on as many devices as a batch divides among."""

  def __init__(self, config, variables):
    self.config = config
    # Without a backward pass, remat would only cost time.
    self.model = create_model(config).clone(remat=False)
    if jax.default_backend() == "cpu":
      # Which has no arithmetic of half precision, and imitates it slowly.
      self.model = self.model.clone(dtype=jnp.dtype(jnp.float32))
    self.preprocessing = preprocessing(config)
    # Bound to no device, so that maps from here and from elsewhere run the
    # same compiled programs.
    variables = jax.tree.map(lambda x: jnp.asarray(np.asarray(x)), variables)
    self._variables = {1: variables}

  @property
  def variables(self) -> dict[str, Any]:
    """The network's weights and statistics."""
    return self._variables[1]

  def __call__(
    self, images: UInt8[Array, "b H W 3"], sizes: Int[Array, "b 2"]
  ) -> dict[str, Array]:
    """The heads' outputs, see inference.ApplyFn."""
    devices = jax.local_devices()
    if len(devices) == 1 or len(images) % len(devices):
      return _apply(
        self.model, self.preprocessing, self.variables, images, sizes
      )
    mesh = Mesh(np.array(devices), ("batch",))
    if len(devices) not in self._variables:
      everywhere = NamedSharding(mesh, PartitionSpec())
      self._variables[len(devices)] = jax.device_put(self.variables, everywhere)
    shared = NamedSharding(mesh, PartitionSpec("batch"))
    return _apply(
      self.model,
      self.preprocessing,
      self._variables[len(devices)],
      *jax.device_put((images, sizes), shared),
    )


@functools.partial(jax.jit, static_argnums=(0, 1))
def _apply(model, preprocessing, variables, images, sizes):
  # Not a closure of the variables, which would become constants of the
  # program; and a second predictor of the same network compiles nothing.
  return models.apply_within(model, variables, preprocessing(images), sizes)


def load(
  semantic: PathLike | None, localization: PathLike | None, step: int | None
) -> tuple[dict[str, Network], dict[str, Any]]:
  """Networks by head, and the arguments of a Predictor.

  Scores from one workdir, boxes from another or the same; the settings of the
  workdir that gives the boxes count.
  """
  workdirs = {"semantic": semantic, "boxes": localization}
  networks, steps = {}, {}
  for path in dict.fromkeys(map(str, filter(None, workdirs.values()))):
    config, variables, steps[path] = checkpoint.restore_for_inference(
      path, step
    )
    networks[path] = Network(config, variables)
  chosen = {
    head: networks[str(path)]
    for head, path in workdirs.items()
    if path is not None and head in networks[str(path)].config.model.heads
  }
  if "semantic" not in chosen:
    raise ValueError(
      f"no network gives scores (semantic={semantic}); pass semantic=WORKDIR of"
      " one trained with the head 'semantic', and the box network as"
      " localization=."
    )
  if localization not in (None, semantic) and "boxes" not in chosen:
    raise ValueError(
      f"{localization} is of a network without boxes; pass localization=WORKDIR"
      " of one trained with the head 'boxes'."
    )
  first, last = chosen["semantic"], chosen.get("boxes", chosen["semantic"])
  _check_alike(first.config, last.config)

  def apply_fn(images, sizes):
    outputs = {net: net(images, sizes) for net in {*chosen.values()}}
    return {head: outputs[net][head] for head, net in chosen.items()}

  config = last.config
  thresholds = _thresholds(localization or semantic)
  sources = [f"{path} at step {number}" for path, number in steps.items()]
  return chosen, {
    "apply_fn": apply_fn,
    "network_stride": min(net.model.stride for net in chosen.values()),
    "categories": config.categories,
    "views": fill(inference.Options, config.inference),
    "options": fill(
      instances.Options, config.instances, thresholds.get("instances")
    ),
    "input_scale": config.data.input_scale,
    "normalize": config.data.get("normalize", False),
    "source": " and ".join(sources),
    "step": steps[str(localization or semantic)],
    "trained_on": [
      dataset_arguments(network.config.data, "train")
      for network in networks.values()
    ],
    "category_ids": config.get("category_ids", ()),
    "tuned_on": thresholds if "ids" in thresholds else None,
    "background": config.get("background", "background"),
    "has_boxes": "boxes" in chosen,
  }


def dataset_arguments(config: ConfigDict, which: str) -> dict[str, Any]:
  """What data.load takes for the `train` or `val` split of config.data."""
  number = config[f"num_{which}"]
  options = {"num_images": number} if number else {}
  if config.on_error != "raise" and config.name == "folder":
    options["on_error"] = config.on_error
  if config.get("partial"):
    options["partial"] = True
  if config.get("categories"):
    options["categories"] = config.categories
  return {
    "name": config.name,
    "split": config[f"{which}_split"],
    "path": config.path or None,
    "options": options,
  }


def _check_alike(a, b):
  """Two networks must see the same image and mean the same categories."""
  for name, first, second in (
    ("categories", a.categories, b.categories),
    ("data.input_scale", a.data.input_scale, b.data.input_scale),
    ("data.normalize", a.data.get("normalize"), b.data.get("normalize")),
  ):
    if first != second:
      raise ValueError(
        f"config.{name} is {first} in the semantic network and {second} in the"
        " localization network; they must be equal. Retrain one of them."
      )


def fill(kind, config: ConfigDict, extra: Mapping[str, Any] | None = None):
  """Options of that kind from a part of a config and what overrides it."""
  values = {**config.to_dict(), **(extra or {})}
  known = kind.__annotations__
  unknown = sorted(values.keys() - known.keys())
  if unknown:
    raise ValueError(f"unknown settings {unknown}; expected {[*known]}.")
  return kind(**values)


def _thresholds(workdir: PathLike) -> dict[str, Any]:
  """What experiments.tune found, if it was run."""
  path = pathlib.Path(workdir) / "thresholds.json"
  if not path.is_file():
    return {}
  logging.info("thresholds of experiments.tune, from %s", path)
  return files.read_json(path)
