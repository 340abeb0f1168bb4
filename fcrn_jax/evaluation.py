"""A predictor on a data set: numbers, stamped with how they were made."""

import datetime
import hashlib
import importlib.metadata
import logging
import os
import pathlib
import pickle
import platform
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from tqdm import tqdm

from fcrn_jax import data, files, metrics, visualize
from fcrn_jax.data import check
from fcrn_jax.oracle import Example, Oracle, oracle_maps, predict
from fcrn_jax.predictor import Predictor, read_ahead
from fcrn_jax.scoring import Scores, counts_void

# Category maps of published benchmarks have rules of their own.
_SEMANTIC = {"voc2012_sbd": metrics.VOC, "cityscapes": metrics.CITYSCAPES}
_NUM_WORST = 20
_ROWS = 21  # of classes in the table, so that it fits a screen; VOC's number


def evaluate(
  predictor: Predictor,
  dataset: Any,
  protocol: str = "sds",
  *,
  workdir: str | os.PathLike | None = None,
  max_images: int = 0,
  oracle: Oracle = "",
  allow_leak: bool = False,
  train_sets: Sequence[Any] | None = None,
  on_error: str = "raise",
  suffix: str = "",
  progress: bool = True,
) -> dict[str, Any]:
  """Scores of a predictor on a data set, beside connected components'.

  Category maps by the rules of the data set's benchmark (VOC, Cityscapes,
  else a mean over the classes there are), instances by `protocol` ("sds",
  "mnc", "coco" or "matching"), by sds and by matching. Instances do not
  overlap in a data set: of COCO's, the smaller one is whole. Void pixels count
  nowhere, but in SBD's instances, whose published protocol knows none. Without
  boxes a network has no instances, so that connected components alone are
  scored. Every process takes its share of the images and returns the scores of
  all.

  Args:
    predictor: see Predictor.load.
    dataset: see data.load.
    protocol: of the instances.
    workdir: where eval_<split>.json goes, if anywhere.
    max_images: only the first so many; 0 for all.
    oracle: what is taken from the truth instead of a network: "categories",
      "boxes" or "both" (the pilot experiment of the paper's section 3.2).
    allow_leak: score images that the networks were trained on all the same,
      and mark the result.
    train_sets: the data sets that they were trained on; by default those that
      the predictor names are loaded.
    on_error: "skip" leaves out, logs and counts images that cannot be read.
    suffix: added to the file's name.
    progress: show a bar with the time left.

  Returns:
    A flat dict: scores in 0 ... 1 (None where undefined), the stamp, and
    `worst_images`, the ids of the twenty worst. `tuned_on_these_images` says
    whether experiments.tune chose the thresholds on some of them, None where
    that is not known.

  Raises:
    ValueError: other categories than the networks', or images that they were
      trained on.
  """
  metrics.InstanceEvaluator(2, protocol)  # refuses an unknown one
  if oracle not in typing.get_args(Oracle):
    raise ValueError(
      f"oracle is {oracle!r}; expected one of {typing.get_args(Oracle)}."
    )
  if max_images < 0:
    raise ValueError(f"max_images is {max_images}; expected 0 (all) or more.")
  refuse_other_categories(predictor.categories, dataset)
  if oracle in ("boxes", "both") and not dataset.has_instances:
    raise ValueError(f"{dataset.name} has no instances to take boxes from.")
  leaks = check_leaks(predictor, dataset, allow_leak, train_sets)
  number = min(len(dataset), max_images or len(dataset))
  scores = _score(
    predictor, dataset, number, protocol, oracle, on_error, progress
  )
  for other in _other_processes(scores):
    scores.merge(other)
  semantic = _SEMANTIC.get(dataset.name, "nan_excluded")
  names = (dataset.background, *dataset.categories)
  values = scores.result(names, semantic)
  values |= _stamp(predictor, dataset, protocol, semantic, number, oracle)
  values |= leaks
  values["num_images"] = len(scores.by_image)
  values["skipped_images"] = number - len(scores.by_image)
  values["worst_images"] = scores.worst(_NUM_WORST)
  values = files.jsonable(values)
  if workdir is not None and jax.process_index() == 0:
    name = f"eval_{file_stem(dataset.split, oracle, suffix)}.json"
    files.write_json(pathlib.Path(workdir) / name, values)
  return values


