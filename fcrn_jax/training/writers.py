"""metrics.jsonl: one JSON object a line, each with its `step`; and the log."""

import json
import math
import os
import pathlib
import sys
from collections.abc import Collection, Iterable, Mapping

from tqdm import tqdm

from fcrn_jax.files import read_lines, replacing


class MetricsWriter:
  """Appends to workdir/metrics.jsonl; only process 0 writes.

  On a continued run the lines of steps after the checkpoint are dropped, so
  that no step is repeated.
  """

  def __init__(self, workdir: str | os.PathLike, step: int, enabled: bool):
    self._path = pathlib.Path(workdir) / "metrics.jsonl"
    self._enabled = enabled
    if not enabled or not self._path.exists():
      return
    kept = [row for row in read_lines(self._path) if row["step"] <= step]
    with replacing(self._path) as temporary:
      temporary.write_text("".join(json.dumps(row) + "\n" for row in kept))

  def write(self, step: int, scalars: Mapping[str, float]):
    """Adds one line; numbers that JSON cannot hold become null."""
    if not self._enabled:
      return
    row = {"step": int(step)}
    for name, value in scalars.items():
      value = float(value)
      row[name] = float(f"{value:.7g}") if math.isfinite(value) else None
    with self._path.open("a") as file:
      file.write(json.dumps(row) + "\n")


def best(
  workdir: str | os.PathLike, name: str, steps: Collection[int]
) -> tuple[float, int] | None:
  """The highest value of a scalar, and its step, of these steps; None without.

  Of equal values that of the later step.
  """
  path = pathlib.Path(workdir) / "metrics.jsonl"
  rows = read_lines(path) if path.is_file() else []
  found = [(r[name], r["step"]) for r in rows if r.get(name) is not None]
  return max((f for f in found if f[1] in steps), default=None)


def say(text: str) -> None:
  """A line on stderr, above the bars that are there."""
  tqdm.write(text, file=sys.stderr)


def summary(scalars: Mapping[str, float | None], names: Iterable[str]) -> str:
  """Those of the scalars that there are, as text."""
  return ", ".join(
    f"{name} {scalars[name]:.4g}"
    for name in names
    if scalars.get(name) is not None
  )
