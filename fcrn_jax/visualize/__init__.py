"""Pictures: overlays, box votes, hard pixels, errors, panels and curves.

A picture is an `H W 3` uint8 RGB array of the image's size times `scale`;
small images want a larger one (`zoom`). Images are `H W 3` or `H W` uint8.
"""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Integer, Num
from PIL import Image, ImageDraw, ImageFont

from fcrn_jax import boxes as box_algebra
from fcrn_jax.files import replacing
from fcrn_jax.types import IGNORE, Array, palette
from fcrn_jax.visualize import drawing as draw
from fcrn_jax.visualize.curves import save_curves
from fcrn_jax.visualize.drawing import AnyImage, Picture

__all__ = [
  "box_votes",
  "categories",
  "category_errors",
  "errors",
  "explain",
  "hard_pixels",
  "instances",
  "overlay",
  "palette",
  "panel",
  "sample",
  "save",
  "save_curves",
  "zoom",
]

# Told apart by colour-blind readers too (Okabe and Ito).
FOUND, WRONG, MISSED = (0, 200, 140), (240, 80, 30), (250, 210, 40)
_MAX_NAMES = 40  # instances of a picture that still get their names drawn


def zoom(shape: Sequence[int], side: int = 480) -> int:
  """The whole scale that brings an image of this shape to about `side`."""
  return max(1, round(side / max(shape[:2])))


def overlay(image: AnyImage, result: Any, scale: int = 1) -> Picture:
  """The image with a Result's instances; with its categories if it has none.

  result: an object with label_map, classes, scores, semantic, categories and
  background.
  """
  if not len(result.classes):
    names = (result.background, *result.categories)
    return categories(image, result.semantic, scale, names)
  return instances(
    image,
    result.label_map,
    result.classes,
    result.scores,
    result.categories,
    scale,
  )


def instances(
  image: AnyImage,
  found: Bool[Array, "m h w"] | Integer[Array, "h w"],
  classes: Integer[Array, "m"] | None = None,
  scores: Num[Array, "m"] | None = None,
  names: Sequence[str] = (),
  scale: int = 1,
) -> Picture:
  """Every instance in a colour of its own with a crisp edge.

  found: label map (k: instance k, 0 none) or masks, the first on top. Names
  (of categories 1 ... C, if there are several) and scores are written where
  there is room.
  """
  labels = draw.enlarge(draw.label_map(found), scale)
  colors = draw.instance_colors(int(labels.max(initial=0)))
  picture = draw.enlarge(draw.rgb(image), scale)
  fill, inside = colors[labels], (labels > 0)[..., None]
  np.copyto(picture, draw.mix(picture, fill, 0.55), where=inside)
  edge = draw.edges(labels, draw.line(picture))[..., None]
  np.copyto(picture, draw.mix(fill, draw.PAPER, 0.35), where=edge)
  if classes is not None and len(classes) <= _MAX_NAMES:
    draw.write_names(picture, labels, colors, classes, scores, names)
  return picture


def categories(
  image: AnyImage,
  semantic: Integer[Array, "h w"],
  scale: int = 1,
  names: Sequence[str] = (),
) -> Picture:
  """The category map on the dimmed image, void white.

  names: of the labels 0 ... C, for a legend of what is there; label 0 has a
  colour too where its name is not "background".
  """
  semantic = draw.enlarge(np.asarray(semantic), scale)
  picture = draw.dim(image, scale)
  colors = draw.category_colors()
  first = 1 if not names or "background" in names[0] else 0
  inside = semantic >= first
  picture[inside] = draw.mix(picture, colors[semantic], 0.6)[inside]
  edge = draw.edges(semantic, 1) & (semantic != IGNORE)
  picture[edge] = colors[semantic][edge]
  sizes = np.bincount(semantic.ravel(), minlength=256)[first : len(names)]
  shown = first + np.argsort(-sizes, stable=True)[: np.count_nonzero(sizes)]
  draw.write_legend(picture, [str(names[k]) for k in shown], colors[shown])
  return picture


