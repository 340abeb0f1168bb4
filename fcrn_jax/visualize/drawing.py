"""What the pictures are made of: colours, edges, lines and words."""

import functools
from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import Bool, Integer, UInt8
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from fcrn_jax.types import IGNORE, Array

Picture = UInt8[np.ndarray, "_H _W 3"]
AnyImage = UInt8[Array, "_h _w *channels"]

INK, PAPER = (32, 36, 44), (255, 255, 255)


def rgb(image: AnyImage) -> Picture:
  """Three channels, of a gray or RGB image."""
  image = np.asarray(image)
  if image.ndim == 2 or image.shape[2] == 1:
    image = np.repeat(image.reshape(*image.shape[:2], 1), 3, axis=2)
  return np.ascontiguousarray(image[..., :3])


def dim(image: AnyImage, scale: int) -> Picture:
  """The image dark and gray, to be coloured."""
  gray = rgb(image).mean(axis=2, keepdims=True).repeat(3, axis=2)
  return enlarge((gray * 0.45).astype(np.uint8), scale)


def enlarge(array: np.ndarray, scale: int) -> np.ndarray:
  """By nearest neighbour; a copy in any case."""
  return array.repeat(scale, axis=0).repeat(scale, axis=1)


def to_pixels(
  cells: np.ndarray, size: int | float, picture: Picture
) -> np.ndarray:
  """Cells `size` pixels wide as an array of the picture's size."""
  index = [
    np.minimum((np.arange(n) + 0.5) / size, m - 1).astype(int)
    for n, m in zip(picture.shape[:2], cells.shape[:2], strict=True)
  ]
  return cells[np.ix_(*index)]


def mix(below: np.ndarray, above, share: float) -> np.ndarray:
  """`share` of the picture or colour above, the rest of what is below."""
  above = np.broadcast_to(np.uint8(above), below.shape)
  mixed = cv2.addWeighted(below, 1 - share, above, share, 0)
  return mixed.reshape(below.shape)


def line(picture: Picture) -> int:
  """Width of lines for a picture of this size."""
  return int(np.clip(round(max(picture.shape[:2]) / 320), 1, 4))


def label_map(found: np.ndarray) -> Integer[np.ndarray, "h w"]:
  """Masks as a label map, the first on top; label maps as they are."""
  found = np.asarray(found)
  if found.ndim == 2:
    return found.astype(np.int32)
  labels = np.zeros(found.shape[1:], np.int32)
  for k in reversed(range(len(found))):
    labels[found[k] > 0] = k + 1
  return labels


def edges(labels: np.ndarray, width: int) -> Bool[np.ndarray, "h w"]:
  """Labelled pixels within `width` of another label."""
  # The smaller type that cv2 knows: labels of huge images fill memory.
  small = labels.max(initial=0) < 2**16
  values = labels.astype(np.uint16 if small else np.float32)
  kernel = np.ones((2 * width + 1, 2 * width + 1), np.uint8)
  same = cv2.erode(values, kernel) == cv2.dilate(values, kernel)
  return (labels > 0) & ~same


def instance_colors(num: int) -> UInt8[np.ndarray, "n 3"]:
  """Bright colours whose hues turn by the golden angle; 0 is black."""
  k = np.arange(max(num, 1))  # cv2 takes nothing empty
  hue = (20 + k * 137.508) % 360
  hsv = np.stack([hue, 0.75 - 0.25 * (k % 3 == 1), 1 - 0.2 * (k % 4 == 2)], -1)
  rgb = cv2.cvtColor(hsv[None].astype(np.float32), cv2.COLOR_HSV2RGB)[0]
  return np.concatenate([[[0, 0, 0]], 255 * rgb]).astype(np.uint8)


@functools.cache
def category_colors() -> UInt8[np.ndarray, "256 3"]:
  """For each label the colour least like those of all labels before it.

  Nor dark or gray, which is the dimmed image; IGNORE is white.
  """
  levels = np.linspace(0, 255, 9)
  rgb = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(-1, 3)
  lab = cv2.cvtColor(np.float32([rgb / 255]), cv2.COLOR_RGB2LAB)[0]
  rgb, lab = rgb[lab[:, 0] > 40], lab[lab[:, 0] > 40]  # no dark ones
  near = np.linalg.norm(lab[:, 1:], axis=1)
  colors = np.full((256, 3), PAPER, np.uint8)
  for label in range(IGNORE):
    best = near.argmax()
    colors[label] = rgb[best]
    near = np.minimum(near, np.linalg.norm(lab - lab[best], axis=1))
  return colors


