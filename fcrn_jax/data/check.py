"""Finds what is wrong with a data set before hours of training show it.

`examine` reads everything and returns a Report; `refuse_leak` keeps a network
from being tested on images that it has seen.
"""

import collections
import concurrent.futures
import itertools
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from tqdm import tqdm

from fcrn_jax import data
from fcrn_jax.data import builders, folder
from fcrn_jax.data.builders import (
  cityscapes,
  coco,
  pascal_context,
  voc2012_sbd,
)
from fcrn_jax.data.functions import source_of
from fcrn_jax.data.inspection import Inspection, Problem, inspect
from fcrn_jax.types import IGNORE, listed

# Kind of problem: severity, title, what to do.
KINDS = {
  "missing": (
    "error", "missing files",
    "add the file, or take the line out of the split's list.",
  ),
  "unreadable": (
    "error", "files that cannot be read",
    "fetch or write the file again, or take the line out of the split's list.",
  ),
  "size": (
    "error", "label maps of another size than their image",
    "annotate the image at its own size; never resize labels with anything "
    "but nearest neighbour.",
  ),
  "lossy": (
    "error", "label maps that are JPEGs",
    "save the ids as PNG, from what was annotated: JPEG changes numbers.",
  ),
  "colours": (
    "error", "label maps that are colour pictures",
    "save the ids: one channel, palette or gray.",
  ),
  "range": ("error", "label ids out of range", ""),
  "categories": (
    "error", "splits of different categories",
    "give all splits the same categories in the same order.",
  ),
  "no_category": (
    "error", "instances without a category",
    "give their pixels a category in SegmentationClass, or void (255).",
  ),
  "two_categories": (
    "error", "instances with two categories",
    "split the instance, or correct the category map.",
  ),
  "leak": (
    "error", "the same image in two splits",
    "take it out of one of them: scores on a seen image mean nothing.",
  ),
  "twice": (
    "warning", "images that are there twice",
    "drop one; it counts twice.",
  ),
  "void": (
    "warning", "images that are all void",
    "drop them; nothing can be learned from them.",
  ),
  "empty": (
    "warning", "images of label 0 only",
    "fine if nothing is there; a mistake if all are so.",
  ),
  "no_list": (
    "warning", "splits that training asks for",
    "write the list, or train with --config.data.train_split=NAME "
    "--config.data.val_split=NAME.",
  ),
  "overlap": (
    "note", "splits that overlap by design", "",
  ),
  "unlisted": ("note", "images in no split", ""),
  "absent": ("note", "splits that this sample does not have", ""),
}  # fmt: skip
# Data whose image ids mean the same image wherever they come from.
_GLOBAL_IDS = {"voc2012_sbd": "voc", "pascal_context": "voc"}
_TESTED = {"val", "valid", "validation", "test"}
_SPLITS = {
  "voc2012_sbd": tuple(voc2012_sbd.SPLITS),
  "pascal_context": tuple(pascal_context.SPLITS),
  "cityscapes": tuple(cityscapes.SPLITS),
}


class Report(NamedTuple):
  """What `examine` found: data sets and inspections by split."""

  datasets: dict[str, Any]
  images: dict[str, list[Inspection]]  # in the order of the data set
  problems: list[Problem]

  @property
  def num_errors(self) -> int:
    """Findings that make training or its scores wrong."""
    return self.count("error")

  def count(self, severity: str) -> int:
    """Findings of a severity."""
    return sum(KINDS[p.kind][0] == severity for p in self.problems)

  @property
  def readable(self) -> bool:
    """Whether any image could be read."""
    return any(i.size for images in self.images.values() for i in images)

  @property
  def labels(self) -> tuple[str, ...]:
    """Names of labels 0 ... C."""
    some = next(iter(self.datasets.values()), None)
    return (some.background, *some.categories) if some else ()

  @property
  def seen(self) -> set[int]:
    """All labels that occur."""
    every = (image for images in self.images.values() for image in images)
    return set().union(*(image.pixels for image in every))


def shared_ids(one: Any, other: Any) -> list[str]:
  """The images that two data sets (ids, name, path) have in common.

  Ids are compared where they mean the same: in one data set of one path, or
  in official data that share images (VOC 2012, SBD and PASCAL-Context).
  """
  if _source(one) != _source(other):
    return []
  return sorted(set(one.ids) & set(other.ids))


