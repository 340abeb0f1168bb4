"""Synthetic images of shapes, drawn on the fly: the main job's data.

Each image holds 2 to 12 objects of four categories and very different sizes.
Most stand in groups of one category whose members touch or overlap, so that
the category map alone does not tell them apart. Colours and textures are
drawn per object and say nothing about the category. Everything here is ours.
"""

from typing import Any, NamedTuple

import cv2
import numpy as np
from jaxtyping import Int, UInt8

from fcrn_jax.types import IGNORE, Array

CATEGORIES = ("ellipse", "rectangle", "triangle", "ring")
_SPLITS = {"train": 20_000, "val": 200, "test": 500}
_MIN_VISIBLE = 0.6  # of an object's area in the frame, or it is not drawn
_MIN_PIXELS = 40
_SHIFT = 4  # fractional bits of the polygons' coordinates
_TURN = np.linspace(0, 2 * np.pi, 32, endpoint=False)


class Options(NamedTuple):
  """Fields of data.load("shapes", options=...)."""

  size: tuple[int, int] = (96, 96)  # H, W
  num_images: int = 0  # 0: 20,000 train, 200 val, 500 test
  seed: int = 0


class Shapes:
  """The data set; see data.load. Image i depends on seed, split and i only."""

  name = "shapes"
  path = None
  categories = CATEGORIES
  background = "background"
  has_instances = True

  def __init__(self, split: str, options: Options):
    if split not in _SPLITS:
      raise ValueError(
        f"shapes has no split {split!r}; expected one of {list(_SPLITS)}."
      )
    if min(options.size) < 48:
      raise ValueError(f"size is {options.size}; expected at least (48, 48).")
    self.split = split
    self.options = options
    number = options.num_images or _SPLITS[split]
    self.ids = [f"{split}_{i:06d}" for i in range(number)]

  def __len__(self) -> int:
    return len(self.ids)

  def __getitem__(self, index: int) -> dict[str, Any]:
    index = range(len(self))[index]
    # The split is part of the seed, so no image is in two splits.
    entropy = [self.options.seed, list(_SPLITS).index(self.split), index]
    rng = np.random.default_rng(entropy)
    return {"id": self.ids[index]} | draw(rng, *self.options.size)


def draw(rng: np.random.Generator, height: int, width: int) -> dict[str, Any]:
  """One image with its maps, as in an example of data.load."""
  while True:
    groups = _place(rng, height, width)
    owner, kept = _occlude([g["contours"] for g in groups], height, width)
    if len(kept) >= 2:
      break
  classes = np.array([groups[k]["category"] for k in kept], np.uint8)
  colors = np.array([groups[k]["color"] for k in kept], np.float32)
  image = _paint(rng, owner, colors)
  semantic = np.concatenate([[0], classes]).astype(np.uint8)[owner]
  instances = owner.astype(np.int32)
  if rng.random() < 0.5:  # a void border, as in VOC
    kernel = np.ones((3, 3), np.uint8)
    border = cv2.dilate(owner, kernel) != cv2.erode(owner, kernel)
    left = np.bincount(owner[~border], minlength=len(kept) + 1)
    if left.min() >= _MIN_PIXELS // 4:
      semantic[border] = IGNORE
      instances[border] = 0
  return {
    "image": image,
    "semantic": semantic,
    "instances": instances,
    "classes": classes,
  }


def _place(rng: np.random.Generator, height: int, width: int) -> list[dict]:
  """2 to 12 objects in drawing order: category, colour and contours each."""
  extent = min(height, width)
  total = 2 + int(rng.binomial(10, 0.4))
  objects: list[dict] = []
  while len(objects) < total:
    category = int(rng.integers(1, len(CATEGORIES) + 1))
    members = 1 if rng.random() < 0.3 else int(rng.integers(2, 7))
    members = min(members, total - len(objects))
    same_color = rng.random() < 0.3
    color = rng.uniform(20, 235, 3)
    typical = extent * np.exp(rng.uniform(np.log(0.12), np.log(0.28)))
    group: list[tuple] = []
    for _ in range(members):
      low = 0.13 if CATEGORIES[category - 1] == "ring" else 0.1
      radius = np.clip(
        typical * np.exp(rng.normal(0, 0.4)), low * extent, 0.3 * extent
      )
      center = rng.uniform(0.18, 0.82, 2) * (height, width)
      if group:  # beside a member: touching, or overlapping up to a half
        near, its_radius = group[int(rng.integers(len(group)))]
        angle = rng.uniform(0, 2 * np.pi)
        distance = (radius + its_radius) * rng.uniform(0.75, 0.97)
        center = near + distance * np.array([np.sin(angle), np.cos(angle)])
        center = np.clip(
          center, 0.12 * extent, np.array((height, width)) - 0.12 * extent
        )
      group.append((center, radius))
      if not same_color:
        color = rng.uniform(20, 235, 3)
      contours = _outline(rng, CATEGORIES[category - 1], center, radius)
      objects.append(
        {
          "category": category,
          "color": color + rng.uniform(-15, 15, 3),
          "contours": contours,
        }
      )
  return [objects[k] for k in rng.permutation(total)]


