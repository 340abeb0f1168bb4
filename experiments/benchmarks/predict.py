"""Seconds and memory from an image to its Result.

With workdir=W,images=GLOB: milliseconds per image of every stage, each image
by itself, and of the whole folder as experiments.predict does it, batched,
with threads that read and write. Else by size of made-up images:

Images are full of discs whose pixels spell out their boxes, so that the
network's maps can be true, as after training, whatever its weights; the
network runs all the same. Options: name, width (of the network), sizes (sides,
ascending: memory is the process's peak so far), pitch (pixels a disc),
repeats, tile, overlap.
"""

import functools
import resource
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np

from experiments import predict
from fcrn_jax import inference, instances, models
from fcrn_jax.predictor import Predictor, grouping

OPTIONS = {
  "workdir": "", "images": "", "name": "fcrn18_s4_k3_d6", "width": "16",
  "sizes": "256+512+1024+2048", "pitch": "40", "repeats": "3", "tile": "2048",
  "overlap": "256",
}  # fmt: skip


def run(options: dict[str, str]) -> list[dict]:
  """One row a stage, or a size; what compiles is a column of its own."""
  if options["workdir"]:
    return _stages(options["workdir"], options["images"])
  name, pitch = options["name"], int(options["pitch"])
  views = inference.Options(
    tile=int(options["tile"]), tile_overlap=int(options["overlap"])
  )
  model = models.create(
    name, {"semantic": 2, "boxes": 1}, width=int(options["width"])
  )
  apply_fn = true_maps_at_its_cost(model)
  settings = instances.Options(num_masks=2, max_instances=4096)
  predictor = Predictor(
    apply_fn, model.stride, ("disc",), views=views, options=settings
  )
  return [
    {
      "network": name,
      **measure(predictor, apply_fn, int(side), pitch, int(options["repeats"])),
    }
    for side in options["sizes"].split("+")
  ]


def _stages(workdir: str, pattern: str) -> list[dict]:
  """Stages of real files; the first round, which compiles, is not counted."""
  predictor = Predictor.load(workdir)
  files = predict.find_images(pattern)
  network, stages = predictor.apply_fn, {}

  def timed(stage, function, *arguments):
    start = time.perf_counter()
    out = jax.block_until_ready(function(*arguments))
    spent = time.perf_counter() - start
    stages[stage] = stages.get(stage, 0.0) + spent
    return out

  def one(path, directory):
    image = timed("decode", predict.read, path)
    maps = timed("maps", predictor.maps, image)
    padded = jax.tree.map(
      lambda x: jnp.asarray(x[0]), grouping.pad(maps, predictor.stride)
    )
    find = functools.partial(instances.find, stride=predictor.stride)
    if maps.boxes is not None:
      timed("voting", find, *padded, predictor.options)
    result = timed("grouping", predictor.group, maps, image)
    timed("write", result.save, directory, path.stem)
    timed("predictor(image)", predictor, image)

  with tempfile.TemporaryDirectory() as directory:
    for _ in range(2):
      stages.clear()
      predictor.apply_fn = network
      for path in files.values():
        one(path, directory)
    # Once more to tell the network from the rest of the maps.
    predictor.apply_fn = lambda *x: timed("network", network, *x)
    for path in files.values():
      predictor.maps(predict.read(path))
    predictor.apply_fn = network
    for _ in range(2):
      start = time.perf_counter()
      predict.predict_files(predictor, files, directory, explain=False)
      folder = time.perf_counter() - start
  found = {
    "decode": stages["decode"],
    "network": stages["network"],
    "preprocessing and views": stages["maps"] - stages["network"],
    "voting": stages.get("voting", 0.0),
    "masks": stages["grouping"] - stages.get("voting", 0.0),
    "write": stages["write"],
    "predictor(image), neither read nor written": stages["predictor(image)"],
    "folder, read and written": folder,
  }
  return [
    {"stage": stage, "ms_per_image": 1e3 * seconds / len(files)}
    for stage, seconds in found.items()
  ]


def measure(predictor, apply_fn, side: int, pitch: int, repeats: int) -> dict:
  """The row of one size; what is tiled runs once, compilation included."""
  image = discs(side, pitch)
  tiled = side > predictor.views.tile
  calls = []
  for _ in range(1 if tiled else repeats + 1):
    start = time.perf_counter()
    maps = predictor.maps(image, progress=tiled)
    middle = time.perf_counter()
    result = predictor.group(maps, image, progress=tiled)
    calls.append((middle - start, time.perf_counter() - middle))
  first, (maps_only, rest) = sum(calls[0]), np.min(calls, axis=0)
  return {
    "side": side,
    "tiled": tiled,
    "discs": (-(-side // pitch)) ** 2,
    "found": len(result),
    "truncated": result.truncated,
    "first_s": round(first, 3),
    "maps_s": round(maps_only, 4),
    "grouping_s": round(rest, 4),
    "grouping_share": round(rest / (maps_only + rest), 3),
    "peak_gib": round(
      resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2
    ),
  }


def discs(side: int, pitch: int) -> np.ndarray:
  """Discs of several sizes on a grid, side side 3.

  Channels, at every pixel: offset to the centre of its disc (y, x) + 128, and
  the diameter.
  """
  position = np.arange(side)
  center = position // pitch * pitch + pitch // 2
  offset = (center - position + 128).astype(np.uint8)
  number = position // pitch
  size = pitch // 2 + (7 * number[:, None] + 5 * number) % (pitch // 2)
  image = np.empty((side, side, 3), np.uint8)
  image[..., 0], image[..., 1] = offset[:, None], offset
  image[..., 2] = size
  return image


def true_maps_at_its_cost(model):
  """An apply function that runs the network and returns the true maps."""
  variables = jax.jit(model.init, static_argnames="train")(
    jax.random.key(0), jnp.zeros((1, 64, 64, 3)), train=False
  )
  half = model.stride // 2

  @jax.jit
  def apply(variables, images, sizes):
    x = images[:, half :: model.stride, half :: model.stride]
    dy, dx, size = jnp.moveaxis(x.astype(jnp.float32), -1, 0)
    dy, dx = dy - 128, dx - 128
    inside = dy**2 + dx**2 < (size / 2) ** 2
    semantic = 8.0 * jnp.stack([~inside, inside], axis=-1)
    boxes = jnp.stack([dy, dx, size, size], axis=-1)[..., None, :]
    out = models.apply_within(model, variables, images / 255.0, sizes)
    # So little that it changes nothing, but XLA cannot know.
    return {
      "semantic": semantic + 1e-30 * out["semantic"],
      "boxes": boxes + 1e-30 * out["boxes"],
    }

  return lambda images, sizes: apply(variables, images, sizes)
