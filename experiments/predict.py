r"""Predicts images: category maps, instance label maps, overlays, COCO results.

  python -m experiments.predict --workdir=runs/shapes --images=DIR --output=out
  python -m experiments.predict --workdir=runs/mine --images='scans/*.tif' \
      --output=out --explain
  python -m experiments.predict --semantic=S --localization=L --images=a.jpg \
      --output=out
Writes <stem>_overlay.png, which is to look at, <stem>_semantic.png (categories,
with a palette), <stem>_instances.png (numbers of instances in 16 bits: viewers
show it black) and predictions.json (COCO results); a network without boxes has
no instances and leaves out the last two. A file that cannot be read is named
and skipped, and the exit code is 1.
"""

import collections
import dataclasses
import glob
import pathlib
import re
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from absl import flags

from experiments import command, networks

flags.adopt_module_key_flags(networks)
_IMAGES = flags.DEFINE_string(
  "images", None, "A file, a folder or a quoted glob: PNG, JPEG, TIFF, BMP,"
  " WebP or uint8 .npy.",
)  # fmt: skip
_OUTPUT = flags.DEFINE_string("output", None, "Folder for what is found.")
_MAX_INSTANCES = flags.DEFINE_integer(
  "max_instances", None, "Room for so many; default the config's.", 1
)
_MIN_SCORE = flags.DEFINE_float(
  "min_score", 0.0, "Leave out instances of a lower score.", 0.0, 1.0
)
_EXPLAIN = flags.DEFINE_bool(
  "explain",
  False,
  "Also <stem>_explain.png: the votes for the six best"
  " and the six worst instances.",
)

_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".npy")
_UNREADABLE = (ValueError, OSError, EOFError)
_LARGE = 2**26  # bytes from which on a TIFF is read piece by piece
_PLAIN = (1, 2)  # photometric interpretation: 0 is black, or RGB


def main():
  """Predicts the flags' images; exits with 1 if any could not be read."""
  from experiments import common

  common.start()
  files = find_images(_IMAGES.value)
  output = pathlib.Path(_OUTPUT.value)
  if any(path.parent.resolve() == output.resolve() for path in files.values()):
    raise ValueError(
      f"--output={output} is the images' own folder, where a second run would"
      " take pictures for images; pass another."
    )
  predictor = networks.load()
  if _EXPLAIN.value and not predictor.has_boxes:
    raise ValueError(
      f"{predictor.source} is of a network without boxes, so there are no votes"
      " to explain; leave out --explain."
    )
  if _MAX_INSTANCES.value:
    predictor.options = dataclasses.replace(
      predictor.options, max_instances=_MAX_INSTANCES.value
    )
  failed = predict_files(
    predictor, files, output, _EXPLAIN.value, _MIN_SCORE.value
  )
  done = len(files) - len(failed)
  print(f"{done} of {len(files)} images predicted into {output}")
  print(
    "look at *_overlay.png; *_instances.png holds 16-bit numbers, which viewers"
    " show black"
    if predictor.has_boxes
    else "the network has no boxes: no *_instances.png, no predictions.json"
  )
  if failed:
    sys.exit(f"{len(failed)} files failed: {', '.join(failed[:20])}")


def find_images(pattern: str) -> dict[str, pathlib.Path]:
  """Files by the stem of their outputs; equal stems get their suffix too."""
  path = pathlib.Path(pattern).expanduser()
  if path.is_file():  # its name may hold a glob's letters
    paths = [path]
  elif path.is_dir():
    paths = [p for p in path.iterdir() if p.suffix.lower() in _SUFFIXES]
  else:
    paths = [pathlib.Path(p) for p in glob.glob(str(path), recursive=True)]
  paths = sorted(p for p in paths if p.is_file() and p.name[0] != ".")
  if not paths:
    raise ValueError(
      f"no images at {pattern}; expected a file, a folder or a quoted glob of"
      f" {', '.join(_SUFFIXES)}."
    )
  stems = collections.Counter(p.stem for p in paths)
  named = {
    p.stem if stems[p.stem] == 1 else p.name.replace(".", "_"): p for p in paths
  }
  if len(named) < len(paths):
    raise ValueError(
      f"files in different folders at {pattern} have the same name; predict"
      " one folder at a time."
    )
  return named


def image_ids(stems: Iterable[str]) -> dict[str, int | str]:
  """COCO's image_id by stem: its number, but if two have the same, the stem.

  COCO_val2014_000000000042, as COCO names files of 2014, has the number 42.
  """
  found = {s: re.fullmatch(r"(?:COCO_\w+_)?(\d+)", s) for s in stems}
  numbers = {stem: int(match[1]) for stem, match in found.items() if match}
  counts = collections.Counter(numbers.values())
  return {
    stem: numbers[stem] if counts[numbers.get(stem)] == 1 else stem
    for stem in stems
  }