def table(scores: Mapping[str, Any]) -> str:
  """The main scores as text, ours beside connected components'."""
  names = [
    "pixel_accuracy", "mean_accuracy", "mean_iou", "ap_r_0.5", "ap_r_0.7",
    "ap_r_vol", "ap", "ap_0.5", "ap_0.75", "matching_0.5", "matching_0.7",
    "matching_0.9", "matching_by_image_0.5", "touching_recall_0.5", "pq",
  ]  # fmt: skip
  classes = [name for name in scores if name.startswith("iou_")]
  names[3:3] = classes if len(classes) <= _ROWS else []
  names = [
    name
    for name in names
    if scores.get(name) is not None
    or scores.get(f"components_{name}") is not None
  ]
  width = max(map(len, (*names, " " * 23))) + 1
  lines = []
  if any(name.startswith("components_") for name in scores):
    lines = [f"{'':{width}}{'ours':>10}{'components':>14}"]
  for name in names:
    other = scores.get(f"components_{name}")
    other = "" if other is None else f"{other:14.4f}"
    own = scores.get(name)
    own = f"{'':10}" if own is None else f"{own:10.4f}"
    lines.append(f"{name:{width}}{own}{other}")
  where = f" {scores['data_path']}" if scores["data_path"] else ""
  lines.append(
    f"{scores['num_images']} images of {scores['data']}{where}"
    f" [{scores['split']}], protocol {scores['protocol']}, step"
    f" {scores['checkpoint_step']}"
  )
  if scores["oracle"]:
    true = scores["oracle"].replace("both", "categories and boxes")
    lines.append(f"{true.upper()} ARE THE TRUE ONES, NOT THE NETWORK'S")
  if scores["leaked_images"]:
    lines.append(
      f"OF A SPLIT OF WHICH {scores['leaked_images']} IMAGES WERE TRAINED ON"
    )
  if scores["tuned_on_these_images"]:
    lines.append("THE THRESHOLDS WERE TUNED ON IMAGES OF THESE")
  return "\n".join(lines)


def file_stem(split: str, oracle: Oracle = "", suffix: str = "") -> str:
  """What the names of files of a split's scores have in common."""
  return f"{split}_oracle_{oracle}{suffix}" if oracle else f"{split}{suffix}"


def part_suffix(dataset: Any, max_images: int) -> str:
  """What tells files of the first so many images from those of all."""
  return f"_first_{max_images}" if 0 < max_images < len(dataset) else ""


def draw(
  predictor: Predictor,
  examples: Sequence[Example],
  directory: str | os.PathLike,
  numbered: bool = False,
  oracle: Oracle = "",
) -> None:
  """The whole chain for each example, see visualize.sample, as <id>.png.

  numbered: names begin with the example's number, and pictures of an earlier
  call that do are removed. oracle: as in evaluate.
  """
  directory = pathlib.Path(directory)
  directory.mkdir(parents=True, exist_ok=True)
  for old in directory.glob("[0-9][0-9]_*.png") if numbered else ():
    old.unlink()
  for number, example in enumerate(examples):
    image = example["image"]
    maps = oracle_maps(predictor, example, oracle)
    if oracle == "both":  # grouped in a way of its own
      (result,) = predict(predictor, [example], oracle)
    else:
      result = predictor.group(maps, image)
    picture = visualize.sample(image, result, example, maps, predictor.stride)
    prefix = f"{number:02}_" if numbered else ""
    name = str(example["id"]).replace("/", "_")  # an id may name a folder
    visualize.save(directory / f"{prefix}{name}.png", picture)


def read(dataset: Any, index: int, on_error: str = "raise") -> Example | None:
  """dataset[index]; with "skip", None for an image that cannot be read."""
  try:
    return dataset[index]
  except ValueError as error:
    if on_error == "raise":
      raise
    logging.warning("skipped %s: %s", dataset.ids[index], error)
    return None


def _score(predictor, dataset, number, protocol, oracle, on_error, progress):
  """The sums of this process's share of the first `number` images."""
  mine = range(jax.process_index(), number, jax.process_count())
  count_void = counts_void(dataset)
  scores = Scores(
    len(dataset.categories) + 1,
    dataset.has_instances,
    protocol,
    predictor.has_boxes or oracle in ("boxes", "both"),
  )
  bar = tqdm(
    total=len(mine),
    desc=f"evaluate {dataset.split}",
    unit="image",
    delay=1e-9,  # or the first line of the log would break the bar
    disable=not progress or jax.process_index() > 0,
  )
  with bar:
    for examples in _batches(dataset, mine, predictor.batch_size, on_error):
      results = predict(predictor, examples, oracle)
      for example, result in zip(examples, results, strict=True):
        scores.add(result, example, count_void)
      if not bar.n:  # lest the time left count the compilation
        bar.unpause()
      bar.update(len(examples))
  return scores


