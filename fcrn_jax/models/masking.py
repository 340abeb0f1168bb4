"""A network on padded images, blind to the padding."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Float, Int

from fcrn_jax.models.fcrn import FCRN, WideConv
from fcrn_jax.models.layers import BatchNorm, Conv
from fcrn_jax.types import Array


def apply_within(
  model: FCRN,
  variables: Mapping[str, Any],
  images: Float[Array, "b H W 3"],
  sizes: Int[Array, "b 2"],
) -> dict[str, Float[Array, "b ..."]]:
  """model.apply for images that fill only the first `sizes` of their pixels.

  H and W are multiples of the model's stride, else a ValueError. Up to
  ceil(size / stride) cells, the outputs are those of the images without the
  padding, whatever it holds: where a convolution would read it, it reads
  zeros, as beyond the end of a map.
  """
  shape = images.shape[1:3]
  # Symbolic lengths, of export, are multiples by their constraints.
  if any(isinstance(n, int) and n % model.stride for n in shape):
    raise ValueError(
      f"images are {shape[0]} x {shape[1]} pixels; pad them to multiples of"
      f" the network's stride, {model.stride}."
    )

  def inside(x):
    keep = True
    for axis in (0, 1):
      cells = x.shape[axis + 1]
      first_pixel = jnp.arange(cells) * (shape[axis] // cells)
      within = first_pixel < sizes[:, axis, None]
      keep = keep & jnp.expand_dims(within, (2 - axis, 3))
    return jnp.where(keep, x, 0)

  def mask(method, args, kwargs, context):
    module = context.module
    if isinstance(module, Conv | WideConv) and module.size > 1:
      return method(inside(args[0]), *args[1:], **kwargs)
    out = method(*args, **kwargs)
    # For the pooling, which is no module, and for sums with the shortcut.
    return inside(out) if isinstance(module, BatchNorm) else out

  with nn.intercept_methods(mask):
    return model.apply(variables, images, train=False)
