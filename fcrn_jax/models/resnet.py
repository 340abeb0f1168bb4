"""ResNet-18 ... 152 at any output stride, from 1 to 32.

The network is that of He et al. 2016 (the paper's [6]); where a down-sampling
is removed, the kernels after it are dilated instead (section 2.3).
"""

from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Float

from fcrn_jax.models.layers import BatchNorm, Conv, add_relu, max_pool
from fcrn_jax.types import Array

# Blocks per stage; 10 is ours, for tests.
BLOCKS = {
  10: (1, 1, 1, 1),
  18: (2, 2, 2, 2),
  34: (3, 4, 6, 3),
  50: (3, 4, 6, 3),
  101: (3, 4, 23, 3),
  152: (3, 8, 36, 3),
}
STRIDES = (1, 2, 4, 8, 16, 32)
STAGES = ("stem", "layer1", "layer2", "layer3", "layer4")


class Step(NamedTuple):
  """A down-sampling: its stride (1 = removed), dilation at it and after it."""

  stride: int
  before: int
  after: int


def down_samplings(output_stride: int) -> list[Step]:
  """The five down-samplings (conv1, max-pool, layer2, layer3, layer4).

  The last ones are removed first; each removed one doubles the dilation of
  whatever comes after it.
  """
  if output_stride not in STRIDES:
    raise ValueError(
      f"output_stride is {output_stride}; expected one of {STRIDES}."
    )
  steps, reached, dilation = [], 1, 1
  for _ in range(5):
    stride = 2 if reached < output_stride else 1
    after = dilation * 2 // stride
    steps.append(Step(stride, dilation, after))
    reached, dilation = reached * stride, after
  return steps


class Block(nn.Module):
  """A residual block: basic (two 3 x 3) or bottleneck (1 x 1, 3 x 3, 1 x 1).

  `step` holds the block's stride, and the dilation before and after it. The
  3 x 3 that carries the stride keeps the dilation before; one that comes after
  the stride has the dilation after. Dropout, where used, comes just before
  the last convolution (PROTOCOL b.2: the authors' later code).
  """

  channels: int  # of the 3 x 3
  bottleneck: bool
  step: Step
  stride_in_1x1: bool
  batch_norm: str
  dtype: DTypeLike
  dropout: float = 0.0

  @nn.compact
  def __call__(
    self, x: Float[Array, "b h w i"], train: bool
  ) -> Float[Array, "b h2 w2 o"]:
    """The block's output after its last ReLU."""
    layers = self._layers()
    residual = x
    if x.shape[-1] != layers[-1][0]:
      names = ("downsample_conv", "downsample_bn")
      shortcut = (layers[-1][0], 1, self.step.stride, 1)
      residual = self._normed(x, train, names, shortcut)
    for index, layer in enumerate(layers, 1):
      if index == len(layers) and self.dropout:
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
      x = self._normed(x, train, (f"conv{index}", f"bn{index}"), layer)
      if index < len(layers):
        x = nn.relu(x)
    return add_relu(x, residual)

  def _layers(self):
    """(features, size, stride, dilation) of each convolution."""
    stride, before, after = self.step
    c = self.channels
    if not self.bottleneck:
      return [(c, 3, stride, before), (c, 3, 1, after)]
    if self.stride_in_1x1:
      return [(c, 1, stride, 1), (c, 3, 1, after), (4 * c, 1, 1, 1)]
    return [(c, 1, 1, 1), (c, 3, stride, before), (4 * c, 1, 1, 1)]

  def _normed(self, x, train, names, layer):
    conv = Conv(*layer, dtype=self.dtype, name=names[0])
    return BatchNorm(self.batch_norm, name=names[1])(conv, x, train)


class ResNet(nn.Module):
  """The features of every stage: stem (after pooling), layer1 ... layer4."""

  depth: int
  output_stride: int = 32
  width: int = 64  # channels of the stem; all others in proportion
  stride_in_1x1: bool = True
  batch_norm: str = "frozen"
  dtype: DTypeLike = jnp.float32
  dropout: bool = False
  remat: bool = False
  caffe_pool: bool = False

  @nn.compact
  def __call__(
    self, x: Float[Array, "b H W 3"], train: bool
  ) -> dict[str, Float[Array, "b ..."]]:
    """Maps stage names to features `b h w c` in the compute dtype."""
    conv1, pool, *downs = down_samplings(self.output_stride)
    stem = Conv(self.width, 7, conv1.stride, 1, dtype=self.dtype, name="conv1")
    x = nn.relu(BatchNorm(self.batch_norm, name="bn1")(stem, x, train))
    x = max_pool(x, pool.stride, pool.before, self.caffe_pool)
    features = {"stem": x}
    steps = [Step(1, pool.after, pool.after), *downs]
    for stage, (step, blocks) in enumerate(
      zip(steps, BLOCKS[self.depth], strict=True)
    ):
      for index in range(blocks):
        if index > 0:
          step = Step(1, step.after, step.after)
        x = self._block(stage, index, step)(x, train)
      features[f"layer{stage + 1}"] = x
    return features

  def _block(self, stage, index, step):
    block = nn.remat(Block, static_argnums=(2,)) if self.remat else Block
    dropout = 0.0
    if self.dropout and stage == 3:
      # 0.3 and 0.5 in the last two blocks: PROTOCOL b.2.
      dropout = {2: 0.3, 1: 0.5}.get(BLOCKS[self.depth][3] - index, 0.0)
    return block(
      channels=self.width * 2**stage,
      bottleneck=self.depth >= 50,
      step=step,
      stride_in_1x1=self.stride_in_1x1,
      batch_norm=self.batch_norm,
      dtype=self.dtype,
      dropout=dropout,
      name=f"layer{stage + 1}_{index}",
    )
