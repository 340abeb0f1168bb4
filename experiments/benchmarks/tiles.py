"""Tiled against whole images, and what the largest image needs.

  python -m experiments.benchmark --what=tiles --set=workdir=runs/nuclei
  python -m experiments.benchmark --what=tiles \
      --set=workdir=runs/nuclei,side=10000

For images that fit whole: the largest difference of the maps, and the share
of pixels with another label, by tile and overlap (options: workdir, split,
data, images). With side=N a mosaic of the
split's images of N x N pixels, memory-mapped, goes through in tiles: time and
the largest resident memory of the process.
"""

import pathlib
import resource
import tempfile
import time

import numpy as np

from experiments import common
from fcrn_jax import checkpoint
from fcrn_jax.predictor import Predictor

OPTIONS = {
  "workdir": None, "split": "", "data": "", "images": "10", "side": "",
}  # fmt: skip


def run(options: dict[str, str]) -> list[dict]:
  """One row per tile and overlap, or one of the mosaic."""
  predictor = Predictor.load(options["workdir"])
  config = checkpoint.read_config(options["workdir"])
  dataset = common.load_split(config, options["split"], options["data"])
  if options["side"]:
    return [_mosaic(predictor, dataset, int(options["side"]))]
  number = min(int(options["images"]), len(dataset))
  examples = sorted(
    (dataset[i] for i in range(number)), key=lambda e: e["image"].size
  )
  rows = []
  views = predictor.views
  predictor.views = views._replace(tile=0)
  whole = [_look(predictor, example["image"]) for example in examples]
  for tile, overlap in ((512, 256), (512, 128), (256, 128), (256, 64)):
    largest, differing, pixels = np.zeros(2), 0, 0
    predictor.views = views._replace(tile=tile, tile_overlap=overlap)
    for example, (whole_maps, whole_labels) in zip(
      examples, whole, strict=True
    ):
      maps, labels = _look(predictor, example["image"])
      found = [np.abs(maps.probs - whole_maps.probs).max()]
      if maps.boxes is not None:
        likely = whole_maps.probs[..., 1:] > 0.5
        apart = np.abs(maps.boxes - whole_maps.boxes).max(-1)
        found.append(apart.max(initial=0, where=likely))
      largest[: len(found)] = np.maximum(largest[: len(found)], found)
      differing += _differing(labels, whole_labels)
      pixels += labels.size
    rows.append({
      "images": number, "tile": tile, "overlap": overlap,
      "max_probability_difference": float(largest[0]),
      "max_box_difference": float(largest[1]),
      "differing_pixels": differing / pixels,
    })  # fmt: skip
  return rows


def _look(predictor, image):
  """Maps and label map of an image."""
  maps = predictor.maps(image)
  return maps, predictor.group(maps, image).label_map


def _differing(a, b):
  """Pixels whose instance is not the one that shares most with it."""
  pairs, counts = np.unique(
    np.stack([a.ravel(), b.ravel()]), axis=1, return_counts=True
  )
  best = {}
  for (label, _), count in zip(pairs.T, counts, strict=True):
    best[label] = max(best.get(label, 0), count)
  return a.size - sum(best.values())


def _mosaic(predictor, dataset, side):
  with tempfile.TemporaryDirectory() as directory:
    path = pathlib.Path(directory) / "mosaic.npy"
    image = np.lib.format.open_memmap(path, "w+", np.uint8, (side, side, 3))
    y = index = 0
    while y < side:
      x = height = 0
      while x < side:
        part = dataset[index % len(dataset)]["image"]
        index += 1
        part = part[: side - y, : side - x]
        image[y : y + part.shape[0], x : x + part.shape[1]] = part
        x += part.shape[1]
        height = max(height, part.shape[0])
      y += height
    image.flush()
    start = time.perf_counter()
    result = predictor(np.load(path, mmap_mode="r"), progress=True)
    seconds = time.perf_counter() - start
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
  return {
    "side": side, "instances": len(result.scores), "seconds": seconds,
    "megapixels_per_second": side**2 / 1e6 / seconds, "peak_gib": peak,
  }  # fmt: skip
