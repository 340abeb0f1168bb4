"""Convolution, normalisation and pooling with explicit symmetric padding.

Every operation here gives a strided network and its dilated counterpart the
same sums, so that the dense output subsampled equals the sparse one (section
2.3 of the paper, the hole algorithm): to rounding, on many machines exactly
(but for convolutions in Winograd's form, which cpu.prepare allows).
"""

import functools

import flax.linen as nn
import jax
import jax.export
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Float

from fcrn_jax.models import gradients, winograd
from fcrn_jax.types import Array


def he_normal(gain: float = 1.0) -> nn.initializers.Initializer:
  """Normal kernels of variance 2 gain^2 / fan-in (He et al. 2015)."""

  def init(key, shape, dtype=jnp.float32):
    # XLA compiles its own generator eight times faster than JAX's default
    # one, which is what compiling a deep network's init would go to.
    @jax.custom_batching.sequential_vmap  # vmapped, it uses the first key alone
    def draw(words):
      key = jax.random.wrap_key_data(words, impl="rbg")
      return jax.random.normal(key, shape, dtype)

    fan_in = shape[0] * shape[1] * shape[2]
    words = jnp.resize(jax.random.key_data(key), 4)
    return gain * (2 / fan_in) ** 0.5 * draw(words)

  return init


def conv(
  x: Float[Array, "b h w i"],
  kernel: Float[Array, "k k i o"],
  stride: int = 1,
  dilation: int = 1,
) -> Float[Array, "b h2 w2 o"]:
  """Odd-sized convolution, zero padding of dilation (k - 1) / 2 on each side.

  Output size is ceil(size / stride); output cell i is centred on input cell
  i * stride whatever the size.
  """
  size, features = kernel.shape[0], kernel.shape[-1]
  if size == 1:
    x, stride = x[:, ::stride, ::stride], 1
  height, width = -(-x.shape[1] // stride), -(-x.shape[2] // stride)
  least = _LEAST if features >= 32 else 2 * _LEAST
  below, right = _lacking(height, least), _lacking(width, least)
  if below or right:
    edges = ((0, 0), (0, below * stride), (0, right * stride), (0, 0))
    # The barrier keeps XLA from turning the edges into uneven padding.
    x = jax.lax.optimization_barrier(jnp.pad(x, edges))
  if size == 1:
    y = _product(x, kernel[0, 0])
  elif winograd.pays(x, kernel, stride, dilation):
    y = winograd.conv(x, kernel, dilation)
  elif stride == 1 and dilation > 1 and gradients.pays(x):
    y = gradients.conv(x, kernel, dilation)
  else:
    y = gradients.plain_conv(x, kernel, stride, dilation)
  return y[:, :height, :width]


def _product(x, matrix, dtype=None):
  form = gradients.product if gradients.pays(x) else gradients.plain_product
  return form(x, matrix, dtype or x.dtype)


# From this height and width on (twice that for few channels), XLA's CPU
# products sum in an order that does not depend on the map's size (measured).
_LEAST = 8


def _lacking(length, least):
  # The sizes of a program that is exported are symbols; it goes without.
  return 0 if jax.export.is_symbolic_dim(length) else max(least - length, 0)


def max_pool(
  x: Float[Array, "b h w c"],
  stride: int = 2,
  dilation: int = 1,
  caffe: bool = False,
) -> Float[Array, "b h2 w2 c"]:
  """3 x 3 maximum, padded symmetrically; dilated like a convolution.

  Caffe's windows begin at the cell instead of being centred on it.
  """
  padding = (0, 2 * dilation) if caffe else (dilation, dilation)
  height, width = x.shape[1:3]
  edges = ((0, 0), padding, padding, (0, 0))
  x = jnp.pad(x, edges, constant_values=-jnp.inf)
  # The maximum of nine slices, whose gradient is six times quicker on a CPU
  # than that of reduce_window.
  windows = [
    x[:, top : top + height : stride, left : left + width : stride]
    for top in (0, dilation, 2 * dilation)
    for left in (0, dilation, 2 * dilation)
  ]
  return functools.reduce(jnp.maximum, windows)


@jax.custom_jvp
def add_relu(
  x: Float[Array, "b h w c"], y: Float[Array, "b h w c"]
) -> Float[Array, "b h w c"]:
  """relu(x + y), computed once: the end of a residual block.

  Of relu(x + y) itself, XLA's CPU program makes a copy for each reader, each
  with the sums of all blocks before it (FCRN-101: a third of the time). It
  keeps the result where the last operation has two large operands, as here.
  """
  return jnp.maximum(x, -y) + y


@add_relu.defjvp
def _add_relu_jvp(primals, tangents):
  out = add_relu(*primals)
  return out, jnp.where(out > 0, sum(tangents), 0)


class Conv(nn.Module):
  """A convolution kernel, HWIO, without bias.

  Parameters are float32, computation is in `dtype`.
  """

  features: int
  size: int
  stride: int = 1
  dilation: int = 1
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self, x: Float[Array, "b h w i"], scale: Float[Array, "o"] | None = None
  ) -> Float[Array, "b h2 w2 o"]:
    """conv(x) in `dtype`, with the kernel times `scale` if that is given."""
    shape = (self.size, self.size, x.shape[-1], self.features)
    kernel = self.param("kernel", he_normal(), shape)
    if scale is not None:
      kernel = kernel * scale
    x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
    return conv(x, kernel, self.stride, self.dilation)


