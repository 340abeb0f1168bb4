"""Box algebra for numpy and JAX arrays alike.

A box is (y0, x0, y1, x1) in half-open pixel edges; its encoding seen from a
point (y, x) is (dy, dx, height, width): the offsets from the point to the
box's centre and the box's size, in pixels, no logarithm (paper section 2.1).
All functions broadcast over leading axes.
"""

from jaxtyping import Float

from fcrn_jax.types import Array


def area(boxes: Float[Array, "... 4"]) -> Float[Array, "..."]:
  """Area in square pixels; an inverted box has area 0."""
  xp = boxes.__array_namespace__()
  height = xp.maximum(boxes[..., 2] - boxes[..., 0], 0)
  width = xp.maximum(boxes[..., 3] - boxes[..., 1], 0)
  return height * width


def iou(
  a: Float[Array, "*#batch 4"], b: Float[Array, "*#batch 4"]
) -> Float[Array, "..."]:
  """Intersection over union of broadcast boxes, 0 where the union is empty.

  All pairs of `n 4` and `m 4` are `iou(a[:, None], b[None])`.
  """
  xp = a.__array_namespace__()
  top_left = xp.maximum(a[..., :2], b[..., :2])
  bottom_right = xp.minimum(a[..., 2:], b[..., 2:])
  shared = area(xp.concat([top_left, bottom_right], axis=-1))
  union = area(a) + area(b) - shared
  return shared / xp.maximum(union, 1e-9)


def encode(
  boxes: Float[Array, "*#batch 4"], points: Float[Array, "*#batch 2"]
) -> Float[Array, "... 4"]:
  """(dy, dx, height, width) of boxes seen from points (y, x), in pixels."""
  xp = boxes.__array_namespace__()
  center = (boxes[..., :2] + boxes[..., 2:]) / 2
  size = boxes[..., 2:] - boxes[..., :2]
  offset = center - points
  size = xp.broadcast_to(size, offset.shape)
  return xp.concat([offset, size], axis=-1)


def decode(
  encoded: Float[Array, "*#batch 4"], points: Float[Array, "*#batch 2"]
) -> Float[Array, "... 4"]:
  """The boxes (y0, x0, y1, x1) whose encoding from points is `encoded`.

  Negative sizes, which a network may predict, count as 0.
  """
  xp = encoded.__array_namespace__()
  center = points + encoded[..., :2]
  half = xp.maximum(encoded[..., 2:], 0) / 2
  half = xp.broadcast_to(half, center.shape)
  return xp.concat([center - half, center + half], axis=-1)


def centerness(
  boxes: Float[Array, "*#batch 4"], points: Float[Array, "*#batch 2"]
) -> Float[Array, "..."]:
  """How near points (y, x) are to their boxes' centres (FCOS, 2019, eq. 3).

  The geometric mean of the ratios of the distances to opposite sides: 1 at
  the centre, 0 from the border on.
  """
  xp = boxes.__array_namespace__()
  before, after = points - boxes[..., :2], boxes[..., 2:] - points
  near = xp.maximum(xp.minimum(before, after), 0)
  ratio = near / xp.maximum(xp.maximum(before, after), 1e-9)
  return xp.sqrt(ratio[..., 0] * ratio[..., 1])


def cell_points(height, width, stride: float | int, xp) -> Array:
  """The (y, x) points of a feature map's cells, `h w 2`; xp: numpy or jnp.

  Height and width may be symbolic dimensions of jax.export.
  """
  y = (xp.arange(height, dtype=xp.float32) + 0.5) * stride
  x = (xp.arange(width, dtype=xp.float32) + 0.5) * stride
  return xp.stack(xp.meshgrid(y, x, indexing="ij"), axis=-1)
