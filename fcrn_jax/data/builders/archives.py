"""Finds a data set's folders in a manual directory, extracting archives once.

Nothing is downloaded: most of these data want a login or a licence accepted.
"""

import hashlib
import logging
import os
import pathlib
import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable
from typing import Any, NamedTuple

import scipy.io
from tqdm import tqdm

_EXTRACTED = "extracted"
_PARTIAL = (  # for messages
  "the option partial (--partial; in training --config.data.partial=True)"
)


class Archive(NamedTuple):
  """One official archive and where its content begins."""

  file: str
  url: str
  folder: str  # the path inside the archive that the reader wants
  marker: str  # glob of something that this folder has
  size: int | None = None  # bytes, where published
  md5: str | None = None  # where published
  sha256: str | None = None


class Options(NamedTuple):
  """Fields of data.load(name, options=...) for a data set of archives."""

  partial: bool = False  # accept a sample of the data, with a warning


def find(directory: pathlib.Path, archive: Archive, help_text: str):
  """The archive's folder below `directory`: extracted, or extracted now.

  Accepts the folder, the end of its path (for VOCdevkit/VOC2012: VOC2012, or
  `directory` itself), and the archive, which is checked for size and checksum
  and extracted to directory/extracted. ValueError, with `help_text`, if there
  is neither.
  """
  directory = pathlib.Path(directory).expanduser()
  for root in (directory, directory / _EXTRACTED):
    found = _below(root, archive)
    if found is not None:
      return found
  file = directory / archive.file
  if not file.is_file():
    raise ValueError(
      f"neither {archive.file} nor a folder {archive.folder} is in "
      f"{directory}.\n{help_text}"
    )
  verify(file, archive)
  extract(file, directory / _EXTRACTED)
  found = _below(directory / _EXTRACTED, archive)
  if found is None:
    raise ValueError(f"{file} has no folder {archive.folder}; fetch it again.")
  return found


def _below(root: pathlib.Path, archive: Archive) -> pathlib.Path | None:
  """The archive's folder, or as much of its path as exists below `root`."""
  parts = pathlib.PurePosixPath(archive.folder).parts
  for start in range(len(parts) + 1):
    candidate = root.joinpath(*parts[start:])
    if candidate.is_dir() and any(candidate.glob(archive.marker)):
      return candidate
  return None


def verify(file: pathlib.Path, archive: Archive) -> None:
  """ValueError unless the file has the published size and checksum."""
  size = file.stat().st_size
  if archive.size is not None and size != archive.size:
    raise ValueError(
      f"{file} has {size:,} bytes, the official archive {archive.size:,}; the "
      f"download is incomplete or another version. Fetch it from {archive.url}"
    )
  for kind in ("md5", "sha256"):
    expected = getattr(archive, kind)
    if expected is None:
      continue
    digest = hashlib.new(kind)
    with (
      open(file, "rb") as stream,
      tqdm(
        total=size, unit="B", unit_scale=True, desc=f"{kind} {file.name}"
      ) as bar,
    ):
      while block := stream.read(1 << 22):
        digest.update(block)
        bar.update(len(block))
    if digest.hexdigest() != expected:
      raise ValueError(
        f"{file} has {kind} {digest.hexdigest()}, the official archive "
        f"{expected}; fetch it again from {archive.url}"
      )


def extract(file: pathlib.Path, directory: pathlib.Path) -> None:
  """Unpacks a tar or zip file into `directory`, atomically per top folder.

  A run that is cut off leaves nothing that a later run takes for complete.
  """
  directory.mkdir(exist_ok=True)
  temporary = pathlib.Path(tempfile.mkdtemp(prefix=".tmp-", dir=directory))
  logging.info("extracting %s to %s", file, directory)
  try:
    if zipfile.is_zipfile(file):
      with zipfile.ZipFile(file) as stream:
        for member in tqdm(stream.infolist(), desc=f"extract {file.name}"):
          stream.extract(member, temporary)
    else:
      with tarfile.open(file) as stream:
        for member in tqdm(stream, desc=f"extract {file.name}"):
          stream.extract(member, temporary, filter="data")
    for entry in temporary.iterdir():
      target = directory / entry.name
      if target.is_dir() and entry.is_dir():
        _merge(entry, target)
      else:
        os.replace(entry, target)
  except (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError) as error:
    raise ValueError(
      f"{file} could not be extracted to {directory} ({error}); extract it "
      "by hand, or fetch it again."
    ) from None
  finally:
    shutil.rmtree(temporary, ignore_errors=True)


def _merge(source: pathlib.Path, target: pathlib.Path) -> None:
  """Moves what is in `source` into `target`, folder by folder."""
  for entry in source.iterdir():
    if entry.is_dir() and (target / entry.name).is_dir():
      _merge(entry, target / entry.name)
    else:
      os.replace(entry, target / entry.name)


def read_matlab(file: pathlib.Path, variable: str, archive: Archive) -> Any:
  """A variable of a .mat file; ValueError names a file that is broken."""
  try:
    with open(file, "rb") as stream:
      return scipy.io.loadmat(stream, variable_names=[variable])[variable]
  except Exception as error:  # scipy raises whatever the bytes lead to
    raise ValueError(
      f"{variable} cannot be read from {file} ({error}); extract "
      f"{archive.file} again."
    ) from None


def instructions(
  title: str, page: str, archives: Iterable[Archive], time: str
) -> str:
  """Where to get a data set's archives and how long all takes.

  The times to prepare were measured on the samples, on a busy 4-core CPU.
  """
  lines = [f"{title}: put these (or what they extract to) into one directory:"]
  for archive in archives:
    size = f"{archive.size / 1e9:.2f} GB" if archive.size else "size unknown"
    lines.append(f"  {archive.file:30} {size:>12}  {archive.url}")
  lines += [f"  See {page}.", f"  {time}"]
  return "\n".join(lines)


def check_split(name: str, split: str, known: Iterable[str]) -> None:
  """ValueError unless `split` is one of the data set's."""
  if split not in known:
    raise ValueError(
      f"{name} has no split {split!r}; expected one of {list(known)}."
    )


def check_counts(
  name: str, split: str, found: int, official: int, partial: bool
) -> None:
  """ValueError if a split has not its official number of images.

  With `partial` it only warns, so that a sample can be read on purpose.
  """
  if found == official:
    return
  message = (
    f"{name} {split} has {found:,} images; the official list {official:,}"
  )
  if not partial:
    raise ValueError(
      f"{message}. The data are incomplete: get the missing files, or use "
      f"what is there with {_PARTIAL}."
    )
  logging.warning(
    "PARTIAL DATA: %s. Numbers from it compare with nothing.", message
  )


def present(
  ids: Iterable[str], folder: pathlib.Path, suffix: str, partial: bool
) -> list[str]:
  """The ids with a file folder/<id><suffix>, in order.

  ValueError naming a missing one, unless `partial`.
  """
  there = set(os.listdir(folder)) if folder.is_dir() else set()
  ids = list(ids)
  missing = [i for i in ids if i + suffix not in there]
  if missing and not partial:
    raise ValueError(
      f"{folder / missing[0]}{suffix} is missing, and {len(missing) - 1} more; "
      f"get the missing files, or use what is there with {_PARTIAL}."
    )
  missing = set(missing)
  return [i for i in ids if i not in missing]
