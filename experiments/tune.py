"""Searches the grouping's thresholds on a split, network outputs kept.

  python -m experiments.tune --workdir=runs/nuclei --metric=matching_0.5
  python -m experiments.tune --semantic=S --localization=L --max_images=200
Saves W/thresholds.json (of two workdirs, in L), which Predictor.load and all
commands then use; delete it to return to the config's values. The thresholds
have seen the images: quote scores of others (experiments.evaluate --split=...,
which marks scores of these). Networks know their training images too well.
"""

import datetime
import difflib
import math
import pathlib
from concurrent.futures import ThreadPoolExecutor

from absl import flags

from experiments import command, networks

flags.adopt_module_key_flags(networks)
_DATA = flags.DEFINE_string(
  "data", None, "The data's folder; default that of the config."
)
_SPLIT = flags.DEFINE_string("split", None, "Default the config's val_split.")
_METRIC = flags.DEFINE_string(
  "metric", "", "A score of experiments.evaluate to raise; empty: that of the"
  " config's protocol."
)  # fmt: skip
_MAX_IMAGES = flags.DEFINE_integer(
  "max_images", 200, "Only so many; 0: all.", lower_bound=0
)

# Tried one setting after the other, at most twice; ours. Paper: none of the
# values.
GRID = {
  "iou_threshold": (0.2, 0.3, 0.4, 0.5, 0.6, 0.7),
  "min_fill": (0.0, 0.05, 0.1, 0.2, 0.3, 0.4),
  "min_extent": (0.0, 0.2, 0.3, 0.4, 0.5, 0.6),
  "seeds": ("scores", "centers", "agreement"),
  "min_score": (0.0, 0.5, 0.6, 0.7, 0.75, 0.8),
  "score_floor": (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5),
  "num_masks": (1, 2, 3),
  "region_overlap": (0.0, 0.1, 0.25, 0.5),
  "min_area": (0.0, 10.0, 20.0, 40.0, 80.0),
}


def main():
  """Tunes with the flags."""
  from experiments import common
  from fcrn_jax import checkpoint, metrics

  common.start()
  workdir, predictor = networks.workdir(), networks.load()
  config = checkpoint.read_config(workdir)
  dataset = common.load_split(config, _SPLIT.value, _DATA.value)
  # Another protocol's best thresholds may be this one's worst.
  metric = _METRIC.value or metrics.MAIN_SCORE[config.protocol]
  found = search(
    predictor,
    dataset,
    metric,
    _MAX_IMAGES.value,
    on_error=config.data.get("on_error", "raise"),
  )
  path = save(found, workdir)
  print(
    f"{metric}: {found['before']:.4f} -> {found['after']:.4f} on"
    f" {found['num_images']} images, saved in {path}; quote scores of"
    " other images"
  )
  counts = found["matching_0.5_before"], found["matching_0.5_after"]
  if counts[1] < counts[0]:
    print(
      f"matching_0.5: {counts[0]:.4f} -> {counts[1]:.4f}, for there are more"
      f" wrong instances of a low score, which {metric} hardly counts: leave"
      " them out with experiments.predict --min_score=0.5, or tune with"
      " --metric=matching_0.5"
    )
  if found["leaked_images"]:
    print(
      f"{found['leaked_images']} images of this split were trained on, where a"
      " network is surer than elsewhere: better tune on a --split that it has"
      " not seen"
    )


def save(found: dict, workdir) -> pathlib.Path:
  """Writes what `search` found where Predictor.load looks for it."""
  from fcrn_jax import files

  path = pathlib.Path(workdir) / "thresholds.json"
  files.write_json(path, found)
  return path


def search(
  predictor,
  dataset,
  metric: str,
  max_images: int,
  train_sets=None,
  on_error: str = "raise",
) -> dict:
  """The best settings found, with the scores before and after.

  max_images: of the data set, the first so many; 0: all.
  train_sets, on_error: see evaluation.evaluate.

  Raises:
    ValueError: no instances in the data, or no such score.
  """
  import dataclasses

  from tqdm import tqdm

  from fcrn_jax import evaluation, scoring
  from fcrn_jax.data.functions import source_of

  if not predictor.has_boxes:
    raise ValueError(
      f"{predictor.source} is of a network without boxes, which groups nothing;"
      " pass --semantic and --localization, or a joint network's --workdir."
    )
  if not dataset.has_instances:
    raise ValueError(
      f"{dataset.name} {dataset.split!r} at {dataset.path} has no instances to"
      " tune on."
    )
  protocol = protocol_of(metric, len(predictor.categories) + 1)
  number = min(len(dataset), max_images or len(dataset))
  kept = []
  # Drawn without a delay, the bar would be broken by the first line of the log.
  for index in tqdm(range(number), desc="network", unit="image", delay=1e-9):
    example = evaluation.read(dataset, index, on_error)
    if example is not None:
      kept.append((example, predictor.maps(example["image"])))
  best = predictor.options
  void = scoring.counts_void(dataset)
  start = end = group(predictor, kept, best, void)
  value = before = start.result(protocol)[metric]
  if math.isnan(value):
    raise ValueError(
      f"{metric} is not defined on these {len(kept)} images; take more of them"
      " (--max_images) or another --metric."
    )
  bar = tqdm(total=2 * sum(map(len, GRID.values())), desc="search", unit="try")
  settled = 0  # settings tried around the best as it is
  with bar:
    for name, candidates in [*GRID.items()] * 2:
      if settled == len(GRID):
        break
      center = best
      for candidate in candidates:
        bar.update()
        if candidate == getattr(center, name):
          continue
        options = dataclasses.replace(center, **{name: candidate})
        evaluator = group(predictor, kept, options, void)
        new = evaluator.result(protocol)[metric]
        if new > value:
          best, end, value = options, evaluator, new
      settled = settled + 1 if best is center else 1
      bar.set_postfix({metric: f"{value:.4f}"})
  return {
    "instances": {name: getattr(best, name) for name in GRID},
    "metric": metric,
    "before": before,
    "after": value,
    "matching_0.5_before": start.result("matching")["matching_0.5"],
    "matching_0.5_after": end.result("matching")["matching_0.5"],
    **evaluation.image_stamp(dataset, number),
    "data_source": source_of(dataset),
    "ids": dataset.ids[:number],
    **evaluation.check_leaks(predictor, dataset, True, train_sets),
    "num_images": len(kept),
    "checkpoint_step": predictor.step,
    "views": str(predictor.views),
    "date": datetime.date.today().isoformat(),
  }


def protocol_of(metric: str, num_classes: int) -> str:
  """The protocol that has this score; ValueError if none has."""
  from fcrn_jax import metrics

  empty, known = metrics.InstanceEvaluator(num_classes), []
  for protocol in ("sds", "matching", "coco"):
    values = empty.result(protocol)
    names = [name for name, v in values.items() if isinstance(v, float)]
    if metric in names:
      return protocol
    known += names
  close = difflib.get_close_matches(metric, known, 3) or known
  raise ValueError(
    f"no score {metric!r} of instances; did you mean one of {close}?"
  )


def group(predictor, kept, options, count_void):
  """The evaluator of the grouping with these options over kept maps."""
  from fcrn_jax import metrics, scoring

  evaluator = metrics.InstanceEvaluator(len(predictor.categories) + 1)

  def grouped(item):
    example, maps = item
    return example, predictor.group(maps, example["image"], options)

  with ThreadPoolExecutor(2) as pool:
    for example, result in pool.map(grouped, kept):
      scoring.add_instances(evaluator, result, example, count_void)
  return evaluator


if __name__ == "__main__":
  command.run(main)