class BatchNorm(nn.Module):
  """Batch normalisation whose statistics are frozen, local or synced.

  frozen: the running statistics, in training too, never updated (the paper's
  fine-tuning); scale and bias stay trainable. local: the device's own batch.
  synced: the batch of all devices of the axis "batch".
  """

  mode: str
  momentum: float = 0.9  # ours; of the running statistics
  epsilon: float = 1e-5

  @nn.compact
  def __call__(
    self, conv: Conv, x: Float[Array, "b h w i"], train: bool
  ) -> Float[Array, "b h2 w2 o"]:
    """The normalised output of `conv` for x, in conv's dtype."""
    shape = (conv.features,)
    scale = self.param("scale", nn.initializers.ones, shape)
    bias = self.param("bias", nn.initializers.zeros, shape)
    mean = self.variable("batch_stats", "mean", jnp.zeros, shape)
    var = self.variable("batch_stats", "var", jnp.ones, shape)
    if not train or self.mode == "frozen":
      return self._fixed(conv, x, train, scale, bias, mean.value, var.value)
    x = conv(x)
    batch_mean, batch_var = self._batch_statistics(x)
    if not self.is_initializing():
      keep = self.momentum
      mean.value = keep * mean.value + (1 - keep) * batch_mean
      var.value = keep * var.value + (1 - keep) * batch_var
    factor = scale * jax.lax.rsqrt(batch_var + self.epsilon)
    offset = bias - batch_mean * factor
    # In float32: of half-precision values that are far from 0, the difference
    # to their mean would lose what tells them apart.
    x = x.astype(jnp.float32)
    return (x * _spread(factor, x) + _spread(offset, x)).astype(conv.dtype)

  def _fixed(self, conv, x, train, scale, bias, mean, var):
    """By given statistics: one scale and one offset per channel."""
    factor = scale * jax.lax.rsqrt(var + self.epsilon)
    offset = (bias - mean * factor).astype(conv.dtype)
    if train or jax.default_backend() != "cpu":
      # In the kernel, the scale costs little and spares the gradient from
      # keeping the unscaled output; on a GPU, offset and ReLU then join the
      # product. XLA's CPU program fuses scale, offset and ReLU for nothing.
      y = conv(x, factor)
      return y + _spread(offset, y)
    return conv(x) * factor.astype(conv.dtype) + offset

  def _batch_statistics(self, x):
    x = x.astype(jnp.float32)
    pixels = x.size // x.shape[-1]
    mean = _sum_pixels(x) / pixels
    square = _sum_pixels(jnp.square(x)) / pixels
    if self.mode == "synced" and not self.is_initializing():
      mean, square = jax.lax.pmean((mean, square), "batch")
    return mean, jnp.maximum(square - jnp.square(mean), 0)


def _spread(values, x):
  """`values`, one per channel, at every pixel of x: for training on a CPU.

  As a product with ones; its gradient, a sum over pixels, is then a product
  too, ten to twenty times quicker there than XLA's sum on one thread.
  """
  if jax.default_backend() != "cpu":
    return values
  ones = jnp.ones(x.size // x.shape[-1], x.dtype)
  return jnp.einsum("n,c->nc", ones, values).reshape(x.shape)


def _sum_pixels(x):
  """Per channel; on a CPU as a product, see _spread."""
  if jax.default_backend() != "cpu":
    return x.sum((0, 1, 2))
  flat = x.reshape(-1, x.shape[-1])
  return jnp.einsum("n,nc->c", jnp.ones(len(flat), x.dtype), flat)


def wide_conv(
  x: Float[Array, "b h w i"], kernel: Float[Array, "k k i o"], dilation: int
) -> Float[Array, "b h w o"]:
  """A convolution of few output channels and a wide reach, in float32.

  One product to k * k * o channels, followed by k * k shifted adds: x is read
  once, and no product is made with the padding.
  """
  size, padding = kernel.shape[0], dilation * (kernel.shape[0] - 1) // 2
  wide = jnp.moveaxis(kernel, 2, 0).reshape(kernel.shape[2], -1)
  columns = wide.shape[1]
  if gradients.pays(x):  # whose tensor cores take eight columns at a time
    wide = jnp.pad(wide, ((0, 0), (0, -columns % 8)))
  product = _product(x, wide, jnp.float32)[..., :columns]
  total = jnp.zeros((), jnp.float32)
  # split, for its gradient is one concatenation.
  for tap, part in enumerate(jnp.split(product, size**2, axis=-1)):
    dy, dx = (dilation * place - padding for place in divmod(tap, size))
    total += _shifted(part, dy, dx)
  return total


def _shifted(x, dy, dx):
  """y[i, j] = x[i + dy, j + dx], zero outside; shifts may exceed the map."""
  height, width = x.shape[1:3]
  symbolic = any(map(jax.export.is_symbolic_dim, (height, width)))
  if not symbolic and (abs(dy) >= height or abs(dx) >= width):
    return jnp.zeros_like(x)
  edges = [(0, 0, 0), (-dy, dy, 0), (-dx, dx, 0), (0, 0, 0)]
  return jax.lax.pad(x, jnp.zeros((), x.dtype), edges)
