"""Grouping beside other people's NMS, on the same candidates in one run.

  python -m experiments.benchmark --what=voting
  python -m experiments.benchmark --what=voting --set=cases=voc+full,repeats=9

Made-up scenes of ellipses with noisy boxes, the noisier near borders. "vote" is
ours for what the peers do: one NMS over the cells' boxes of the best category;
ours also records the clusters. "find" is the whole grouping: n masks, votes,
clusters, confidences, region NMS; "extract" adds masks, at the maps' or at the
image's resolution. Ratios are to "vote". StarDist's NMS gets star polygons of
the same objects (32 rays), for it knows no boxes, and takes one category only.
Options: cases (joined by "+"), repeats.
"""

import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Case(NamedTuple):
  """A scene and how it is grouped."""

  images: int
  size: tuple[int, int]
  categories: int
  objects: int
  extent: tuple[int, int]  # of an object, smallest and largest, cells
  slots: int
  limit: float | None  # milliseconds that we set ourselves
  what: str  # what the limit is for
  masks_at: int = 0  # also masks of so many pixels per cell


CASES = {
  "voc": Case(8, (63, 63), 20, 6, (8, 40), 100, 50, "extract", 8),
  "full": Case(1, (500, 500), 20, 6, (80, 300), 100, 100, "find"),
  "cityscapes": Case(1, (256, 512), 8, 30, (8, 80), 100, 80, "find"),
  "nuclei": Case(1, (2048, 2048), 1, 3000, (15, 45), 4096, 3000, "find"),
}
_SLOW = 1e9  # candidates x keepers that take a loop minutes


OPTIONS = {"cases": "+".join(CASES), "repeats": "5"}


def run(options: dict[str, str]) -> list[dict]:
  """Rows: case, what, milliseconds, ratio to ours, limit, number found."""
  names = options["cases"].split("+")
  if unknown := set(names) - set(CASES):
    raise ValueError(f"no cases {sorted(unknown)}; expected {list(CASES)}.")
  rows = []
  for name in names:
    rows += _measure(name, CASES[name], int(options["repeats"]))
  return rows


def _measure(name: str, case: Case, repeats: int) -> list[dict]:
  rng = np.random.default_rng(0)
  scenes = [scene(rng, case) for _ in range(case.images)]
  probs, boxes, owners = (np.stack(x) for x in zip(*scenes, strict=True))
  shape = f"{case.images} x {case.size[0]} x {case.size[1]} x {case.categories}"
  rows = []

  def add(what, milliseconds, found=None, note="", limit=None):
    rows.append({
      "case": f"{name} {shape}", "what": what, "ms": milliseconds,
      "ratio": milliseconds / rows[0]["ms"] if rows else 1.0,
      "limit_ms": limit or "", "found": found, "note": note,
    })  # fmt: skip

  programs = {"vote": _vote(case, probs, boxes)}
  for what, function in _ours(case).items():
    programs[what] = function, (probs, boxes)
  cells = probs[..., 0].size
  for what, (function, arrays) in programs.items():
    milliseconds, found, note = _time_ours(function, arrays, cells, repeats)
    add(
      what, milliseconds, found, note, case.limit if what == case.what else None
    )
  candidates = [_candidates(*maps) for maps in zip(probs, boxes, strict=True)]
  work = sum(len(c[0]) for c in candidates) * rows[0]["found"] / case.images
  for what, peer in _box_peers().items():
    if peer is None:
      add(what, float("nan"), None, "not installed")
    elif work > _SLOW and what.endswith("loop"):
      add(what, float("nan"), None, "left out: minutes")
    else:
      milliseconds, found = _time_peer(peer, candidates, repeats)
      add(what, milliseconds, found)
  if case.categories == 1:
    add("stardist nms", *_time_stardist(probs[0], owners[0], repeats))
  return rows


def scene(rng, case: Case):
  """probs h w c, boxes h w C 4 and the object of every cell (0 = none)."""
  height, width = case.size
  owner, noise = np.zeros(case.size, np.int32), np.zeros(case.size)
  boxes = np.zeros((case.objects + 1, 4), np.float32)
  for k in range(1, case.objects + 1):
    center = rng.uniform(0, case.size)
    half = rng.uniform(*case.extent, 2) / 2
    boxes[k] = *(center - half), *(center + half)
    y0, x0, y1, x1 = np.clip(boxes[k], 0, [height, width] * 2).astype(int)
    y, x = np.mgrid[y0:y1, x0:x1] + 0.5
    place = ((y - center[0]) / half[0]) ** 2 + ((x - center[1]) / half[1]) ** 2
    owner[y0:y1, x0:x1][place < 1] = k
    noise[y0:y1, x0:x1][place < 1] = 0.03
    noise[y0:y1, x0:x1][(place > 0.8) & (place < 1)] = 0.1
  category = rng.integers(1, case.categories + 1, case.objects + 1)
  category[0] = 0
  logits = rng.normal(size=(*case.size, case.categories + 1))
  np.put_along_axis(logits, category[owner][..., None], 7, axis=-1)
  probs = np.exp(logits)
  probs /= probs.sum(-1, keepdims=True)
  own = boxes[owner]
  # Boxes are poor near borders, which makes about as many fragments as objects.
  extent = np.tile(own[..., 2:] - own[..., :2], 2)
  own = own + rng.normal(size=own.shape) * noise[..., None] * extent
  shape = (*case.size, case.categories, 4)
  own = np.broadcast_to(own[:, :, None], shape).astype(np.float32)
  return probs.astype(np.float32), own, owner


