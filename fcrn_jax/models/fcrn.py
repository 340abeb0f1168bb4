"""The fully convolutional residual network: a backbone and its heads."""

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Float

from fcrn_jax.models.layers import conv, he_normal, wide_conv
from fcrn_jax.models.resnet import STAGES, ResNet
from fcrn_jax.types import Array

HEADS = ("semantic", "boxes")
# Outputs from which on a 3 x 3 is quicker as it is: of 2048 to 512 channels
# 0.8 s forward and 3.5 with the gradient, against 2.0 and 4.4 (63 x 63 cells,
# two busy cores of an EPYC).
_MANY = 256


class PaperRow(NamedTuple):
  """A row of the paper's tables that used this network; figures in percent."""

  table: int
  dataset: str  # "voc2012", "cityscapes", "pascal_context", "voc2012_sbd"
  setting: str
  pixel_accuracy: float | None = None
  mean_accuracy: float | None = None
  mean_iou: float | None = None
  ap_r_05: float | None = None
  ap_r_07: float | None = None
  ap_r_vol: float | None = None


@dataclasses.dataclass(frozen=True)
class Spec:
  """What a zoo name says."""

  name: str
  depth: int
  stride: int  # input pixels per output pixel
  kernel: int  # of the classifier
  dilation: int  # of the classifier
  base_width: int = 64  # channels of the stem
  paper: tuple[PaperRow, ...] = ()

  @property
  def field_of_view(self) -> int:
    """Extent of the classifier in input pixels, as in Tables 1 and 3."""
    return ((self.kernel - 1) * self.dilation + 1) * self.stride

  def num_params(
    self, heads: Mapping[str, int], width: int = 64, classifier_width: int = 0
  ) -> int:
    """Number of trainable values of the network with these heads."""
    model = FCRN(self, heads, width=width, classifier_width=classifier_width)
    shapes = jax.eval_shape(
      model.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3))
    )
    return sum(x.size for x in jax.tree.leaves(shapes["params"]))


class Classifier(nn.Module):
  """The dilated classifier over the last features, its output in float32.

  Linear in the paper's tables; with `width`, a 3 x 3 convolution of that many
  channels and a ReLU come first (PROTOCOL b.2: "2 conv.").
  """

  features: int
  kernel: int
  dilation: int
  dtype: DTypeLike
  width: int = 0
  gain: float = 1.0
  bias_init: nn.initializers.Initializer = nn.initializers.zeros

  @nn.compact
  def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b h w o"]:
    """One prediction per cell."""
    if self.width:
      hidden = WideConv(self.width, 3, self.dilation, self.dtype, name="hidden")
      x = nn.relu(hidden(x))
    return WideConv(
      self.features,
      self.kernel,
      self.dilation,
      self.dtype,
      self.gain,
      self.bias_init,
      name="classifier",
    )(x)


class WideConv(nn.Module):
  """A convolution with bias that computes in `dtype` and returns float32."""

  features: int
  size: int
  dilation: int
  dtype: DTypeLike
  gain: float = 1.0  # of the initial kernel
  bias_init: nn.initializers.Initializer = nn.initializers.zeros

  @nn.compact
  def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b h w o"]:
    """conv(x) + bias."""
    shape = (self.size, self.size, x.shape[-1], self.features)
    kernel = self.param("kernel", he_normal(self.gain), shape)
    bias = self.param("bias", self.bias_init, (self.features,))
    x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
    if self.size == 3 and self.features >= _MANY:
      return conv(x, kernel, 1, self.dilation).astype(jnp.float32) + bias
    return wide_conv(x, kernel, self.dilation) + bias


def _box_bias(key, shape, dtype=jnp.float32):
  """Offsets start at 0, heights and widths at one box unit."""
  del key
  return jnp.tile(jnp.array([0, 0, 1, 1], dtype), shape[0] // 4)


class FCRN(nn.Module):
  """Scores and boxes for every cell of 1 / stride of the image.

  `heads` maps "semantic" to its number of classes with background, and
  "boxes" to its number of foreground categories.
  """

  spec: Spec
  heads: Mapping[str, int]
  stride_in_1x1: bool = True
  batch_norm: str = "frozen"
  dtype: DTypeLike = jnp.float32
  remat: bool = False
  dropout: bool = False
  classifier_width: int = 0
  box_unit: float = 1.0  # pixels
  width: int = 64  # 64 = the network as named; scales all its channels
  caffe_pool: bool = False

  @property
  def stride(self) -> int:
    """Input pixels per output pixel."""
    return self.spec.stride

  def coarser(self, factor: int) -> "FCRN":
    """The network whose cells are every factor-th one of this one's.

    Its parameters are the same: only strides and dilations differ.
    """
    dilation, rest = divmod(self.spec.dilation, factor)
    dilated = self.spec.kernel > 1 or self.classifier_width
    if (rest and dilated) or self.stride * factor > 32:
      raise ValueError(
        f"{self.spec.name} has no network {factor} times as coarse; its stride"
        f" times {factor} must be at most 32 and its classifier's dilation a"
        f" multiple of {factor}."
      )
    spec = dataclasses.replace(
      self.spec, stride=self.stride * factor, dilation=max(dilation, 1)
    )
    return self.clone(spec=spec)

  @nn.compact
  def __call__(
    self,
    images: Float[Array, "b H W 3"],
    train: bool = False,
    capture: tuple[str, ...] = (),
  ) -> dict[str, Float[Array, "b ..."]]:
    """Outputs of the heads for preprocessed images.

    Args:
      images: after types.Preprocessing.
      train: uses batch statistics (unless frozen) and dropout.
      capture: stages ("stem", "layer1" ... "layer4") whose features `b h w c`
        are to be returned too, in the compute dtype.

    Returns:
      float32 "semantic" b h w c logits and / or "boxes" b h w c 4, (dy, dx,
      height, width) in pixels, with h = ceil(H / stride); captured features.
    """
    if not set(capture) <= set(STAGES):
      raise ValueError(f"capture is {capture}; expected stages of {STAGES}.")
    features = ResNet(
      self.spec.depth,
      self.spec.stride,
      self.width * self.spec.base_width // 64,
      self.stride_in_1x1,
      self.batch_norm,
      self.dtype,
      self.dropout,
      self.remat,
      self.caffe_pool,
      name="backbone",
    )(images, train)
    out = {stage: features[stage] for stage in capture}
    top = features["layer4"]
    if "semantic" in self.heads:
      head = self._head("semantic", self.heads["semantic"])
      out["semantic"] = head(top)
    if "boxes" in self.heads:
      # A tenth of He's deviation: first boxes stay near the bias; ours.
      head = self._head("boxes", 4 * self.heads["boxes"], 0.1, _box_bias)
      boxes = head(top).reshape(*top.shape[:3], self.heads["boxes"], 4)
      out["boxes"] = boxes * self.box_unit
    return out

  def _head(self, name, features, gain=1.0, bias_init=nn.initializers.zeros):
    return Classifier(
      features,
      self.spec.kernel,
      self.spec.dilation,
      self.dtype,
      self.classifier_width,
      gain,
      bias_init,
      name=name,
    )
