"""Files that are whole or not there."""

import contextlib
import json
import math
import os
import pathlib
import secrets
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[pathlib.Path]:
  """A path to write to, which becomes `path` unless an error is raised."""
  path = pathlib.Path(os.path.realpath(path))  # a link stays one
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
  except (FileExistsError, NotADirectoryError):
    raise ValueError(
      f"{path} cannot be written, {path.parent} is no folder; name another."
    ) from None
  # A name may be as long as the disk allows.
  temporary = path.with_name(f".{path.name[:40]}.{secrets.token_hex(4)}.tmp")
  try:
    yield temporary
    os.replace(temporary, path)
  finally:
    temporary.unlink(missing_ok=True)


def write_json(
  path: str | os.PathLike, value: Any, indent: int | None = 2
) -> None:
  """Writes a JSON file; numbers that JSON lacks become null."""
  text = json.dumps(jsonable(value), indent=indent, allow_nan=False)
  with replacing(path) as temporary:
    temporary.write_text(text + "\n")


def jsonable(value: Any) -> Any:
  """The same with None for numbers that JSON lacks, numpy's as Python's."""
  if isinstance(value, Mapping):
    return {name: jsonable(item) for name, item in value.items()}
  if isinstance(value, list | tuple):
    return [jsonable(item) for item in value]
  if isinstance(value, np.generic):
    value = value.item()
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return value


def read_json(path: str | os.PathLike) -> Any:
  """The JSON file's value; a ValueError names a file that is not JSON."""
  try:
    return json.loads(pathlib.Path(path).read_text())
  except json.JSONDecodeError as error:
    raise ValueError(f"{path} is not valid JSON: {error}.") from error


def read_lines(path: str | os.PathLike) -> list[Any]:
  """The values of a file of one JSON value a line, such as metrics.jsonl.

  From a line that was only half written on they are left out.
  """
  values = []
  for line in pathlib.Path(path).read_text().splitlines():
    try:
      values.append(json.loads(line))
    except json.JSONDecodeError:
      break
  return values
