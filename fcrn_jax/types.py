"""The glossary of shapes and the few values that every part shares.

Axis names in signatures: `H W` image resolution, `h w` feature resolution
(h = ceil(H / stride)), `b` batch, `c` classes, `n` pixels, `m` instances.

Coordinates are (y, x); boxes are (y0, x0, y1, x1), half-open pixel edges of
the network's input image, so that pixel (0, 0) covers the box (0, 0, 1, 1) and
its centre is (0.5, 0.5). Cell (i, j) of a feature map of stride s stands for
the point ((i + 0.5) s, (j + 0.5) s): labels and box targets are sampled there
and score maps are upsampled from there.

Categories are 1 ... C everywhere; 0 is background, IGNORE is void.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, TypedDict

import numpy as np
from jaxtyping import Bool, Float, Int, Num, UInt8

Array = Any  # a numpy or a JAX array; jaxtyping then checks shape and dtype
IGNORE = 255
FILL = (124, 117, 104)  # what pads an image: the mean RGB of ImageNet


def listed(items: Sequence[str], most: int = 10, separator: str = ", ") -> str:
  """The first so many of the items, and how many more there are."""
  rest = len(items) - most
  more = [f"and {rest:,} more"] if rest > 0 else []
  return separator.join([*items[:most], *more])


def palette() -> UInt8[np.ndarray, "256 3"]:
  """VOC's colours: the bits of the label, dealt to R, G, B from the top."""
  index = np.arange(256)
  colors = np.zeros((256, 3), np.int64)
  for bit in range(8):
    for channel in range(3):
      colors[:, channel] |= (index >> (3 * bit + channel) & 1) << (7 - bit)
  return colors.astype(np.uint8)


class Batch(TypedDict, total=False):
  """What the training pipeline yields; arrays are numpy, then on devices.

  `boxes` holds per cell (dy, dx, height, width) of the full instance's box
  seen from the cell's point, in pixels of `image` (see boxes.encode);
  `classes` the instance's category (0 where there is none), `valid` the cells
  that have an instance, `weights` one loss weight per instance, scaled to
  mean 1 over the valid cells of the crop. Semantic-only data lack these four.
  """

  image: UInt8[Array, "b H W 3"]  # RGB
  semantic: UInt8[Array, "b y x"]  # h w, or finer labels; IGNORE = void
  boxes: Float[Array, "b h w 4"]
  classes: UInt8[Array, "b h w"]
  valid: Bool[Array, "b h w"]
  weights: Float[Array, "b h w"]


class Instances(NamedTuple):
  """Fixed-size set of instances of one image; slots beyond `valid` are zero.

  Sorted by falling score. `truncated` says that more hypotheses were there
  than slots.
  """

  masks: Bool[Array, "m h w"]
  classes: Int[Array, "m"]  # 1 ... C
  scores: Float[Array, "m"]
  boxes: Float[Array, "m 4"]  # y0 x0 y1 x1 of the voted box
  valid: Bool[Array, "m"]
  truncated: Bool[Array, ""]


class Preprocessing(NamedTuple):
  """Maps an RGB image of 0 ... 255 to the network's input.

  Travels with the weights: (x - mean) * scale per channel, in
  `channel_order`; mean and scale are given in that order.
  The default is torchvision's ImageNet normalisation.
  """

  mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
  scale: tuple[float, float, float] = (1 / 58.395, 1 / 57.12, 1 / 57.375)
  channel_order: str = "rgb"  # or "bgr", as in the Caffe ResNets

  def __call__(self, images: Num[Array, "... 3"]) -> Float[Array, "... 3"]:
    """Float32 network input for RGB images, numpy or JAX alike."""
    if self.channel_order not in ("rgb", "bgr"):
      raise ValueError(
        f"channel_order is {self.channel_order!r}; expected 'rgb' or 'bgr'."
      )
    images = images.astype(np.float32)
    if self.channel_order == "bgr":
      images = images[..., ::-1]
    mean = np.asarray(self.mean, np.float32)
    return (images - mean) * np.asarray(self.scale, np.float32)
