"""Other libraries' names for the arrays of a ResNet, in our terms.

Each `convert` takes the arrays of a file (see readers) and returns flat
variables, {"params/backbone/conv1/kernel": HWIO, ...}, and the names that
have no place in a ResNet. An ImageNet classifier becomes the 1 x 1 classifier
of the head "semantic".
"""

import re
from collections.abc import Callable

import numpy as np

from fcrn_jax.models.readers import Arrays

Flat = dict[str, np.ndarray]
EPSILON = 1e-5  # of our BatchNorm; others' is folded into the variance
_KERAS_EPSILON = 1.001e-5  # of keras.applications' ResNets


def backbone_of(arrays: Arrays) -> tuple[Arrays, list[str]]:
  """The arrays of the ResNet in another network of PyTorch's, and its rest.

  "backbone.layer1.0.conv1.weight" becomes "layer1.0.conv1.weight", and what
  lies beside "backbone." is the rest. Others' arrays are returned as they are.
  """
  for name in arrays:
    if match := re.fullmatch(r"(.+\.)layer1\.0\.conv1\.weight", name):
      prefix, inside, rest = match[1], {}, set()
      for key, value in arrays.items():
        if key.startswith(prefix):
          inside[key.removeprefix(prefix)] = value
        else:
          rest.add(key.split(".")[0])
      return inside, sorted(rest)
  return arrays, []


def detect(arrays: Arrays) -> str | None:
  """Whose names these are: "fcrn_jax", "torchvision", "caffe" or "keras"."""
  for layout, sign in _SIGNS.items():
    if any(re.match(sign, name) for name in arrays):
      return layout
  return None


def convert(layout: str, arrays: Arrays) -> tuple[Flat, list[str]]:
  """(flat variables, unknown names) of arrays named by `layout`."""
  return _CONVERTERS[layout](arrays)


def _place(module, leaf):
  """Our name for an array of a backbone's module."""
  kind = "batch_stats" if leaf in ("mean", "var") else "params"
  return f"{kind}/backbone/{module}/{leaf}"


def _assemble(modules, classifier, epsilon):
  """Flat variables of {module: {leaf: array}}; folds biases and epsilons.

  A convolution's bias before a BatchNorm is the same as a mean less by it.
  """
  flat = {}
  for module, leaves in modules.items():
    leaves = dict(leaves)
    if "var" in leaves:
      extra = leaves.pop("eps", epsilon) - EPSILON
      leaves["var"] = leaves["var"].astype(np.float64) + extra
      conv = modules.get(module.replace("bn", "conv"), {})
      if "bias" in conv and "mean" in leaves:
        leaves["mean"] = leaves["mean"].astype(np.float64) - conv["bias"]
    if "kernel" in leaves:
      leaves.pop("bias", None)
    flat |= {_place(module, leaf): value for leaf, value in leaves.items()}
  for leaf, value in classifier.items():
    value = value[None, None] if leaf == "kernel" else value
    flat[f"params/semantic/classifier/{leaf}"] = value
  return flat


_TORCH_CONV = {"weight": "kernel", "bias": "bias"}
_TORCH_NORM = {
  "weight": "scale",
  "bias": "bias",
  "running_mean": "mean",
  "running_var": "var",
}


def _convert_torch(arrays):
  modules, classifier, unknown = {}, {}, []
  for name, value in arrays.items():
    owner, _, leaf = name.rpartition(".")
    if leaf == "num_batches_tracked":
      continue
    if owner == "fc" and leaf in _TORCH_CONV:
      classifier[_TORCH_CONV[leaf]] = value.T
      continue
    owner = re.sub(r"^(layer\d)\.(\d+)\.", r"\1_\2/", owner)
    owner = owner.replace("downsample.0", "downsample_conv")
    owner = owner.replace("downsample.1", "downsample_bn")
    is_norm = "bn" in owner
    leaf = (_TORCH_NORM if is_norm else _TORCH_CONV).get(leaf)
    if leaf is None or not re.fullmatch(_MODULE, owner):
      unknown.append(name)
      continue
    if leaf == "kernel":
      value = value.transpose(2, 3, 1, 0)
    modules.setdefault(owner, {})[leaf] = value
  return _assemble(modules, classifier, EPSILON), unknown


