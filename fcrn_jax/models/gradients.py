"""Convolutions whose gradients take the forms that are quick on a GPU.

Values and gradients are those of the plain forms, to rounding; what each form
gains is in BUILD.md, "Measuring". There is no forward-mode derivative.
"""

import functools

import jax
import jax.export
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Float

from fcrn_jax.types import Array

# Blocks of 128 x 128 results that keep a large GPU busy: two for each of the
# 132 multiprocessors of an H100.
_BUSY = 256
_BLOCK = 128


def pays(x: Float[Array, "b h w i"]) -> bool:
  """Whether these forms are to be used: on a GPU, at a size that is known."""
  symbolic = any(map(jax.export.is_symbolic_dim, x.shape[:3]))
  return jax.default_backend() == "gpu" and not symbolic


def plain_product(
  x: Float[Array, "b h w i"], matrix: Float[Array, "i o"], dtype: DTypeLike
) -> Float[Array, "b h w o"]:
  """x @ matrix in `dtype`, with the pixels as one axis: so XLA's CPU program
  has the gradient of the matrix without turning a map around.
  """
  flat = x.reshape(-1, x.shape[-1])
  y = jnp.matmul(flat, matrix, preferred_element_type=dtype)
  return y.reshape(*x.shape[:-1], matrix.shape[-1])


def plain_conv(
  x: Float[Array, "b h w i"],
  kernel: Float[Array, "k k i o"],
  stride: int = 1,
  dilation: int = 1,
) -> Float[Array, "b h2 w2 o"]:
  """XLA's convolution, zero padding of dilation (k - 1) / 2 on each side."""
  padding = dilation * (kernel.shape[0] - 1) // 2
  return jax.lax.conv_general_dilated(
    x,
    kernel,
    (stride, stride),
    [(padding, padding)] * 2,
    rhs_dilation=(dilation, dilation),
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def product(
  x: Float[Array, "b h w i"], matrix: Float[Array, "i o"], dtype: DTypeLike
) -> Float[Array, "b h w o"]:
  """plain_product, whose gradients are products in x's dtype.

  The matrix's is a sum of products over parts of the pixels, so that there
  are enough of them for all multiprocessors.
  """
  return plain_product(x, matrix, dtype)


def _product_forward(x, matrix, dtype):
  return product(x, matrix, dtype), (x, matrix)


def _product_backward(dtype, residuals, dy):
  x, matrix = residuals
  dy = dy.astype(x.dtype)
  inputs, outputs = matrix.shape
  blocks = -(-inputs // _BLOCK) * -(-outputs // _BLOCK)
  parts = num_parts(*x.shape[:2], blocks)
  d_matrix = jnp.einsum(
    "pni,pno->pio",
    x.reshape(parts, -1, inputs),
    dy.reshape(parts, -1, outputs),
    preferred_element_type=jnp.float32,
  )
  dx = product(dy, matrix.T, x.dtype)
  return dx, d_matrix.sum(0).astype(matrix.dtype)


product.defvjp(_product_forward, _product_backward)


def num_parts(batch: int, height: int, blocks: int) -> int:
  """The least number of equal parts of `batch * height` rows that keeps a GPU
  busy where every part gives so many blocks; all rows where none does.
  """
  rows = batch * height
  return next(
    (n for n in range(1, rows) if rows % n == 0 and n * blocks >= _BUSY), rows
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def conv(
  x: Float[Array, "b h w i"], kernel: Float[Array, "k k i o"], dilation: int
) -> Float[Array, "b h w o"]:
  """The dilated convolution of stride 1, zeros beyond the map.

  cuDNN takes ten times as long for the gradient of a dilated kernel as for
  that of a plain one. Cells that lie `dilation` apart form maps of their own
  on which the kernel is plain.
  """
  return plain_conv(x, kernel, 1, dilation)


def _conv_forward(x, kernel, dilation):
  return conv(x, kernel, dilation), (x, kernel)


def _conv_backward(dilation, residuals, dy):
  x, kernel = residuals
  _, pull_x = jax.vjp(lambda x: plain_conv(x, kernel, 1, dilation), x)
  parts, d_parts = (spaced_cells(z, dilation) for z in (x, dy))
  _, pull_kernel = jax.vjp(lambda k: plain_conv(parts, k), kernel)
  return *pull_x(dy), *pull_kernel(d_parts)


conv.defvjp(_conv_forward, _conv_backward)


def spaced_cells(
  x: Float[Array, "b h w c"], spacing: int
) -> Float[Array, "n h2 w2 c"]:
  """The b * spacing^2 maps of cells that lie `spacing` apart, zeros beyond."""
  batch, height, width, channels = x.shape
  edges = [(0, 0), (0, -height % spacing), (0, -width % spacing), (0, 0)]
  x = jnp.pad(x, edges)
  rows, columns = x.shape[1] // spacing, x.shape[2] // spacing
  x = x.reshape(batch, rows, spacing, columns, spacing, channels)
  return x.transpose(0, 2, 4, 1, 3, 5).reshape(-1, rows, columns, channels)
