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


def run(options: dict) -> list[dict]:
  """One row per tile and overlap, or one of the mosaic."""
  predictor = Predictor.load(options["workdir"])
  config = checkpoint.read_config(options["workdir"])
  dataset = common.load_split(config, options.get("split"), options.get("data"))
  if "side" in options:
    return [_mosaic(predictor, dataset, int(options["side"]))]
  number = min(int(options.get("images", 10)), len(dataset))
  examples = sorted(
    (dataset[i] for i in range(number)), key=lambda e: e["image"].size
  )
  rows = []
  views = predictor.views
  whole_views = views._replace(tile=0)
  for tile, overlap in ((512, 256), (512, 128), (256, 128), (256, 64)):
    largest, differing, pixels = np.zeros(2), 0, 0
    for example in examples:
      predictor.views = whole_views
      image = example["image"]
      whole = predictor.maps(image), predictor(image)
      predictor.views = views._replace(tile=tile, tile_overlap=overlap)
      maps, result = predictor.maps(image), predictor(image)
      found = [np.abs(maps.probs - whole[0].probs).max()]
      if maps.boxes is not None:
        likely = whole[0].probs[..., 1:] > 0.5
        apart = np.abs(maps.boxes - whole[0].boxes).max(-1)
        found.append(apart.max(initial=0, where=likely))
      largest[: len(found)] = np.maximum(largest[: len(found)], found)
      differing += _differing(result.label_map, whole[1].label_map)
      pixels += image.shape[0] * image.shape[1]
    rows.append({
      "images": number, "tile": tile, "overlap": overlap,
      "max_probability_difference": float(largest[0]),
      "max_box_difference": float(largest[1]),
      "differing_pixels": differing / pixels,
    })  # fmt: skip
  predictor.views = views
  return rows


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