_MODULE = r"(layer\d_\d+/)?((conv|bn)\d|downsample_(conv|bn))"
_PART = {"1": "downsample_", "2a": 1, "2b": 2, "2c": 3}  # Caffe's branches


def _caffe_module(layer):
  """Our name for a layer of the original prototxt, None for another."""
  stem = {"conv1": "conv1", "bn_conv1": "bn1", "scale_conv1": "bn1"}
  if layer in stem:
    return stem[layer]
  pattern = r"(res|bn|scale)([2-5])([a-z])(\d*)_branch(1|2[abc])"
  match = re.fullmatch(pattern, layer)
  if not match:
    return None
  kind, stage, letter, number, branch = match.groups()
  block = int(number) if number else ord(letter) - ord("a")
  part, kind = _PART[branch], "conv" if kind == "res" else "bn"
  part = f"{part}{kind}" if branch == "1" else f"{kind}{part}"
  return f"layer{int(stage) - 1}_{block}/{part}"


def _convert_caffe(arrays):
  modules, classifier, unknown = {}, {}, []
  for name, value in arrays.items():
    layer, _, index = name.rpartition("/")
    if layer == "fc1000":
      if index == "0":
        classifier["kernel"] = value.reshape(value.shape[-2:]).T
      else:
        classifier["bias"] = value.reshape(-1)
      continue
    module = _caffe_module(layer)
    if layer.startswith("scale"):
      leaf = {"0": "scale", "1": "bias"}.get(index)
    elif layer.startswith("bn"):
      leaf = {"0": "mean", "1": "var", "2": "factor", "eps": "eps"}.get(index)
    else:
      leaf = {"0": "kernel", "1": "bias"}.get(index)
    if module is None or leaf is None:
      unknown.append(name)
      continue
    if leaf == "kernel":
      value = value.transpose(2, 3, 1, 0)
    modules.setdefault(module, {})[leaf] = value
  for leaves in modules.values():
    if "factor" in leaves:
      # Caffe keeps sums: both statistics are to be divided by the factor.
      factor = float(leaves.pop("factor").reshape(()))
      inverse = 1 / factor if factor else 0.0
      for leaf in ("mean", "var"):
        leaves[leaf] = leaves[leaf].astype(np.float64) * inverse
  return _assemble(modules, classifier, EPSILON), unknown


_KERAS_LEAF = {
  "kernel": "kernel",
  "bias": "bias",
  "gamma": "scale",
  "beta": "bias",
  "moving_mean": "mean",
  "moving_variance": "var",
}


def _convert_keras(arrays):
  modules, classifier, unknown = {}, {}, []
  for name, value in arrays.items():
    layer, _, leaf = name.rpartition("/")
    leaf = _KERAS_LEAF.get(leaf)
    if layer in ("predictions", "fc1000") and leaf in ("kernel", "bias"):
      classifier[leaf] = value
      continue
    match = re.fullmatch(r"conv(\d)_(?:block(\d+)_(\d)_)?(conv|bn)", layer)
    if not match or leaf is None:
      unknown.append(name)
      continue
    stage, block, part, kind = match.groups()
    if block is None:
      module = f"{kind}{stage}"
    else:
      owner = f"layer{int(stage) - 1}_{int(block) - 1}"
      part = f"downsample_{kind}" if part == "0" else f"{kind}{part}"
      module = f"{owner}/{part}"
    modules.setdefault(module, {})[leaf] = value
  return _assemble(modules, classifier, _KERAS_EPSILON), unknown


_SIGNS = {
  "fcrn_jax": "params/",
  "torchvision": r"layer1\.0\.",
  "caffe": r"res2a_branch",
  "keras": r"conv2_block1_",
}
_CONVERTERS: dict[str, Callable[[Arrays], tuple[Flat, list[str]]]] = {
  "fcrn_jax": lambda arrays: (arrays, []),
  "torchvision": _convert_torch,
  "caffe": _convert_caffe,
  "keras": _convert_keras,
}
