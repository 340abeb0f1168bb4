r"""Converts ImageNet weights of other libraries to our .safetensors.

  python -m experiments.convert_weights --input=resnet101.pth \
      --output=resnet101.safetensors
  python -m experiments.convert_weights --input=ResNet-101-model.caffemodel \
      --output=resnet101_caffe.safetensors

Reads .pth .safetensors .npz (torchvision, timm), .caffemodel (the original
ResNets) and .h5 (Keras applications); nothing in the file is executed. What
the weights presuppose (preprocessing, place of the stride) goes along.
"""

import pathlib

from absl import flags

from experiments import command

_INPUT = flags.DEFINE_string("input", None, "Weight file to read.")
_OUTPUT = flags.DEFINE_string("output", None, "The .safetensors to write.")
_SOURCE = flags.DEFINE_enum(
  "source", None, ["torchvision", "caffe", "keras"],
  "Whose conventions the weights follow, where the arrays' names mislead.",
)  # fmt: skip


def main():
  """Converts one file."""
  from fcrn_jax.models import pretrained

  weights = pretrained.read(_INPUT.value, _SOURCE.value)
  if weights.unknown:
    raise ValueError(
      f"{_INPUT.value} holds more than a ResNet: {', '.join(weights.unknown)}."
    )
  card = {"converted_from": pathlib.Path(_INPUT.value).name}
  pretrained.write(_OUTPUT.value, weights.variables, weights.conventions, card)
  found = weights.conventions
  print(
    f"{_OUTPUT.value}: train with --config.weights={_OUTPUT.value}\n"
    f"  preprocessing {found.preprocessing}\n"
    f"  model.stride_in_1x1={found.stride_in_1x1}"
    f" model.caffe_pool={found.caffe_pool}"
  )


if __name__ == "__main__":
  flags.mark_flags_as_required(["input", "output"])
  command.run(main)
