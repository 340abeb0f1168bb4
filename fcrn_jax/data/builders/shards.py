"""Writes prepared data: resumable, in several processes, atomic.

tfds's own writer needs TensorFlow for splits above 1 GB, which most of these
are; this one writes the same files without.
"""

import functools
import hashlib
import logging
import multiprocessing
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from concurrent import futures
from typing import Any, NamedTuple

import cv2
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from tqdm import tqdm

from fcrn_jax.data.builders import records
from fcrn_jax.data.functions import source_of
from fcrn_jax.files import read_json, write_json

_VERSION = "1.0.0"
_PER_SHARD = 64  # about 8 MB of VOC; the unit of resuming and of parallel work
_MAX_SHARDS = 256  # a reader holds one open file for each
# What is written once for all splits of a directory.
_SHARED = ("name", "categories", "background", "has_instances")


class Shard(NamedTuple):
  """One file to write: examples start ... end - 1 of the data set."""

  path: pathlib.Path
  start: int
  end: int


def prepare(
  datasets: Mapping[str, Any],
  directory: Any,
  *,
  processes: int = 1,
  on_error: str = "raise",
  overwrite: bool = False,
) -> None:
  """Writes splits of one data set, then the files that describe them.

  Splits of the same data that are in `directory` already stay. What a run
  that was cut off has written is kept by the next one. ValueError for splits
  whose categories differ, for other data in `directory`, unless `overwrite`,
  and for an example that cannot be read, unless on_error="skip", which leaves
  it out and logs it.
  """
  if on_error not in ("raise", "skip"):
    raise ValueError(f"on_error is {on_error!r}; expected 'raise' or 'skip'.")
  for dataset in datasets.values():
    if source_of(dataset) is None:
      raise ValueError(
        f"{dataset.name} {dataset.split!r} has neither path nor source, by"
        " which to know it again; pass data.Functions the folder of the images"
        " as path."
      )
  directory = pathlib.Path(directory).expanduser()
  about = records.metadata(datasets)
  some = next(iter(datasets.values()))
  _check_fit(datasets, directory, overwrite)
  lengths = {}
  if (directory / "dataset_info.json").is_file():
    there = set(records.read_metadata(directory)["ids"])
    if overwrite and there <= set(datasets):
      (directory / "dataset_info.json").unlink()
    else:
      lengths = _merge(directory, about)
  if overwrite:
    if lengths:  # a run that is cut off leaves the splits that stay
      for split in datasets:
        lengths.pop(split, None)
      _describe(directory, some, _only(about, lengths), lengths)
    for dataset in datasets.values():
      remove(directory, f"{dataset.name}-{dataset.split}")
  for split, dataset in datasets.items():
    shards = write_split(
      dataset, directory, processes=processes, on_error=on_error
    )
    lengths[split] = [len(ids) for ids in shards]
    about["ids"][split] = [key for ids in shards for key in ids]
  if (directory / "dataset_info.json").is_file():
    # Again: other splits may have been finished beside this run.
    lengths = _merge(directory, about) | lengths
  _describe(directory, some, about, lengths)


def _check_fit(
  datasets: Mapping[str, Any], directory: pathlib.Path, overwrite: bool
) -> None:
  """ValueError for splits that differ or that overwriting would delete."""
  some = next(iter(datasets.values()))
  for dataset in datasets.values():
    for field in _SHARED:
      one, other = getattr(some, field), getattr(dataset, field)
      if one != other:
        raise ValueError(
          f"splits {some.split!r} and {dataset.split!r} differ in their {field}"
          f" ({one}, {other}); make them the same, or prepare each into an"
          " output of its own."
        )
    prepared = isinstance(dataset, records.Prepared)
    if overwrite and prepared and dataset.path.resolve() == directory.resolve():
      raise ValueError(
        f"{directory} is itself what split {dataset.split!r} is read from, and"
        " would be deleted; name what it was prepared from"
        f" ({dataset.source}), or another output."
      )