def refuse_leak(train: Any, test: Any, allow: bool = False) -> dict[str, Any]:
  """A stamp for the results of testing on `test` what learned from `train`.

  Both are data sets (ids, name, path, split). ValueError if they share images,
  unless `allow`; the stamp then says so.
  """
  shared = shared_ids(train, test)
  if shared and not allow:
    # Of functions without a path all ids are taken to be of one source.
    unnamed = hasattr(train, "source") and source_of(train) is None
    raise ValueError(
      f"{len(shared):,} of the {len(test.ids):,} images of {test.name} "
      f"{test.split!r} are in {train.name} {train.split!r}, which the network "
      f"was trained on (such as {shared[0]}): its scores there mean nothing. "
      "Test on a split it has not seen, or train on another; "
      "experiments.evaluate --allow_leak (in training, config.allow_leak) "
      "tests all the same and marks the results."
      + (
        " If these are other images, give them other ids, or each data set a"
        " source of its own (data.Functions)."
        if unnamed
        else ""
      )
    )
  return {
    "train_split": train.split,
    "leaked_images": len(shared),
    "test_images": len(test.ids),
    "leak_allowed": bool(shared and allow),
  }


def _source(dataset: Any) -> Any:
  """Equal for data sets whose ids may be compared."""
  family = _GLOBAL_IDS.get(dataset.name, dataset.name)
  if family == "voc" or dataset.name == "cityscapes":
    return family
  return family, source_of(dataset)


def guess_name(path: Any) -> str:
  """The data set's name for data.load, from what lies at `path`."""
  path = pathlib.Path(path).expanduser()
  # First, since a folder in VOC layout may have one of annotations too.
  if builders.is_prepared(path) or (path / "ImageSets").is_dir():
    return "folder"
  if (
    path.suffix == ".json"
    or (path / "annotations").is_dir()
    or coco.roboflow_splits(path)
  ):
    return "coco"
  if (path / "gtFine").is_dir():
    return "cityscapes"
  if not path.exists():
    raise ValueError(f"{path} does not exist; name the data's directory.")
  inside = [str(found.parent) for found in sorted(path.glob("*/ImageSets"))]
  hint = "name the data set (--name=voc2012_sbd)."
  if inside:
    hint = f"did you mean {listed(inside)}?"
  raise ValueError(
    f"{path} is no folder in VOC layout (ImageSets/Segmentation), no COCO "
    f"json or folder with annotations, no prepared data; {hint}"
  )


def splits_of(name: str, path: Any) -> list[str]:
  """The splits that a data set has."""
  path = pathlib.Path(path).expanduser()
  if not path.exists():
    raise ValueError(f"{path} does not exist; name the data's directory.")
  if builders.is_prepared(path):
    from fcrn_jax.data.builders import records

    return sorted(records.read_metadata(path)["ids"])
  if name == "folder":
    return sorted(_lists(path))
  if name == "coco":
    if path.is_file():
      return [path.stem.removeprefix("instances_")]
    files = (path / "annotations").glob("[!.]*.json")
    names = sorted(file.stem for file in files)
    names = names or coco.roboflow_splits(path)
    return [
      n.removeprefix("instances_") for n in names
      if n.startswith("instances_")
    ] or names  # fmt: skip
  if name not in _SPLITS:
    raise ValueError(
      f"data set {name!r} has no files to look at; expected 'folder', 'coco' "
      f"or one of {sorted(_SPLITS)}."
    )
  return list(_SPLITS[name])


def _lists(path: pathlib.Path) -> dict[str, str]:
  """The files of a folder's lists by split, as folder.read_split finds them."""
  return folder.list_files(path / "ImageSets" / "Segmentation", (".txt",))


def open_splits(
  name: str,
  path: Any,
  splits: Sequence[str] = (),
  options: Mapping[str, Any] | None = None,
) -> tuple[dict[str, Any], list[Problem]]:
  """The data sets of the splits (all, if none is named) that can be opened.

  And what is wrong with the others, or missing in these. With the option
  partial a split may be absent, but not one that is named, and not all.
  """
  options, datasets, problems = dict(options or {}), {}, []
  kind = "absent" if options.get("partial") and not splits else "missing"
  named, splits = splits, splits or splits_of(name, path)
  if name == "folder" and not builders.is_prepared(path):
    options["on_error"] = "skip"
    problems += [
      Problem("no_list", split, f"No {split}.txt, but {listed(splits)}.")
      for split in ("train", "val")
      if splits and not named and split not in splits
    ]
  if not splits:
    raise ValueError(
      f"{path} has no split: no .txt in ImageSets/Segmentation, or no json in"
      " annotations."
    )
  for split in splits:
    try:
      datasets[split] = data.load(name, split, path, options)
      problems += _missing(datasets[split])
    except coco.Broken as error:
      problems.append(Problem("unreadable", split, str(error)))
    except ValueError as error:
      problems.append(Problem(kind, split, str(error)))
  if not datasets:
    problems = [
      p._replace(kind="missing") if p.kind == "absent" else p for p in problems
    ]
  return datasets, problems