def read(path: pathlib.Path):
  """The image of a file, uint8; .npy and large plain TIFFs of 8 bits stay on
  the disk.
  """
  from fcrn_jax.data import pictures

  if path.suffix.lower() == ".npy":
    try:
      image = np.load(path, mmap_mode="r")
    except Exception as error:  # of a broken header it is any
      raise ValueError(f"{path} is no whole .npy file: {error}.") from error
    deep = image.dtype != np.uint8 and image.dtype.kind in "uif"
    return pictures.stretch(image) if deep else image
  if path.suffix.lower() in (".tif", ".tiff"):
    image = _map_tiff(path)
    if image is not None:
      return image
  return pictures.load_image(path)


def _map_tiff(path):
  """A large 8-bit TIFF mapped into memory; None for what needs decoding."""
  import tifffile

  try:
    with tifffile.TiffFile(path) as file:
      page = file.pages[0]
    turned, plain = page.tags.get("Orientation"), page.photometric in _PLAIN
    image = tifffile.memmap(path, mode="r")
  except Exception:  # of a broken file it is any; PIL then says what is wrong
    return None
  plain &= image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3)
  upright = turned is None or turned.value == 1
  if plain and upright and image.dtype == np.uint8 and image.size >= _LARGE:
    return image
  return None


def predict_files(
  predictor, files, output, explain: bool = False, min_score: float = 0.0
) -> list[str]:
  """Predicts files by stem into a folder; returns those that failed.

  Threads read what comes next and write what is done.
  """
  from tqdm import tqdm

  from fcrn_jax.files import write_json
  from fcrn_jax.predictor import read_ahead

  output = pathlib.Path(output)
  output.mkdir(parents=True, exist_ok=True)
  found, failed, writing = [], [], collections.deque()
  size, ids = predictor.batch_size, image_ids(files)

  def read_or_reason(item):
    try:
      return *item, read(item[1])
    except _UNREADABLE as error:
      return *item, error

  def write(stem, result, picture):
    if min_score:
      result = result.select(result.scores >= min_score)
    arguments = output, stem, ids[stem], predictor.category_ids
    writing.append(pool.submit(_write, *arguments, result, picture))

  def finish(until):
    while len(writing) > until:
      found.append(writing.popleft().result())

  def predict(batch):
    _predict_batch(predictor, batch, explain, min_score, write, failed, alone)
    if not bar.n:  # lest the time left count the compilation
      bar.unpause()
    bar.update(len(batch))

  # One image alone has a bar of tiles. Drawn without a delay, the bar would be
  # broken by the first line of the log.
  batch, alone = [], len(files) == 1
  bar = tqdm(
    total=len(files), desc="predict", unit="image", delay=1e-9, disable=alone
  )
  try:
    with ThreadPoolExecutor(4) as pool, bar:
      for item in read_ahead(read_or_reason, files.items(), size):
        batch.append(item)
        if len(batch) == size:
          predict(batch)
          batch = []
          finish(size)
      predict(batch)
      finish(0)
  finally:  # what is done by then stays of use
    # Without any, an earlier run's would be lost for nothing.
    if found and predictor.has_boxes:
      rows = [row for rows in found for row in rows]
      write_json(output / "predictions.json", rows, indent=None)
  return failed


def _predict_batch(
  predictor, batch, explain, min_score, write, failed, progress
):
  """Predicts one batch and hands its results to `write`."""
  from tqdm import tqdm

  from fcrn_jax.predictor import check_image

  sound = []
  for stem, path, image in batch:
    try:
      if isinstance(image, Exception):
        raise image
      check_image(image)
      sound.append((stem, image))
    except _UNREADABLE as error:
      tqdm.write(f"skipped {path}: {error}", file=sys.stderr)
      failed.append(str(path))
  if progress:
    results = [predictor(image, progress=True) for _, image in sound]
  else:
    results = predictor.predict_batch([image for _, image in sound])
  for (stem, image), result in zip(sound, results, strict=True):
    if result.truncated:
      tqdm.write(
        f"{stem}: not all votes found room, {len(result)} instances are kept;"
        f" --max_instances is {predictor.options.max_instances}, raise it.",
        file=sys.stderr,
      )
    picture = None
    if explain:
      try:
        picture = predictor.explain(image, min_score=min_score)
      except ValueError as error:
        tqdm.write(f"{stem}: {error}", file=sys.stderr)
    write(stem, result, picture)


def _write(output, stem, image_id, category_ids, result, picture):
  from fcrn_jax import visualize

  result.save(output, stem)
  if picture is not None:
    visualize.save(output / f"{stem}_explain.png", picture)
  return result.to_coco(image_id, category_ids)


if __name__ == "__main__":
  flags.mark_flags_as_required(["images", "output"])
  command.run(main)
