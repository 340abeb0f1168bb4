"""Measures speed beside the peers; a table on screen and a JSON file.

  python -m experiments.benchmark --what=voting
  python -m experiments.benchmark --what=network --set=sizes=328,batch=2
What: see the modules of experiments.benchmarks. Peers that are not installed
are left out and named.
"""

import datetime
import importlib
import importlib.metadata
import os
import platform
import sys

from absl import flags

from experiments import command

_WHATS = (
  "voting", "network", "train", "pipeline", "predict", "grouping", "oracle",
  "tiles", "peers", "convolutions",
)  # fmt: skip
_WHAT = flags.DEFINE_enum("what", None, _WHATS, "What to measure.")
_SET = flags.DEFINE_list("set", [], "Options of the benchmark, as name=value.")
_JSON = flags.DEFINE_string(
  "json",
  "",
  "JSON file; default experiments/results/<what>_<device>.json,"
  " or with --set the same in runs/benchmarks.",
)


def main():
  """Runs one benchmark."""
  import jax

  from experiments import common
  from fcrn_jax import files

  common.start()
  benchmark = importlib.import_module(f"experiments.benchmarks.{_WHAT.value}")
  rows = benchmark.run(read_options(benchmark.OPTIONS, _SET.value))
  print(common.columns(common.cells(rows)))
  device = jax.devices()[0]
  folder = "runs/benchmarks" if _SET.value else "experiments/results"
  path = _JSON.value or f"{folder}/{_WHAT.value}_{device.platform}.json"
  files.write_json(
    path,
    {
      "command": " ".join(["python -m experiments.benchmark", *sys.argv[1:]]),
      "date": datetime.date.today().isoformat(),
      "hardware": hardware(),
      "versions": versions(),
      "rows": rows,
    },
  )
  print(f"written to {path}")


def read_options(known: dict[str, str | None], items: list[str]) -> dict:
  """A benchmark's options with those of --set; None marks what must be set."""
  options = dict(known)
  for item in items:
    name, equals, value = item.partition("=")
    if not equals or name not in known:
      raise ValueError(
        f"--set has {item!r}; expected name=value, of {', '.join(known)}."
      )
    options[name] = value
  missing = [name for name, value in options.items() if value is None]
  if missing:
    raise ValueError(f"pass --set={missing[0]}=..., which has no default.")
  return options


def hardware() -> str:
  """The accelerator's name, or the processor's and its usable cores."""
  import jax

  device = jax.devices()[0]
  if device.platform != "cpu":
    return f"{jax.device_count()} x {device.device_kind}"
  name = platform.processor() or platform.machine()
  try:
    with open("/proc/cpuinfo") as file:
      lines = [line for line in file if line.startswith("model name")]
    name = lines[0].split(":")[1].strip()
  except (OSError, IndexError):
    pass
  if hasattr(os, "sched_getaffinity"):
    return f"{name}, {len(os.sched_getaffinity(0))} cores"
  return f"{name}, {os.cpu_count()} cores"


def versions() -> dict[str, str]:
  """Versions of Python and of the packages that set the speed."""
  found = {"python": platform.python_version()}
  for name in ("jax", "jaxlib", "flax", "torch", "stardist", "grain"):
    try:
      found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      continue
  return found


if __name__ == "__main__":
  flags.mark_flag_as_required("what")
  command.run(main)