def wheel(offsets: np.ndarray, share: np.ndarray) -> Picture:
  """Direction as hue, share (0 ... 1) as strength."""
  hue = np.degrees(np.arctan2(offsets[..., 0], offsets[..., 1])) % 360
  hsv = np.stack([hue, np.minimum(share, 1), np.ones_like(hue)], axis=-1)
  rgb = cv2.cvtColor(hsv.astype(np.float32), cv2.COLOR_HSV2RGB)
  return (255 * rgb).astype(np.uint8)


def paint_wheel(picture: Picture) -> None:
  """The wheel's legend in the lower right corner, a tenth of the picture."""
  radius = min(picture.shape[:2]) // 20
  steps = np.arange(-radius, radius + 1)
  offsets = np.stack(np.meshgrid(steps, steps, indexing="ij"), axis=-1)
  share = np.linalg.norm(offsets, axis=-1) / max(radius, 1)
  corner = picture[-len(steps) - 2 : -2, -len(steps) - 2 : -2]
  corner[share <= 1] = wheel(offsets, share)[share <= 1]


def hatch(picture: Picture, where: Bool[np.ndarray, "_H _W"]) -> None:
  """Gray stripes over a part of the picture."""
  y, x = np.indices(where.shape)
  picture[where & ((y + x) % 8 < 2)] = (150, 150, 150)


def write_names(picture, labels, colors, classes, scores, names) -> None:
  """Category and score at the top of each instance that has room for it."""
  sheet = Image.fromarray(picture)
  draw = ImageDraw.Draw(sheet)
  size = int(np.clip(max(picture.shape) / 42, 10, 32))
  font = ImageFont.load_default(size)
  for k, window in enumerate(ndimage.find_objects(labels, len(classes))):
    words = [str(names[int(classes[k]) - 1])] if len(names) > 1 else []
    if scores is not None:
      words.append(f"{float(scores[k]):.2f}")
    if window is None or not words:
      continue
    y, x = window
    width = draw.textlength(" ".join(words), font) + size / 2
    if len(words) > 1 and width > 1.2 * (x.stop - x.start):
      words = words[:1]
      width = draw.textlength(words[0], font) + size / 2
    if width > 1.5 * (x.stop - x.start) or y.stop - y.start < 3 * size:
      continue
    left = np.clip((x.start + x.stop - width) / 2, 0, labels.shape[1] - width)
    corner = (left, y.start, left + width, y.start + 1.3 * size)
    draw.rectangle(corner, tuple(mix(colors[k + 1], INK, 0.65).tolist()))
    middle = (left + width / 2, y.start + 0.65 * size)
    draw.text(middle, " ".join(words), PAPER, font, anchor="mm")
  picture[:] = np.array(sheet)


def write_legend(picture, names: Sequence[str], colors: np.ndarray) -> None:
  """Names by their colours in a corner; as many as have room."""
  sheet = Image.fromarray(picture)
  draw = ImageDraw.Draw(sheet)
  size = int(np.clip(max(picture.shape) / 42, 10, 32))
  font = ImageFont.load_default(size)
  names = names[: int(picture.shape[0] / (1.3 * size) - 0.5)]
  width = max((draw.textlength(n, font) for n in names), default=0) + 2.5 * size
  if not names or width > picture.shape[1] / 2:
    return
  top = picture.shape[0] - (1.3 * len(names) + 0.5) * size
  draw.rectangle((0, top, width, picture.shape[0]), INK)
  for k, (name, color) in enumerate(zip(names, colors, strict=False)):
    y = top + (0.9 + 1.3 * k) * size
    swatch = (0.5 * size, y - 0.5 * size, 1.5 * size, y + 0.5 * size)
    draw.rectangle(swatch, tuple(color.tolist()))
    draw.text((2 * size, y), name, PAPER, font, anchor="lm")
  picture[:] = np.array(sheet)


def fixed(point: np.ndarray) -> tuple[int, int]:
  """(y, x) in pixel edges as cv2's (x, y) of pixel centres in 1/16 pixels."""
  # What is not finite, or far beyond any picture, is no number of cv2's.
  point = np.clip(np.nan_to_num(point), -1e6, 1e6)
  return tuple(int(v) for v in np.rint((point[::-1] - 0.5) * 16))


def arrow(picture, start, end, width, color=(225, 228, 235)) -> None:
  """A line between points (y, x) in pixel edges."""
  cv2.line(picture, fixed(start), fixed(end), color, width, cv2.LINE_AA, 4)


def dot(picture, center, radius, color) -> None:
  """A disc around a point (y, x)."""
  radius = int(radius * 16)
  cv2.circle(picture, fixed(center), radius, color, -1, cv2.LINE_AA, 4)


def rectangle(picture, box, width, color) -> np.ndarray:
  """The frame of a box (y0, x0, y1, x1); returns the picture."""
  corners = fixed(box[:2]), fixed(box[2:])
  return cv2.rectangle(picture, *corners, color, width, cv2.LINE_AA, 4)
