"""Scores a workdir's newest checkpoint; table on screen, eval_<split>.json.

  python -m experiments.evaluate --workdir=runs/shapes
  python -m experiments.evaluate --workdir=W --data=DIR --split=test
  python -m experiments.evaluate --semantic=S --localization=L --protocol=sds
  python -m experiments.evaluate --workdir=W --oracle=both
  python -m experiments.evaluate --workdir=W --worst=8
An oracle takes categories, boxes or both from the truth: what is then missing
to 1 is the fault of the rest. The worst images are drawn in W/worst_<split>.
Scores of an oracle, of one view (--notta), of an older --step and of a part
(--max_images) go to files of their own: eval_<split>_one_view.json, and so do
their pictures: worst_<split>_one_view. Those of other data whose split has the
same name, or by another protocol, replace what is there and say which they are.
"""

import pathlib

from absl import flags

from experiments import command, networks

flags.adopt_module_key_flags(networks)
_DATA = flags.DEFINE_string(
  "data", None, "The data's folder; default that of the config."
)
_SPLIT = flags.DEFINE_string("split", None, "Default the config's val_split.")
_PROTOCOL = flags.DEFINE_enum(
  "protocol", None, ["sds", "mnc", "coco", "matching"], "Default the config's."
)
_MAX_IMAGES = flags.DEFINE_integer(
  "max_images", 0, "Only so many; 0: all.", lower_bound=0
)
_ORACLE = flags.DEFINE_enum(
  "oracle", "", ["", "categories", "boxes", "both"], "What is true, not found."
)
_WORST = flags.DEFINE_integer(
  "worst", 0, "Draw so many of the worst images.", 0, 20
)
_ALLOW_LEAK = flags.DEFINE_bool(
  "allow_leak", False, "Score images of the training set, marked as such."
)


def main():
  """Evaluates with the flags."""
  from experiments import common
  from fcrn_jax import checkpoint, evaluation

  common.start()
  workdir, predictor = networks.workdir(), networks.load()
  config = checkpoint.read_config(workdir)
  dataset = common.load_split(config, _SPLIT.value, _DATA.value)
  # A quick look must not take the place of the full scores.
  part = evaluation.part_suffix(dataset, _MAX_IMAGES.value)
  suffix = networks.suffix() + part
  scores = evaluation.evaluate(
    predictor,
    dataset,
    protocol=_PROTOCOL.value or config.protocol,
    workdir=workdir,
    max_images=_MAX_IMAGES.value,
    oracle=_ORACLE.value,
    allow_leak=_ALLOW_LEAK.value,
    on_error=config.data.get("on_error", "raise"),
    suffix=suffix,
  )
  print(evaluation.table(scores))
  if _WORST.value:
    stem = evaluation.file_stem(dataset.split, _ORACLE.value, suffix)
    directory = pathlib.Path(workdir) / f"worst_{stem}"
    places = {key: index for index, key in enumerate(dataset.ids)}
    ids = scores["worst_images"][: _WORST.value]
    examples = [dataset[places[key]] for key in ids]
    evaluation.draw(
      predictor, examples, directory, numbered=True, oracle=_ORACLE.value
    )
    print(f"pictures: {directory}")


if __name__ == "__main__":
  command.run(main)