def _batches(dataset, indices, size, on_error) -> Iterator[list[Example]]:
  batch = []
  for example in read_ahead(
    lambda index: read(dataset, index, on_error), indices, 2 * size
  ):
    if example is not None:
      batch.append(example)
    if len(batch) == size:
      yield batch
      batch = []
  if batch:
    yield batch


def refuse_other_categories(names: Sequence[str], dataset: Any) -> None:
  """ValueError unless a network of the categories `names` fits the data."""
  ours, theirs = tuple(names), tuple(dataset.categories)
  if ours != theirs:
    raise ValueError(
      f"the networks know the categories {ours} and the data set has {theirs};"
      " evaluate on data with the categories of the training data, in order."
    )


def check_leaks(
  predictor: Predictor,
  dataset: Any,
  allow_leak: bool = False,
  train_sets: Sequence[Any] | None = None,
) -> dict[str, Any]:
  """The stamp of check.refuse_leak, over all training sets; see evaluate."""
  stamp = {"leaked_images": 0, "leak_check": "done"}
  if train_sets is None:
    train_sets, sources = [], predictor.trained_on
    for index, source in enumerate(sources):
      if source in sources[:index]:  # of two networks, and counted already
        continue
      try:
        if source["name"] == "functions":
          raise ValueError(
            "they are a program's own (data.Functions); pass train_sets."
          )
        train_sets.append(data.load(**source))
      except ValueError as error:
        stamp["leak_check"] = f"not done: {error}"
        logging.warning("the training images cannot be looked up: %s", error)
  for train in train_sets:
    found = check.refuse_leak(train, dataset, allow_leak)
    stamp["leaked_images"] += found["leaked_images"]
  return stamp


def _saw(tuned_on, dataset, number):
  """Whether one of the first images is one of `tuned_on`; None if unknown."""
  if tuned_on is None:
    return None
  mine = image_stamp(dataset, number)
  same = tuned_on["split_hash"] == mine["split_hash"]  # moved since, say
  tuned = types.SimpleNamespace(
    name=tuned_on["data"], path=tuned_on["data_source"], ids=tuned_on["ids"]
  )
  shared = set(check.shared_ids(tuned, dataset))
  return same or not shared.isdisjoint(dataset.ids[:number])


def _other_processes(scores: Scores) -> Iterator[Scores]:
  """The other hosts' sums."""
  if jax.process_count() == 1:
    return
  mine = np.frombuffer(pickle.dumps(scores), np.uint8)
  sizes = multihost_utils.process_allgather(np.array([mine.size]))
  padded = np.zeros(sizes.max(), np.uint8)
  padded[: mine.size] = mine
  everyone = multihost_utils.process_allgather(padded)
  for index, size in enumerate(sizes.ravel()):
    if index != jax.process_index():
      yield pickle.loads(everyone[index, :size].tobytes())


def image_stamp(dataset: Any, number: int) -> dict[str, Any]:
  """Which images these are: the first so many of a data set."""
  ids = "\n".join(dataset.ids[:number])
  return {
    "data": dataset.name,
    "data_path": str(dataset.path) if dataset.path else None,
    "split": dataset.split,
    "split_hash": hashlib.sha256(ids.encode()).hexdigest()[:16],
  }


def _stamp(predictor, dataset, protocol, semantic, number, oracle):
  """How the numbers were made."""
  versions = {
    f"version_{name}": _version(name)
    for name in ("fcrn_jax", "jax", "flax", "numpy")
  }
  return {
    "protocol": protocol,
    "semantic_protocol": f"{semantic}, background counted",
    "oracle": oracle,
    **image_stamp(dataset, number),
    "tuned_on_these_images": _saw(predictor.tuned_on, dataset, number),
    "source": predictor.source,
    "checkpoint_step": predictor.step,
    "views": str(predictor.views),
    "grouping": str(predictor.options),
    **versions,
    "version_python": platform.python_version(),
    "device": jax.devices()[0].device_kind,
    "date": datetime.date.today().isoformat(),
  }


def _version(name):
  try:
    return importlib.metadata.version(name)
  except importlib.metadata.PackageNotFoundError:
    return None  # a checkout that was not installed