def box_votes(
  image: AnyImage,
  boxes: Float[Array, "y x 4"],
  candidates: Bool[Array, "y x"],
  stride: int | float,
  scale: int = 1,
) -> Picture:
  """Where each cell believes the centre of its instance's box.

  Candidate cells are coloured by the direction of their vote, as the wheel in
  the corner is (paler: nearer); arrows run from some of the cells to the
  centres, and every vote leaves a white dot. Boxes that are not finite are left
  out.

  boxes: (y0, x0, y1, x1) of each cell's own category, in pixels of the image;
  stride: image pixels per cell.
  """
  picture = draw.dim(image, scale)
  boxes = np.asarray(boxes, np.float32)
  finite = np.isfinite(boxes).all(axis=-1)
  candidates = np.asarray(candidates) & finite
  boxes = np.where(finite[..., None], boxes, 0)
  points = box_algebra.cell_points(*candidates.shape, stride, np)
  offsets = box_algebra.encode(boxes, points)[..., :2]
  # A vote of half the box's larger side is as far as a pixel inside can be.
  size = np.maximum(boxes[..., 2:] - boxes[..., :2], 1).max(axis=-1)
  share = np.linalg.norm(offsets, axis=-1) / (size / 2)
  cells = (draw.wheel(offsets, share), candidates)
  color, where = (draw.to_pixels(c, stride * scale, picture) for c in cells)
  picture[where] = draw.mix(picture, color, 0.8)[where]
  tips = (points + offsets) * scale
  rows, columns = np.nonzero(candidates)
  # About 28 pixels from arrow to arrow, whatever the stride.
  step = max(1, round(28 / (stride * scale)))
  line = draw.line(picture)
  for i, j in zip(rows, columns, strict=True):
    if i % step == step // 2 and j % step == step // 2:
      draw.arrow(picture, points[i, j] * scale, tips[i, j], max(1, line // 2))
  radius = min(0.75 + line / 2, stride * scale / 9)
  for tip in tips[candidates]:
    draw.dot(picture, tip, radius, draw.PAPER)
  draw.paint_wheel(picture)
  return picture


def hard_pixels(
  image: AnyImage,
  kept: Bool[Array, "y x"],
  valid: Bool[Array, "y x"] | None = None,
  stride: int | float = 1,
  scale: int = 1,
) -> Picture:
  """The cells that bootstrapping kept, glowing on a dim image.

  valid: cells that had a label; the others are hatched.
  """
  bright = draw.enlarge(draw.rgb(image), scale)
  picture = draw.mix(bright, draw.INK, 0.6)
  kept = draw.to_pixels(np.asarray(kept), stride * scale, picture)
  picture[kept] = draw.mix(bright, MISSED, 0.5)[kept]
  picture[draw.edges(kept.astype(np.uint8), 1)] = WRONG
  if valid is not None:
    valid = draw.to_pixels(np.asarray(valid), stride * scale, picture)
    draw.hatch(picture, ~valid)
  return picture


def errors(
  image: AnyImage,
  found: Bool[Array, "m h w"] | Integer[Array, "h w"],
  truth: Bool[Array, "g h w"] | Integer[Array, "h w"],
  void: Bool[Array, "h w"] | None = None,
  threshold: float = 0.5,
  scale: int = 1,
  classes: tuple[Integer[Array, "m"], Integer[Array, "g"]] | None = None,
) -> Picture:
  """Right, wrong and missed instances by the colour of their edges.

  FOUND: instances that meet a true one of their category with IoU > threshold;
  WRONG: those that do not; MISSED: true ones that none meets, filled. Void
  pixels count neither way. classes: the categories of those found and of the
  true ones; without them all are of one.
  """
  found, truth = draw.label_map(found), draw.label_map(truth)
  if void is not None:
    found, truth = np.where(void, 0, found), np.where(void, 0, truth)
  sizes = [np.bincount(labels.ravel()) for labels in (found, truth)]
  pairs, shared = np.unique(
    np.stack([found.ravel(), truth.ravel()]), axis=1, return_counts=True
  )
  union = sizes[0][pairs[0]] + sizes[1][pairs[1]] - shared
  pairs = pairs[:, (pairs > 0).all(axis=0) & (shared > threshold * union)]
  if classes is not None:
    ours, theirs = map(np.asarray, classes)
    pairs = pairs[:, ours[pairs[0] - 1] == theirs[pairs[1] - 1]]
  good = [np.zeros(len(size), bool) for size in sizes]
  good[0][pairs[0]] = good[1][pairs[1]] = True
  picture = draw.mix(draw.enlarge(draw.rgb(image), scale), draw.INK, 0.35)
  found, truth = draw.enlarge(found, scale), draw.enlarge(truth, scale)
  line = draw.line(picture)
  missed = (truth > 0) & ~good[1][truth]
  picture[missed] = draw.mix(picture, MISSED, 0.45)[missed]
  picture[draw.edges(truth, line) & missed] = MISSED
  right = good[0][found]
  edge = draw.edges(found, line)
  picture[edge & right] = FOUND
  picture[edge & ~right] = WRONG
  return picture


def category_errors(
  image: AnyImage,
  semantic: Integer[Array, "h w"],
  truth: Integer[Array, "h w"],
  scale: int = 1,
) -> Picture:
  """Pixels of a wrong category in WRONG on the dimmed image, void hatched."""
  semantic, truth = (
    draw.enlarge(np.asarray(labels), scale) for labels in (semantic, truth)
  )
  picture = draw.dim(image, scale)
  void = truth == IGNORE
  wrong = (semantic != truth) & ~void
  picture[wrong] = draw.mix(picture, WRONG, 0.75)[wrong]
  draw.hatch(picture, void)
  return picture


def explain(
  image: AnyImage,
  mask: Bool[Array, "h w"],
  seed: Num[Array, "2"],
  votes: Float[Array, "n 4"],
  voters: Num[Array, "n 2"],
) -> Picture:
  """Why this mask: a close-up of its seed, its votes and where they are from.

  seed: point (y, x) of the pixel that was kept; votes: the boxes of the pixels
  that it suppressed, itself first; voters: their points. The votes' boxes add
  up: a clear frame is agreement, a blurred one is doubt. The seed, its box and
  the way to its centre are drawn in red.
  """
  mask, seed, votes = np.asarray(mask), np.asarray(seed), np.asarray(votes)
  pixels = np.argwhere(mask) if mask.any() else np.floor(seed[None])
  # The box may be NaN.
  low = np.fmin(pixels.min(axis=0), votes[0, :2])
  high = np.fmax(pixels.max(axis=0) + 1, votes[0, 2:])
  margin = 0.25 * (high - low).max() + 2
  low = np.clip(np.floor(low - margin), 0, mask.shape).astype(int)
  high = np.clip(np.ceil(high + margin), low + 1, mask.shape).astype(int)
  window = tuple(slice(*span) for span in zip(low, high, strict=True))
  scale = zoom((high - low).tolist())
  inside = draw.enlarge(mask[window], scale)
  picture = draw.enlarge(draw.rgb(image)[window], scale)
  picture = draw.mix(picture, draw.INK, 0.4)
  line = draw.line(picture)
  picture[inside] = draw.mix(picture, FOUND, 0.4)[inside]
  picture[draw.edges(inside.astype(np.uint8), line)] = FOUND
  boxes = (votes - np.tile(low, 2)) * scale
  glow = np.zeros(picture.shape[:2], np.float32)
  for box in boxes[:: max(1, len(boxes) // 300)]:
    frame = np.zeros(picture.shape[:2], np.uint8)
    glow += draw.rectangle(frame, box, 1, 1)
  glow = np.sqrt(glow / max(glow.max(), 1))[..., None]
  picture[:] = picture * (1 - glow) + np.uint8(MISSED) * glow
  for point in (np.asarray(voters) - low) * scale:
    draw.dot(picture, point, 0.75 + line / 2, draw.PAPER)
  draw.rectangle(picture, boxes[0], line, WRONG)
  start, center = (seed - low) * scale, (boxes[0, :2] + boxes[0, 2:]) / 2
  draw.arrow(picture, start, center, line, WRONG)
  draw.dot(picture, start, 2.5 * line, WRONG)
  return picture


def panel(
  pictures: Sequence[Picture],
  titles: Sequence[str],
  columns: int | None = None,
) -> Picture:
  """Pictures side by side, in rows of `columns`, each under its title."""
  if len(pictures) != len(titles):
    raise ValueError(
      f"{len(pictures)} pictures and {len(titles)} titles; give one each."
    )
  if not pictures:
    raise ValueError("no pictures for a panel; give at least one.")
  columns = columns or len(pictures)
  rows = -(-len(pictures) // columns)
  height = max(p.shape[0] for p in pictures)
  width = max(p.shape[1] for p in pictures)
  size = int(np.clip(width / 22, 11, 40))
  font = ImageFont.load_default(size)
  width = max(width, *(int(font.getlength(title)) for title in titles))
  gap, head = size, 2 * size
  sheet = Image.new(
    "RGB",
    (columns * (width + gap) + gap, rows * (height + head) + gap),
    draw.PAPER,
  )
  pen = ImageDraw.Draw(sheet)
  for k, (picture, title) in enumerate(zip(pictures, titles, strict=True)):
    x = gap + k % columns * (width + gap)
    y = k // columns * (height + head)
    pen.text((x, y + 0.55 * head), title, draw.INK, font, anchor="lm")
    sheet.paste(Image.fromarray(picture), (x, y + head))
  return np.array(sheet)


def sample(
  image: AnyImage,
  result: Any,
  truth: Any = None,
  maps: Any = None,
  stride: int | float = 1,
) -> Picture:
  """The whole chain side by side, small images enlarged.

  Image, truth, category map, box votes, instances and errors, as far as given;
  without instances the category map's errors.

  result: see `overlay`; truth: an example of a data set; maps: an object with
  probs (h w c) and boxes (h w C 4), whose cells are `stride` pixels wide.
  """
  scale, names = zoom(image.shape), result.categories
  labels = (result.background, *names)
  tiles = {"image": draw.enlarge(draw.rgb(image), scale)}
  if truth is not None and "instances" in truth:
    tiles["truth"] = instances(
      image, truth["instances"], truth["classes"], None, names, scale
    )
  elif truth is not None:
    tiles["truth"] = categories(image, truth["semantic"], scale, labels)
  tiles["category map"] = categories(image, result.semantic, scale, labels)
  if maps is not None and maps.boxes is not None:
    best = np.asarray(maps.probs).argmax(axis=-1)
    index = np.maximum(best - 1, 0)[..., None, None]
    own = np.take_along_axis(np.asarray(maps.boxes), index, axis=2)[:, :, 0]
    tiles["box votes, coloured by direction"] = box_votes(
      image, own, best > 0, stride, scale
    )
  if maps is None or maps.boxes is not None:
    tiles["instances"] = instances(
      image, result.label_map, result.classes, result.scores, names, scale
    )
  if truth is not None and not ("instances" in tiles and "instances" in truth):
    tiles["red wrong, hatched void"] = category_errors(
      image, result.semantic, truth["semantic"], scale
    )
  elif truth is not None:
    void = np.asarray(truth["semantic"]) == IGNORE
    tiles["green right, red wrong, yellow missed"] = errors(
      image,
      result.label_map,
      truth["instances"],
      void,
      scale=scale,
      classes=(result.classes, truth["classes"]),
    )
  columns = 2 if len(tiles) == 4 else min(3, len(tiles))
  return panel(list(tiles.values()), list(tiles), columns)


def save(path: str | os.PathLike, picture: Picture) -> None:
  """Writes a PNG, complete or not at all."""
  with replacing(path) as temporary:
    Image.fromarray(picture).save(temporary, "PNG")
