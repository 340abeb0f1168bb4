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
import re
import sys

from absl import app, flags

_WHATS = (
  "voting", "network", "train", "pipeline", "predict", "grouping", "oracle",
  "tiles", "peers", "convolutions",
)  # fmt: skip
_WHAT = flags.DEFINE_enum("what", None, _WHATS, "What to measure.")
_SET = flags.DEFINE_list("set", [], "Options of the benchmark, as name=value.")
_JSON = flags.DEFINE_string(
  "json", "", "JSON file; default experiments/results/<what>_<device>.json."
)


def main(argv):
  """Runs one benchmark."""
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments: {argv[1:]}")
  import jax

  from experiments import common
  from fcrn_jax import checkpoint

  common.start()
  options = dict(item.split("=", 1) for item in _SET.value)
  benchmark = importlib.import_module(f"experiments.benchmarks.{_WHAT.value}")
  # Each module's docstring names its options.
  unknown = set(options) - set(re.findall(r"\w+", benchmark.__doc__))
  if unknown:
    sys.exit(f"no options {sorted(unknown)}: {benchmark.__doc__}")
  rows = benchmark.run(options)
  print(common.columns(common.cells(rows)))
  device = jax.devices()[0]
  path = _JSON.value or (
    f"experiments/results/{_WHAT.value}_{device.platform}.json"
  )
  checkpoint.write_json(
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
  return f"{name}, {len(os.sched_getaffinity(0))} cores"


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
  app.run(main)