def _outline(
  rng: np.random.Generator, category: str, center: Array, radius: float
) -> list[Int[Array, "k 2"]]:
  """Polygons (x, y) of one shape in fixed point, for cv2.fillPoly."""
  circle = np.stack([np.sin(_TURN), np.cos(_TURN)], -1)
  stretch = np.array([1.0, rng.uniform(0.55, 1.0)])
  if category == "ellipse":
    rings = [circle * stretch]
  elif category == "ring":
    rings = [circle * stretch, circle * stretch * rng.uniform(0.35, 0.5)]
  elif category == "rectangle":
    corners = np.array([[-1, -1], [-1, 1], [1, 1], [1, -1]]) * 0.85
    rings = [corners * stretch]
  else:
    angles = 2 * np.pi / 3 * np.arange(3) + rng.uniform(-0.25, 0.25, 3)
    rings = [1.15 * np.stack([np.sin(angles), np.cos(angles)], -1)]
  turn = rng.uniform(0, 2 * np.pi)
  rotation = np.array(
    [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]
  )
  points = [center + radius * ring @ rotation for ring in rings]
  # cv2 puts pixel centres at integers, we at halves.
  return [
    np.rint((p[:, ::-1] - 0.5) * 2**_SHIFT).astype(np.int32) for p in points
  ]


def _occlude(
  contours: list[list], height: int, width: int
) -> tuple[UInt8[Array, "H W"], list[int]]:
  """The map of who is seen where (0 none), and the objects left in it.

  Later objects cover earlier ones; an object nearly hidden is left out.
  """
  kept = list(range(len(contours)))
  while True:
    owner = np.zeros((height, width), np.uint8)
    drawn = np.zeros(len(kept))
    mask = np.empty_like(owner)
    for slot, k in enumerate(kept):
      mask[:] = 0
      cv2.fillPoly(mask, contours[k], 1, shift=_SHIFT)
      drawn[slot] = cv2.countNonZero(mask)
      owner[mask > 0] = slot + 1
    seen = np.bincount(owner.ravel(), minlength=len(kept) + 1)[1:]
    enough = (seen >= _MIN_PIXELS) & (seen >= _MIN_VISIBLE * drawn)
    if enough.all():
      return owner, kept
    kept = [k for k, good in zip(kept, enough, strict=True) if good]


def _paint(
  rng: np.random.Generator, owner: UInt8[Array, "H W"], colors: Array
) -> UInt8[Array, "H W 3"]:
  """Colours, shading, stripes on some objects, background texture, noise."""
  height, width = owner.shape
  number = len(colors) + 1
  y, x = np.mgrid[:height, :width].astype(np.float32)
  colors = np.concatenate([rng.uniform(20, 235, (1, 3)), colors])
  colors = colors.astype(np.float32)
  # Per object: a slope of brightness, and stripes of its own direction.
  slope = rng.normal(0, 0.4, (2, number)).astype(np.float32)
  frequency = rng.uniform(-1.2, 1.2, (2, number)).astype(np.float32)
  strength = rng.uniform(0, 8, number) * (rng.random(number) < 0.3)
  strength[0] = rng.uniform(6, 20)
  phase = rng.uniform(0, 2 * np.pi, number)
  level = slope[0][owner] * (y - height / 2) + slope[1][owner] * (x - width / 2)
  wave = frequency[0][owner] * y + frequency[1][owner] * x
  wave += phase.astype(np.float32)[owner]
  level += strength.astype(np.float32)[owner] * np.sin(wave)
  image = colors[owner] + level[..., None]
  cells = int(rng.integers(4, 17))
  clouds = rng.normal(0, 16, (cells, cells, 3)).astype(np.float32)
  clouds = cv2.resize(clouds, (width, height), interpolation=cv2.INTER_CUBIC)
  clouds[owner > 0] *= 0.25
  image += clouds
  if rng.random() < 0.7:
    image = cv2.GaussianBlur(image, (3, 3), rng.uniform(0.4, 0.9))
  noise = rng.standard_normal(image.shape, dtype=np.float32)
  image += noise * np.float32(rng.uniform(2, 9))
  return np.clip(image, 0, 255).astype(np.uint8)