def examine(
  datasets: Mapping[str, Any], problems: Sequence[Problem] = ()
) -> Report:
  """Reads all images of data sets by split; adds to `problems`."""
  problems = list(problems)
  jobs, images = {}, {}
  for split, dataset in datasets.items():
    # VOC and SBD label the same image differently.
    labels = split if dataset.name == "voc2012_sbd" else ""
    source = labels, _source(dataset)
    images[split] = [(source, key) for key in dataset.ids]
    for index, job in enumerate(images[split]):
      jobs.setdefault(job, (dataset, index))
  with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
    found = pool.map(lambda job: inspect(*job), jobs.values())
    bar = tqdm(found, total=len(jobs), unit="image", desc="check")
    done = dict(zip(jobs, bar, strict=True))
  for image in done.values():
    problems += image.problems
  images = {
    split: [done[job] for job in some] for split, some in images.items()
  }
  report = Report(dict(datasets), images, problems)
  problems += _compare(report)
  if not report.seen - {0, IGNORE} and report.seen:
    message = f"All maps hold nothing but {sorted(report.seen)}."
    problems.append(Problem("range", "all", message))
  for path in {
    d.path for d in datasets.values() if isinstance(d, folder.Folder)
  }:
    problems += _unlisted(path)
  return report


def _missing(dataset: Any) -> list[Problem]:
  """What a folder's list has and the data set has not: repeats, no files."""
  if not isinstance(dataset, folder.Folder):
    return []
  there = set(dataset.ids)
  ids = folder.read_split(dataset.path, dataset.split)
  missing = [key for key in dict.fromkeys(ids) if key not in there]
  return [
    Problem("missing", key, message)
    for key, message in zip(missing, dataset.skipped, strict=True)
  ] + _repeats(dataset.split, ids)


def _repeats(split: str, ids: Sequence[str]) -> list[Problem]:
  """The ids that a split lists more than once."""
  return [
    Problem("twice", key, f"{split} lists {key} {count} times.")
    for key, count in collections.Counter(ids).items()
    if count > 1
  ]


def _unlisted(path: pathlib.Path) -> list[Problem]:
  """One problem for all images of a folder that no list has."""
  known = set()
  for file in _lists(path).values():
    known |= set(folder.read_list(pathlib.Path(file)))
  files = folder.list_files(path / "JPEGImages")
  alone = [key for key in files if key not in known]
  if not alone:
    return []
  return [Problem("unlisted", alone[0], f"{len(alone)}: {listed(alone, 3)}.")]


def _compare(report: Report) -> list[Problem]:
  """Splits of other labels; images twice or in two splits, by id or content."""
  problems, datasets = [], report.datasets
  official = any(d.name in _SPLITS for d in datasets.values())
  for split, dataset in datasets.items():
    problems += _repeats(split, dataset.ids)
    if (labels := (dataset.background, *dataset.categories)) != report.labels:
      words = f"{split} has {labels}, {next(iter(datasets))} {report.labels}."
      problems.append(Problem("categories", split, words))
  for one, other in itertools.combinations(datasets, 2):
    shared = shared_ids(datasets[one], datasets[other])
    # A split within another is by design, a partial overlap is a mistake, and
    # so is one of "train" and what is to be tested on.
    smaller = min(len(set(datasets[split].ids)) for split in (one, other))
    tested = "train" in (one, other) and {one, other} & _TESTED
    if official or (not tested and len(shared) == smaller):
      message = (
        f"{len(shared):,} images are in {one} and in {other}: never train on"
        " one and test on the other."
      )
      problems += [Problem("overlap", key, message) for key in shared[:1]]
      continue
    problems += [
      Problem("leak", key, f"{key} is in {one} and in {other}.")
      for key in shared
    ]
  same, where = collections.defaultdict(dict), collections.defaultdict(set)
  for split, images in report.images.items():
    for image in images:
      key = _source(report.datasets[split]), image.key
      where[key].add(split)
      if image.digest:
        same[image.digest][key] = True
  for keys in map(list, same.values()):
    for i, twin in enumerate(keys[1:], 1):
      apart = [k for k in keys[:i] if not where[k] & where[twin]]
      partner = (apart or keys)[0]
      words = f"{partner[1]} and {twin[1]} have the same pixels"
      splits = f"in {min(where[partner])} and in {min(where[twin])}"
      # Official sets are as they are; their few doubles only deserve a note.
      kind = "leak" if apart and not official else "twice"
      problems.append(Problem(kind, partner[1], f"{words}, {splits}."))
  return problems
