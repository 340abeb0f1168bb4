"""What a prediction holds, and how it becomes pictures and files."""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, SupportsIndex

import numpy as np
from jaxtyping import Bool, Float, Float16, Int, Integer, UInt8
from PIL import Image
from scipy import ndimage

from fcrn_jax.files import replacing
from fcrn_jax.types import Array

_OVERLAY_SIDE = 4096  # larger overlays are saved reduced
_ROWS = 1024  # that are renumbered at a time, for less memory


def layer_dtype(number: int) -> type:
  """What holds 0 ... number of a label map in the least memory."""
  return np.uint16 if number < 65536 else np.int32


class Evidence(NamedTuple):
  """Why each instance is there; see instances.Hypotheses."""

  seeds: Int[Array, "m 2"]  # cell (i, j) of the pixel that was kept
  num_votes: Int[Array, "m"]  # cells that voted for the same box
  spread: Float[Array, "m"]  # RMS distance of their box centres, pixels
  fill: Float[Array, "m"]  # area of the votes / area of the box
  # owners[level, r]: the instance of that nested mask that owns each cell's
  # r-th best category, -1 = none; only if asked for
  owners: Int[Array, "k r h w"] | None = None


@dataclasses.dataclass(eq=False, repr=False)
class Result:
  """One image's prediction, at the image's own size; by falling score.

  Attributes:
    semantic: H W uint8, category of every pixel, 0 = background.
    confidence: H W, the probability of that category.
    layers: r H W, k + 1 where a pixel belongs to instance k, 0 for none. One
      layer unless instances of different categories share pixels; no layer
      where the network has no boxes, and so no instances.
    classes: m, categories 1 ... C.
    scores: m, confidence: mean score of the votes.
    boxes: m 4, the voted box of the full instance (y0, x0, y1, x1); may
      reach beyond the image.
    truncated: whether there was no room for more instances.
    categories: names of the categories 1 ... C.
    background: name of label 0, which some data give a meaning ("sky").
    evidence: why each instance is there, or None.
    image: the H W 3 or H W image, or None.
  """

  semantic: UInt8[np.ndarray, "H W"]
  confidence: Float16[np.ndarray, "H W"]
  layers: Integer[np.ndarray, "r H W"]
  classes: Integer[np.ndarray, "m"]
  scores: Float[np.ndarray, "m"]
  boxes: Float[np.ndarray, "m 4"]
  truncated: bool = False
  categories: tuple[str, ...] = ()
  evidence: Evidence | None = None
  image: UInt8[Array, "..."] | None = None
  background: str = "background"

  def __len__(self) -> int:
    return len(self.classes)

  def __repr__(self) -> str:
    height, width = self.semantic.shape
    return f"Result({height} x {width}, {len(self)} instances)"

  @property
  def label_map(self) -> Int[np.ndarray, "H W"]:
    """k + 1 for pixels of instance k, 0 for none; the best score is on top."""
    labels = np.zeros(self.semantic.shape, np.int32)
    for layer in self.layers:
      top = (layer > 0) & ((labels == 0) | (layer < labels))
      np.copyto(labels, layer, where=top)
    return labels

  @property
  def masks(self) -> Bool[np.ndarray, "m H W"]:
    """All masks, made on each use; `mask` and `crop` give one alone."""
    # Memory that is never written to is never taken from the system.
    masks = np.zeros((len(self), *self.semantic.shape), bool)
    for k in range(len(self)):
      masks[k][self._bounds[k]] = self.crop(k)
    return masks

  def mask(self, k: SupportsIndex) -> Bool[np.ndarray, "H W"]:
    """The mask of instance k."""
    mask = np.zeros(self.semantic.shape, bool)
    k = range(len(self))[k]
    mask[self._bounds[k]] = self.crop(k)
    return mask

  def crop(self, k: SupportsIndex) -> Bool[np.ndarray, "_h _w"]:
    """The part of mask k within the bounds of its pixels."""
    k = range(len(self))[k]
    window = self.layers[(slice(None), *self._bounds[k])]
    return (window == k + 1).any(axis=0)

  def select(
    self,
    keep: Bool[Array, "n"] | Integer[Array, "n"] | Sequence[int] | slice,
    out: Integer[np.ndarray, "r H W"] | None = None,
  ) -> "Result":
    """The instances where `keep` is true, such as result.scores > 0.5.

    keep: or the instances' indices; they stay in order of their scores.
    out: where the new layers are written; may be the old ones.
    """
    kept = np.unique(np.arange(len(self))[keep])
    table = np.zeros(len(self) + 1, self.layers.dtype)
    table[kept + 1] = np.arange(1, len(kept) + 1)
    layers = np.empty_like(self.layers) if out is None else out
    for row in range(0, layers.shape[1], _ROWS):
      rows = np.s_[:, row : row + _ROWS]
      layers[rows] = table[self.layers[rows]]
    used = [k == 0 or layer.any() for k, layer in enumerate(layers)]
    evidence = self.evidence
    if evidence is not None:
      owners = evidence.owners
      if owners is not None:
        owners = table.astype(np.int32)[owners + 1] - 1
      evidence = Evidence(*(x[kept] for x in evidence[:-1]), owners)
    return dataclasses.replace(
      self,
      layers=layers if all(used) else layers[used],
      classes=self.classes[kept],
      scores=self.scores[kept],
      boxes=self.boxes[kept],
      evidence=evidence,
    )

  @functools.cached_property
  def _bounds(self) -> list[tuple[slice, slice]]:
    """Rows and columns that each instance's pixels span."""
    bounds = [None] * len(self)
    for layer in self.layers:
      for k, found in enumerate(ndimage.find_objects(layer, len(self))):
        if found is None:
          continue
        bounds[k] = found if bounds[k] is None else _hull(bounds[k], found)
    return [(slice(0, 0),) * 2 if b is None else b for b in bounds]

  def overlay(
    self, image: UInt8[Array, "..."] | None = None
  ) -> UInt8[np.ndarray, "H W 3"]:
    """The image with its instances (or categories, without any) in colour.

    image: by default the one that the prediction was made for.
    """
    from fcrn_jax import visualize

    image = self.image if image is None else image
    if image is None:
      raise ValueError("this result holds no image; pass overlay(image).")
    return visualize.overlay(image, self)

  def save(self, directory: str | os.PathLike, stem: str) -> list[pathlib.Path]:
    """Writes <stem>_semantic.png, _instances.png and _overlay.png.

    The semantic map has a palette, the label map 16 bits (beyond 65,535
    instances it is a 32-bit <stem>_instances.tif); it is left out where the
    network has no boxes. The overlay needs the image that the prediction was
    made for, and is at most 4,096 pixels wide and high. Each file appears
    complete or not at all. Returns the paths.
    """
    from fcrn_jax import visualize

    directory = pathlib.Path(directory)
    semantic = Image.fromarray(self.semantic, "P")
    semantic.putpalette(visualize.palette().tobytes())
    paths = [_write(directory / f"{stem}_semantic.png", semantic.save, "PNG")]
    if not len(self.layers):
      pass  # a map without instances would say that they were looked for
    elif len(self) <= 65535:
      labels = Image.fromarray(self.label_map.astype(np.uint16))
      path = directory / f"{stem}_instances.png"
      paths.append(_write(path, labels.save, "PNG"))
    else:
      path = directory / f"{stem}_instances.tif"
      labels = Image.fromarray(self.label_map)
      paths.append(_write(path, labels.save, "TIFF"))
    if self.image is not None:
      overlay = Image.fromarray(self._reduced_overlay())
      path = directory / f"{stem}_overlay.png"
      paths.append(_write(path, overlay.save, "PNG"))
    return paths

  def _reduced_overlay(self):
    """The overlay, of every k-th pixel where the image is large."""
    step = -(-max(self.semantic.shape) // _OVERLAY_SIDE)
    small = dataclasses.replace(
      self,
      semantic=self.semantic[::step, ::step],
      confidence=self.confidence[::step, ::step],
      layers=self.layers[:, ::step, ::step],
    )
    return small.overlay(np.asarray(self.image[::step, ::step]))

  def to_coco(
    self, image_id: Any, category_ids: Sequence[int] = ()
  ) -> list[dict[str, Any]]:
    """COCO results: one dict an instance, masks as compressed RLE.

    bbox is (x, y, width, height) of the mask's pixels. category_ids: what the
    annotations' json calls the categories 1 ... C, where that is not 1 ... C
    (Predictor.category_ids).
    """
    ids = (0, *category_ids) if category_ids else range(256)
    rows = []
    for k in range(len(self)):
      y, x = self._bounds[k]
      rows.append(
        {
          "image_id": image_id,
          "category_id": int(ids[self.classes[k]]),
          "score": round(float(self.scores[k]), 6),
          "bbox": [x.start, y.start, x.stop - x.start, y.stop - y.start],
          "segmentation": {
            "size": list(self.semantic.shape),
            "counts": compress(
              run_lengths(self.crop(k), y.start, x.start, self.semantic.shape)
            ),
          },
        }
      )
    return rows


def run_lengths(
  crop: Bool[np.ndarray, "_h _w"], y0: int, x0: int, shape: tuple[int, ...]
) -> Int[np.ndarray, "k"]:
  """COCO's run lengths of a mask that is `crop` at (y0, x0), else empty.

  Column by column, runs of 0 and 1 in turn, the first of 0.
  """
  height, width = shape
  # A row of 0 below ends each column's runs.
  columns = np.pad(crop, ((1, 1), (0, 0))).T.astype(np.int8)
  x, starts = np.nonzero(np.diff(columns) == 1)
  stops = np.nonzero(np.diff(columns) == -1)[1]
  column = (x0 + x) * height + y0
  edges = np.stack([column + starts, column + stops], axis=1).ravel()
  # Where a run reaches the bottom and the next starts at the top, they join.
  joined = np.flatnonzero(edges[1:] == edges[:-1])
  edges = np.delete(edges, np.concatenate([joined, joined + 1]))
  if not edges.size or edges[-1] != height * width:
    edges = np.append(edges, height * width)
  return np.diff(edges, prepend=0)


def compress(counts: Int[np.ndarray, "k"]) -> str:
  """COCO's text form: differences to the run before last, 5 bits a letter."""
  values = counts.copy()
  values[3:] -= counts[1:-2]
  letters = []
  for value in values.tolist():
    more = True
    while more:
      bits = value & 31
      value >>= 5
      # Done once the rest is only the sign, which the fifth bit repeats.
      more = value != (-1 if bits & 16 else 0)
      letters.append(chr((bits | 32 * more) + 48))
  return "".join(letters)


def _hull(a, b):
  return tuple(
    slice(min(p.start, q.start), max(p.stop, q.stop))
    for p, q in zip(a, b, strict=True)
  )


def _write(path: pathlib.Path, save: Callable, kind: str) -> pathlib.Path:
  with replacing(path) as temporary:
    save(temporary, kind)
  return path
