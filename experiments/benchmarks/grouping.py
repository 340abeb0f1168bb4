"""Ways of grouping the same score and box maps, by what they score.

  python -m experiments.benchmark --what=grouping --set=workdir=runs/shapes
  python -m experiments.benchmark --what=grouping \
      --set=workdir=runs/nuclei,split=part_val,data=DIR,images=60

The network runs once per image; each row changes what it names of the
workdir's settings. Options: workdir, split, data (a folder), images. `ms` is
the grouping's time per image, masks included.
"""

import dataclasses
import time

from experiments import common
from fcrn_jax import checkpoint, instances, metrics, scoring
from fcrn_jax.instances.options import MASKS, SEEDS
from fcrn_jax.predictor import Predictor

SCORES = (
  "ap_r_0.5", "ap_r_0.7", "ap_r_vol", "matching_0.5", "matching_0.7",
  "touching_recall_0.5",
)  # fmt: skip

OPTIONS = {"workdir": None, "split": "", "data": "", "images": "100"}


def run(options: dict[str, str]) -> list[dict]:
  """One row per way."""
  predictor = Predictor.load(options["workdir"])
  config = checkpoint.read_config(options["workdir"])
  dataset = common.load_split(config, options["split"], options["data"])
  number = min(int(options["images"]), len(dataset))
  void = scoring.counts_void(dataset)
  kept = []
  for index in range(number):
    example = dataset[index]
    kept.append((example, predictor.maps(example["image"])))
  rows = []
  for name, way in ways(predictor.options).items():
    scores, seconds = _score(predictor, kept, way, void)
    rows.append({
      "data": f"{dataset.name} {dataset.split}", "images": number,
      "grouping": name, **{key: float(scores[key]) for key in SCORES},
      "ms": 1e3 * seconds,
    })  # fmt: skip
  return rows


def ways(options: instances.Options) -> dict[str, instances.Options]:
  """What is compared, by name; the first are the given options."""

  def change(**values):
    return dataclasses.replace(options, **values)

  paper = instances.Options.paper()
  found = {
    "as configured": options,
    "paper": dataclasses.replace(
      paper,
      num_masks=options.num_masks,
      max_instances=options.max_instances,
    ),
    "fragments kept": change(min_fill=0.0, min_extent=0.0),
  }
  found |= {f"masks={mode}": change(masks=mode) for mode in MASKS}
  found |= {f"seeds={kind}": change(seeds=kind) for kind in SEEDS}
  found |= {f"num_masks={n}": change(num_masks=n) for n in (1, 2, 3)}
  return found


def _score(predictor, kept, options, count_void):
  evaluator = metrics.InstanceEvaluator(len(predictor.categories) + 1)
  seconds = 0.0
  for example, maps in kept:
    predictor.group(maps, example["image"], options)  # compiles
    start = time.perf_counter()
    result = predictor.group(maps, example["image"], options)
    seconds += time.perf_counter() - start
    scoring.add_instances(evaluator, result, example, count_void)
  scores = evaluator.result("sds") | evaluator.result("matching")
  return scores, seconds / len(kept)