def _ours(case: Case) -> dict[str, Callable]:
  import jax

  from fcrn_jax import instances

  # The limits are for masks of two categories a pixel.
  options = instances.Options(num_masks=2, max_instances=case.slots)
  height, width = case.size

  def find(probs, boxes):
    return instances.find(probs, boxes, options)

  def extract(probs, boxes, stride=1):
    size = (height * stride, width * stride)
    return instances.extract(probs, boxes * stride, options, size, stride)

  def extract_large(probs, boxes):
    return extract(probs, boxes, case.masks_at)

  ours = {"find": find}
  if height * width * case.slots < 2**28:  # else masks are label maps
    ours["extract"] = extract
  if case.masks_at:
    ours[f"extract, masks x {case.masks_at}"] = extract_large
  return {name: jax.jit(jax.vmap(f)) for name, f in ours.items()}


def _vote(case: Case, probs, boxes):
  """Our vote and its inputs: what the peers get, in the order of the map."""
  import jax
  import jax.numpy as jnp

  from fcrn_jax import instances

  category = probs.argmax(-1)[..., None]
  index = np.maximum(category - 1, 0)[..., None]
  own = np.take_along_axis(boxes, index, axis=3)[..., 0, :]
  tiles = jax.jit(jax.vmap(lambda x: instances.to_tiles(x[..., None])))
  arrays = (
    tiles(probs.max(-1)),
    jnp.stack([tiles(own[..., i]) for i in range(4)], axis=-1),
    tiles(category[..., 0] > 0),
    tiles(category[..., 0].astype(np.int32)),
  )

  def vote(scores, boxes, candidates, groups):
    return instances.vote(
      scores, boxes, candidates, 0.5, 4 * case.slots, groups
    )

  return jax.jit(jax.vmap(vote)), arrays


def _time_ours(function, arrays, cells, repeats):
  import jax
  import jax.numpy as jnp

  arrays = [jnp.asarray(x) for x in arrays]
  program = function.lower(*arrays).compile()
  found = jax.block_until_ready(program(*arrays))
  milliseconds = _median(
    lambda: jax.block_until_ready(program(*arrays)), repeats
  )
  temporary = program.memory_analysis().temp_size_in_bytes / cells
  note = f"{temporary:.0f} temporary bytes a cell"
  if found.truncated.any():
    note += ", truncated"
  return milliseconds, int(found.valid.sum()), note


def _median(function, repeats):
  times = []
  for _ in range(repeats):
    start = time.perf_counter()
    function()
    times.append(1e3 * (time.perf_counter() - start))
  return float(np.median(times))


def _candidates(probs, boxes):
  """Boxes, scores and categories of the foreground, as NMS takes them."""
  category = probs.argmax(-1)
  y, x = np.nonzero(category)
  group = category[y, x]
  return boxes[y, x, group - 1], probs[y, x, group], group


def _time_peer(peer, candidates, repeats):
  found = sum(len(peer(*c)) for c in candidates)
  repeats = min(repeats, 3)
  return _median(lambda: [peer(*c) for c in candidates], repeats), found


def _box_peers() -> dict[str, Callable | None]:
  peers = {
    "numpy loop": _numpy_nms,
    "torch loop": None,
    "torchvision nms": None,
  }
  try:
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"

    def on_device(arrays):
      return [torch.from_numpy(array).to(device) for array in arrays]

    peers["torch loop"] = lambda *c: _torch_nms(torch, *on_device(c))
    import torchvision

    torchvision.ops.nms(torch.zeros((1, 4)), torch.zeros(1), 0.5)
    peers["torchvision nms"] = lambda *c: torchvision.ops.batched_nms(
      *on_device(c), 0.5
    ).cpu()
  except (ImportError, RuntimeError):  # the CPU wheel has no compiled operators
    pass
  return peers


def _numpy_nms(boxes, scores, group):
  order = np.argsort(-scores, kind="stable")
  area = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
  kept = []
  while order.size:
    seed, rest = order[0], order[1:]
    kept.append(seed)
    top = np.maximum(boxes[rest, :2], boxes[seed, :2])
    low = np.minimum(boxes[rest, 2:], boxes[seed, 2:])
    shared = np.prod(np.maximum(low - top, 0), axis=1)
    iou = shared / (area[rest] + area[seed] - shared)
    order = rest[(iou <= 0.5) | (group[rest] != group[seed])]
  return kept


def _torch_nms(torch, boxes, scores, group):
  torch.set_num_threads(1)  # quicker for it: the tensors are small
  order = torch.argsort(scores, descending=True, stable=True)
  area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
  boxes, area, group = boxes[order], area[order], group[order]
  kept = []
  while len(order):
    kept.append(int(order[0]))
    top = torch.maximum(boxes[:, :2], boxes[0, :2])
    low = torch.minimum(boxes[:, 2:], boxes[0, 2:])
    shared = (low - top).clamp(min=0).prod(1)
    left = shared / (area + area[0] - shared) <= 0.5
    left = left | (group != group[0])
    left[0] = False
    order, boxes, area, group = (x[left] for x in (order, boxes, area, group))
  return kept


def _time_stardist(probs, owner, repeats):
  """Milliseconds, number found and a note of its NMS on star polygons."""
  try:
    from stardist.geometry import star_dist
    from stardist.nms import non_maximum_suppression
  except ImportError:
    return float("nan"), None, "not installed"
  distances = star_dist(owner.astype(np.uint16), n_rays=32)
  score = np.ascontiguousarray(probs[..., 1])

  def run():
    return non_maximum_suppression(distances, score, prob_thresh=0.5)[0]

  return _median(run, min(repeats, 3)), len(run()), "polygons without noise"
