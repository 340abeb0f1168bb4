"""Prints tables about the library.

  python -m experiments.tables --what=zoo
  python -m experiments.tables --what=zoo --size=1024
  python -m experiments.tables --what=results > docs/results.md

zoo: every named network with its field of view in pixels, its parameters and
the work of its convolutions (a product and a sum counted as two) for one image
with 21 classes, and the paper's figures for it.
results: what experiments.benchmark left in --results, as Markdown, and beside
it in docs/ the plot of what grouping makes of perfect maps; that of other
--results goes to their folder.
"""

import pathlib

from absl import flags

from experiments import command

_WHAT = flags.DEFINE_enum("what", "zoo", ["zoo", "results"], "The table.")
_RESULTS = flags.DEFINE_string(
  "results", "experiments/results", "results: the folder of the JSON files."
)
_FIELDS = ("command", "date", "hardware", "versions", "rows")
_SIZE = flags.DEFINE_integer("size", 512, "zoo: side of the image, pixels.", 1)


def zoo(size: int) -> list[tuple[str, ...]]:
  """Rows of text of the zoo's table, the header first."""
  from tqdm import tqdm

  from experiments import common
  from fcrn_jax import models

  rows = [
    ("name", "field of view", "Mparams", f"GFLOP at {size}",
     "paper: mean IoU (table)", "paper: AP^r at 0.5/0.7 (table)")
  ]  # fmt: skip
  costs = {}
  for name in tqdm(models.list_models(), desc="networks"):
    spec = models.spec(name)
    alike = spec.depth, spec.stride, spec.kernel  # whatever the dilation
    if alike not in costs:
      costs[alike] = common.network_cost(name, size)
    params, flops = costs[alike]
    means, aps = [], []
    for row in spec.paper:
      setting = "" if row.setting == "vanilla" else f" {row.setting}"
      where = f"({row.table}{setting})"
      if row.ap_r_05 is None:
        means.append(f"{row.mean_iou} {where}")
      else:
        aps.append(f"{row.ap_r_05}/{row.ap_r_07} {where}")
    rows.append(
      (name, str(spec.field_of_view), f"{params / 1e6:.2f}",
       f"{flops / 1e9:.1f}", "; ".join(means) or "-", "; ".join(aps) or "-")
    )  # fmt: skip
  return rows


def results(folder: str) -> str:
  """Every JSON file of experiments.benchmark as a table in Markdown."""
  from experiments import common
  from fcrn_jax.files import read_json

  parts = [
    "# Measured results\n\nMade by `python -m experiments.tables"
    " --what=results > docs/results.md` from the files of"
    " `experiments/results`.\n"
  ]
  files = sorted(pathlib.Path(folder).glob("*.json"))
  if not files:
    raise ValueError(f"no JSON files of experiments.benchmark in {folder}.")
  for path in files:
    found = read_json(path)
    if not isinstance(found, dict) or not set(_FIELDS) <= set(found):
      raise ValueError(
        f"{path} is none of experiments.benchmark, which has"
        f" {', '.join(_FIELDS)}; take it out of {folder}."
      )
    versions = ", ".join(f"{k} {v}" for k, v in found["versions"].items())
    command_line = found["command"]
    if "--json" not in command_line and "--set" in command_line:
      command_line += f" --json={path}"  # or it would leave this file alone
    names, *cells = common.cells(found["rows"])
    lines = [names, ["---"] * len(names), *cells]
    parts.append(
      f"## {path.stem}\n\n`{command_line}`\\\n{found['hardware']};"
      f" {versions}; {found['date']}\n\n"
      + "\n".join(f"| {' | '.join(line)} |" for line in lines)
      + "\n"
    )
  return "\n".join(parts)


def plot_oracle(source: pathlib.Path, output: pathlib.Path) -> None:
  """AP^r against the stride of perfect maps, a line per data set."""
  from matplotlib.figure import Figure

  from fcrn_jax.files import read_json

  rows = read_json(source)["rows"]
  figure = Figure(figsize=(7, 3), layout="constrained")
  for axes, name in zip(
    figure.subplots(1, 2, sharey=True), ("ap_r_0.5", "ap_r_0.7"), strict=True
  ):
    for data in dict.fromkeys(row["data"] for row in rows):
      line = [(r["stride"], r[name]) for r in rows if r["data"] == data]
      axes.plot(*zip(*line, strict=True), marker="o", label=data)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("stride of perfect maps, pixels")
    axes.set_title(name)
    axes.grid(alpha=0.3)
  axes.legend()
  output.parent.mkdir(parents=True, exist_ok=True)
  figure.savefig(output, dpi=120)


def main():
  """Prints the table of the flags."""
  from experiments import common

  common.start()
  if _WHAT.value == "zoo":
    print(common.columns(zoo(_SIZE.value)))
    return
  print(results(_RESULTS.value))
  usual = _RESULTS.value == _RESULTS.default
  for path in pathlib.Path(_RESULTS.value).glob("oracle*.json"):
    output = pathlib.Path("docs") if usual else path.parent
    plot_oracle(path, output / f"{path.stem}.png")


if __name__ == "__main__":
  command.run(main)
