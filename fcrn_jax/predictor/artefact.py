"""A predictor as one file, and back; and a workdir's weights with a card.

Needs the models only to write: what is read runs by itself.
"""

import dataclasses
import datetime
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
from jaxtyping import Int

import fcrn_jax
from fcrn_jax import export, inference, instances
from fcrn_jax.predictor import grouping
from fcrn_jax.types import Array
from fcrn_jax.views import repeat_last, to_maps

if TYPE_CHECKING:
  from fcrn_jax.predictor import Predictor


def load(path: str | os.PathLike) -> dict[str, Any]:
  """The arguments of a Predictor from a file of Predictor.save."""
  if pathlib.Path(path).suffix == ".safetensors":
    raise ValueError(
      f"{path} holds weights alone, which start a training"
      " (--config.weights=FILE); to look at images pass a workdir of"
      " experiments.train, or a file of experiments.export --output=model.fcrn."
    )
  artefact = export.load(path)
  saved = artefact.metadata
  views = {
    name: tuple(value) if isinstance(value, list) else value
    for name, value in saved["views"].items()
  }
  return {
    "apply_fn": artefact.network,
    "network_stride": saved["stride"],
    "views": inference.Options(**views),
    "options": instances.Options(**saved["options"]),
    "source": str(path),
    "category_ids": saved.get("category_ids", ()),
    "tuned_on": saved.get("tuned_on"),
    "background": saved.get("background", "background"),
    "has_boxes": any("boxes" in name for name in saved["networks"]),
  } | {
    name: saved[name]
    for name in ("categories", "input_scale", "normalize", "step", "trained_on")
  }


def save(
  path: str | os.PathLike,
  predictor: "Predictor",
  networks: Mapping[str, Any],
) -> None:
  """Writes the file; `networks` are loading.Network by head."""
  from fcrn_jax import models

  strides = {network.model.stride for network in networks.values()}
  if len(strides) > 1:
    raise ValueError(
      f"the networks have strides {sorted(strides)}; a file needs networks of"
      " one stride."
    )
  (stride,) = strides
  distinct = {"+".join(_heads(net, networks)): net for net in networks.values()}

  def network_fn(weights, images, sizes):
    outputs = {}
    for name, network in distinct.items():
      out = models.apply_within(
        network.model, weights[name], network.preprocessing(images), sizes
      )
      outputs |= {head: out[head] for head in _heads(network, networks)}
    return outputs

  # The program knows the network's input only, min_area is of the image.
  min_area = predictor.options.min_area * predictor.input_scale**2
  options = dataclasses.replace(predictor.options, min_area=min_area)

  def segment_fn(outputs, sizes):
    return segment(outputs, sizes, options, stride)

  metadata = {
    "stride": stride,
    "categories": predictor.categories,
    "input_scale": predictor.input_scale,
    "normalize": predictor.normalize,
    "views": predictor.views._asdict(),
    "options": {
      name: value.item() if hasattr(value, "item") else value
      for name, value in vars(predictor.options).items()
    },
    "step": predictor.step,
    "trained_on": predictor.trained_on,
    "tuned_on": predictor.tuned_on,
    "category_ids": predictor.category_ids,
    "background": predictor.background,
    "networks": {name: card(net) for name, net in distinct.items()},
    "fcrn_jax": fcrn_jax.__version__,
    "date": datetime.date.today().isoformat(),
  }
  export.save(
    path,
    network_fn,
    segment_fn,
    {name: network.variables for name, network in distinct.items()},
    stride,
    metadata,
  )


def segment(
  outputs: Mapping[str, Array],
  sizes: Int[Array, "b 2"],
  options: instances.Options,
  stride: int,
) -> dict[str, Array]:
  """Steps 3 to 6 for outputs of one view; also where sizes are symbolic.

  As Predictor does it: cells beyond an image repeat its last ones.
  """

  def one(outputs, size):
    maps = to_maps(outputs["semantic"], outputs.get("boxes"), stride)
    maps = repeat_last(maps, -(-size // stride))
    found = grouping.group_image(maps, size, options, stride)
    flat = {"semantic": found.semantic, "confidence": found.confidence}
    if found.hypotheses is not None:
      hypotheses = found.hypotheses._asdict()
      del hypotheses["owners"]
      flat |= {"labels": found.labels, **hypotheses}
    return flat

  return jax.vmap(one)(dict(outputs), sizes)


def save_weights(
  path: str | os.PathLike,
  workdir: str | os.PathLike,
  step: int | None = None,
) -> None:
  """Writes a workdir's weights to .safetensors, and its card beside it.

  The card is also in the file's metadata; models.load_pretrained reads it.
  """
  from fcrn_jax import checkpoint, files
  from fcrn_jax.models import pretrained
  from fcrn_jax.predictor import loading

  config, variables, step = checkpoint.restore_for_inference(workdir, step)
  network = loading.Network(config, variables)
  model = network.model
  conventions = pretrained.Conventions(
    network.preprocessing,
    model.stride_in_1x1,
    model.caffe_pool,
    model.box_unit,
    config.data.get("normalize", False),
    config.data.input_scale,
  )
  scores = {}  # that these weights have, without an oracle's help
  for file in sorted(pathlib.Path(workdir).glob("eval_*.json")):
    values = files.read_json(file)
    if values.get("checkpoint_step") == step and not values.get("oracle"):
      scores[file.stem] = values
  whole = {**card(network), "step": step, "scores": scores}
  pretrained.write(path, variables, conventions, whole)
  files.write_json(pathlib.Path(path).with_suffix(".json"), whole)


def card(network: Any) -> dict[str, Any]:
  """JSON values that say what a loading.Network is and how it was trained."""
  model = network.model
  spec = model.spec
  return {
    "name": spec.name,
    "spec": {
      "depth": spec.depth,
      "stride": spec.stride,
      "kernel": spec.kernel,
      "dilation": spec.dilation,
      "field_of_view": spec.field_of_view,
    },
    "heads": dict(model.heads),
    "parameters": sum(
      x.size for x in jax.tree.leaves(network.variables["params"])
    ),
    "categories": network.config.categories,
    "preprocessing": network.preprocessing._asdict(),
    "config": network.config.to_dict(),
  }


def _heads(network: Any, networks: Mapping[str, Any]) -> Sequence[str]:
  """The heads that this network is asked for."""
  return [head for head, other in networks.items() if other is network]