def write_split(
  dataset: Any, directory: pathlib.Path, *, processes: int, on_error: str
) -> list[list[str]]:
  """Writes a split's shards into `directory`; returns the ids in each."""
  directory.mkdir(parents=True, exist_ok=True)
  shards = min(_MAX_SHARDS, -(-len(dataset) // _PER_SHARD))
  edges = [len(dataset) * i // shards for i in range(shards + 1)]
  stem = f"{dataset.name}-{dataset.split}.array_record"
  _check_same(dataset, directory / f".{stem}.json", shards, on_error)
  jobs = [
    Shard(directory / f"{stem}-{i:05d}-of-{shards:05d}", edges[i], edges[i + 1])
    for i in range(shards)
  ]
  written = []
  with tqdm(total=len(dataset), unit="image", desc=f"prepare {stem}") as bar:
    for ids, job in zip(
      _map(dataset, jobs, processes, on_error), jobs, strict=True
    ):
      written.append(ids)
      bar.update(job.end - job.start)
  for leftover in directory.glob(f".tmp-*-{stem}-*"):  # of runs cut off
    leftover.unlink()
  skipped = len(dataset) - sum(map(len, written))
  if skipped == len(dataset):
    raise ValueError(
      f"none of the {skipped} images of {dataset.path} can be read; see the"
      " log, and python -m experiments.check_data."
    )
  if skipped:
    logging.warning("skipped %d of %d images", skipped, len(dataset))
  return written


def remove(directory: pathlib.Path, stem: str) -> None:
  """Deletes the shards of <name>-<split>; other splits stay."""
  for file in directory.glob(f"{stem}.array_record-*"):
    file.unlink()
  (directory / f".{stem}.array_record.json").unlink(missing_ok=True)


def _check_same(
  dataset: Any, file: pathlib.Path, shards: int, on_error: str
) -> None:
  """ValueError unless `file` says that the shards here, if any, fit."""
  source = str(source_of(dataset))
  told = "\n".join(map(str, (source, dataset.categories, dataset.ids)))
  plan = {
    "source": source,
    "shards": shards,
    "hash": hashlib.sha256(told.encode()).hexdigest(),
  }
  remedy = "choose another output, or overwrite it (--overwrite)."
  where = f"{file.parent} holds"
  if file.is_file():
    before = read_json(file)
    skipped = before.pop("on_error", "raise") == "skip"
    if before != plan:
      raise ValueError(
        f"{where} other data of split {dataset.split!r}, from"
        f" {before.get('source')}; {remedy}"
      )
    if skipped and on_error == "raise":
      raise ValueError(
        f"{where} split {dataset.split!r} without the images that on_error="
        f"'skip' left out; go on with 'skip', {remedy}"
      )
  elif any(file.parent.glob(f"{file.stem.removeprefix('.')}-*")):
    raise ValueError(
      f"{where} shards of split {dataset.split!r} without {file.name}, which"
      f" says of what; copy it too, {remedy}"
    )
  write_json(file, {**plan, "on_error": on_error}, indent=None)


def _map(
  dataset: Any, jobs: list[Shard], processes: int, on_error: str
) -> Iterator[list[str]]:
  """The ids in each shard, in order, as they are written."""
  if processes <= 1 or len(jobs) == 1:
    yield from (_write(dataset, on_error, job) for job in jobs)
    return
  # "spawn": a fork of a process with threads may hang.
  context = multiprocessing.get_context("spawn")
  with futures.ProcessPoolExecutor(
    min(processes, len(jobs)), context, _start, (dataset, on_error)
  ) as pool:
    try:
      yield from pool.map(_write_job, jobs)
    except futures.process.BrokenProcessPool:
      raise ValueError(
        f"one of {processes} worker processes ended before its time: killed,"
        " perhaps for want of memory, or never started (its own words are"
        " above; a script must guard its start by __name__ == '__main__')."
        " Take fewer processes; the same call or command goes on where this"
        " one stopped."
      ) from None


_worker: Any = None  # a worker process's _write for its data set


def _start(dataset: Any, on_error: str) -> None:
  global _worker
  _worker = functools.partial(_write, dataset, on_error)
  cv2.setNumThreads(1)


def _write_job(job: Shard) -> list[str]:
  return _worker(job)


def _write(dataset: Any, on_error: str, job: Shard) -> list[str]:
  """Writes a shard, unless it is there; returns its ids."""
  if job.path.is_file():
    return records.read_ids(job.path)
  kind = records.features(
    dataset.has_instances, getattr(dataset, "membership", {})
  )
  temporary = job.path.with_name(f".tmp-{os.getpid()}-{job.path.name}")
  writer = array_record_module.ArrayRecordWriter(str(temporary), "group_size:1")
  ids = []
  try:
    for index in range(job.start, job.end):
      try:
        example = records.encode(dataset, index)
      except ValueError as error:
        if on_error == "raise":
          raise
        logging.warning("skipped: %s", error)
        continue
      writer.write(kind.serialize_example(example))
      ids.append(dataset.ids[index])
    writer.close()
    os.replace(temporary, job.path)
  finally:
    if writer.is_open():
      writer.close()
    temporary.unlink(missing_ok=True)
  return ids


def _merge(
  directory: pathlib.Path, about: dict[str, Any]
) -> dict[str, list[int]]:
  """Adds to `about` the splits that are there; returns their shard lengths."""
  before = records.read_metadata(directory)
  for field in _SHARED:
    if before[field] != about[field]:
      raise ValueError(
        f"{directory} holds data of other {field} ({before[field]}, now "
        f"{about[field]}); choose another output, or overwrite all of its "
        "splits (--overwrite)."
      )
  info = read_json(directory / "dataset_info.json")
  about["ids"] = before["ids"] | about["ids"]
  about["source"] = before["source"] | about["source"]
  return {
    split["name"]: [int(n) for n in split["shardLengths"]]
    for split in info["splits"]
  }


def _only(about: Mapping, splits: Iterable[str]) -> tfds.core.MetadataDict:
  """The metadata of these splits alone."""
  parts = {
    field: {split: about[field][split] for split in splits}
    for field in ("ids", "source")
  }
  return tfds.core.MetadataDict({**about, **parts})


def _describe(
  directory: pathlib.Path,
  dataset: Any,
  about: tfds.core.MetadataDict,
  lengths: Mapping[str, list[int]],
) -> None:
  """Writes features.json, metadata.json and, last, dataset_info.json."""
  identity = tfds.core.dataset_info.DatasetIdentity(
    name=dataset.name,
    version=tfds.core.Version(_VERSION),
    data_dir=str(directory),
    module_name="",
  )
  info = tfds.core.DatasetInfo(
    builder=identity,
    description=f"{dataset.name}, prepared by fcrn_jax from {dataset.path}.",
    features=records.features(
      dataset.has_instances, getattr(dataset, "membership", {})
    ),
    metadata=about,
    disable_shuffling=True,
  )
  info.set_file_format(tfds.core.FileFormat.ARRAY_RECORD)
  info.set_splits(
    tfds.core.SplitDict(
      [
        split_info(directory, dataset.name, split, shards)
        for split, shards in lengths.items()
      ]
    )
  )
  temporary = pathlib.Path(tempfile.mkdtemp(prefix=".tmp-", dir=directory))
  try:
    info.write_to_directory(temporary)
    names = [file.name for file in temporary.iterdir()]
    for name in sorted(names, key=lambda name: name == "dataset_info.json"):
      os.replace(temporary / name, directory / name)
  finally:
    shutil.rmtree(temporary, ignore_errors=True)


def split_info(
  directory: pathlib.Path, name: str, split: str, lengths: list[int]
) -> tfds.core.SplitInfo:
  """tfds's description of a split whose shards are in `directory`."""
  files = directory.glob(f"{name}-{split}.array_record-*")
  return tfds.core.SplitInfo(
    name=split,
    shard_lengths=lengths,
    num_bytes=sum(file.stat().st_size for file in files),
    filename_template=tfds.core.ShardedFileTemplate(
      data_dir=directory,
      dataset_name=name,
      split=split,
      filetype_suffix="array_record",
    ),
  )
