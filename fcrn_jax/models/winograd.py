"""3 x 3 convolutions of many channels with fewer multiplications, for CPUs.

F(2 x 2, 3 x 3) of Lavin and Gray, "Fast Algorithms for Convolutional Neural
Networks" (2016): a tile of 2 x 2 outputs takes 16 multiplications per pair of
channels instead of 36, as 16 products of matrices over all tiles. Results
agree to float32's rounding. Used after fcrn_jax.cpu.prepare(); what it gains is
in BUILD.md, "Measuring".
"""

import functools

import jax
import jax.export
import jax.numpy as jnp
from jaxtyping import Float

from fcrn_jax import cpu
from fcrn_jax.types import Array

# What is saved grows with the channels, what the transforms cost does not.
_LEAST_CHANNELS = 256
# Cells covered by tiles over cells of the map: at 2.25 nothing is saved.
_MOST_COVERED = 1.5


def pays(
  x: Float[Array, "b h w i"],
  kernel: Float[Array, "k k i o"],
  stride: int,
  dilation: int,
) -> bool:
  """Whether `conv` is to compute this convolution: it can, and is quicker."""
  height, width = x.shape[1:3]
  if (
    not cpu.prepared
    or jax.default_backend() != "cpu"
    or x.dtype != jnp.float32
    or kernel.shape[0] != 3
    or stride != 1
    or min(kernel.shape[2:]) < _LEAST_CHANNELS
    or jax.export.is_symbolic_dim(height)
    or jax.export.is_symbolic_dim(width)
  ):
    return False
  covered = _tiles(height, dilation) * _tiles(width, dilation)
  covered *= (2 * dilation) ** 2
  return covered <= _MOST_COVERED * height * width


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def conv(
  x: Float[Array, "b h w i"], kernel: Float[Array, "3 3 i o"], dilation: int
) -> Float[Array, "b h w o"]:
  """The convolution of stride 1, zero padding of `dilation` on each side.

  It has a gradient (of any order), but no forward-mode derivative.
  """
  products = _each(jnp.matmul, _input(x, dilation), _kernel(kernel))
  return _output(products, x.shape, dilation)


def _forward(x, kernel, dilation):
  return conv(x, kernel, dilation), (x, kernel)


def _backward(dilation, residuals, gradient):
  x, kernel = residuals
  turned = kernel[::-1, ::-1].swapaxes(2, 3)
  products = _each(
    lambda values, gradients: values.T @ gradients,
    _input(x, dilation),
    _output_transposed(gradient, dilation),
  )
  return conv(gradient, turned, dilation), _kernel_transposed(products)


conv.defvjp(_forward, _backward)


def _kernel(kernel):
  """4 x 4 matrices (i, o)."""
  return _both_axes(
    lambda g: (g[0], (g[0] + g[1] + g[2]) / 2, (g[0] - g[1] + g[2]) / 2, g[2]),
    [list(row) for row in kernel],
  )


def _kernel_transposed(matrices):
  """The gradient of the kernel, by those of its 4 x 4 matrices."""
  rows = _both_axes(
    lambda u: (
      u[0] + (u[1] + u[2]) / 2, (u[1] - u[2]) / 2, (u[1] + u[2]) / 2 + u[3],
    ),
    matrices,
  )  # fmt: skip
  return jnp.stack([jnp.stack(row) for row in rows])


def _input(x, dilation):
  """4 x 4 matrices (tile, channel) of x."""
  tiles = [_tiles(length, dilation) for length in x.shape[1:3]]
  x = _pairs(x, dilation, halo=1)
  # Cell i of a tile's four is cell i % 2 of the pair i // 2 further on.
  cells = [
    [
      x[:, i // 2 :, i % 2, :, j // 2 :, j % 2][:, : tiles[0], :, : tiles[1]]
      for j in range(4)
    ]
    for i in range(4)
  ]
  return _both_axes(
    lambda d: (d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]), cells
  )


def _output(products, shape, dilation):
  """The map of `shape`'s size, of 4 x 4 matrices (tile, channel)."""
  batch, height, width, _ = shape
  cells = _both_axes(
    lambda m: (m[0] + m[1] + m[2], m[1] - m[2] - m[3]), products
  )
  tiles = _tiles(height, dilation), _tiles(width, dilation)
  grid = batch, tiles[0], dilation, tiles[1], dilation, -1
  rows = [jnp.stack([c.reshape(grid) for c in row], 4) for row in cells]
  y = jnp.stack(rows, 2)
  y = y.reshape(batch, 2 * dilation * tiles[0], 2 * dilation * tiles[1], -1)
  return y[:, :height, :width]


def _output_transposed(gradient, dilation):
  """4 x 4 matrices (tile, channel) of the gradient of _output's result."""
  pairs = _pairs(gradient, dilation, halo=0)
  cells = [[pairs[:, :, i, :, :, j] for j in range(2)] for i in range(2)]
  return _both_axes(lambda y: (y[0], y[0] + y[1], y[0] - y[1], -y[1]), cells)


def _tiles(length, dilation):
  """Tiles along an axis: of two cells each, `dilation` cells apart."""
  return -(-length // (2 * dilation))


def _pairs(x, dilation, halo):
  """b pair 2 phase pair 2 phase c; cell p of phase f is cell p dilation + f.

  `halo` times dilation zeros come before and after what the tiles cover.
  """
  batch, height, width, channels = x.shape
  shape, edges = [batch], [(0, 0)]
  for length in (height, width):
    pairs = _tiles(length, dilation) + halo
    before = halo * dilation
    edges.append((before, 2 * dilation * pairs - before - length))
    shape += [pairs, 2, dilation]
  return jnp.pad(x, [*edges, (0, 0)]).reshape(*shape, channels)


def _both_axes(transform, rows):
  """The transform of every column, then of every row, of arrays."""
  rows = [[x.reshape(-1, x.shape[-1]) for x in row] for row in rows]
  columns = [transform(column) for column in zip(*rows, strict=True)]
  return [transform(row) for row in zip(*columns, strict=True)]


def _each(function, a, b):
  return [[function(a[i][j], b[i][j]) for j in range(4)] for i in range(4)]
