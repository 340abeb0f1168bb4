r"""Converts data into array_record shards for training at scale.

  python -m experiments.prepare_data --data=DIR --output=OUT --processes=4
  python -m experiments.prepare_data --data=instances.json --images=DIR \
      --output=OUT
  python -m experiments.prepare_data --data=ARCHIVES --name=voc2012_sbd \
      --output=OUT --split=train_aug,seg_val

DIR is a folder in VOC layout, a COCO json or its folder, or the official
archives (or what they extract to) of --name. A run that was cut off goes on
where it stopped. Train with --config.data.path=OUT. tfds reads it too:
tfds.builder_from_directory(OUT).as_data_source(split). After a change of
images or labels pass --overwrite.
"""

import os
import sys
import time

from absl import flags

from experiments import command

_DATA = flags.DEFINE_string("data", None, "The data's directory, or a json.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder for the shards.")
_NAME = flags.DEFINE_string(
  "name", "", "folder, voc2012_sbd, pascal_context, cityscapes or coco; empty: "
  "guessed from what is there."
)  # fmt: skip
_SPLIT = flags.DEFINE_list("split", [], "Splits to prepare; empty: all.")
_PROCESSES = flags.DEFINE_integer("processes", 1, "Worker processes.", 1)
_ON_ERROR = flags.DEFINE_enum(
  "on_error", "raise", ("raise", "skip"), "What to do with a bad image."
)
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace splits in OUT.")
_PARTIAL = flags.DEFINE_bool("partial", False, "Accept a sample of the data.")
_IMAGES = flags.DEFINE_string("images", "", "COCO: the json's image folder.")
_YEAR = flags.DEFINE_enum("year", "2017", ("2014", "2017"), "COCO: the year.")
_CATEGORIES = flags.DEFINE_enum(
  "categories", "all", ("all", "voc"), "COCO: its 80, or VOC's 20."
)


def main():
  """Prepares with the flags."""
  from fcrn_jax import data
  from fcrn_jax.data import check
  from fcrn_jax.data.builders import shards

  start = time.monotonic()
  name = _NAME.value or check.guess_name(_DATA.value)
  datasets = {}
  for split in _SPLIT.value or check.splits_of(name, _DATA.value):
    try:
      datasets[split] = data.load(name, split, _DATA.value, _options(name))
    except ValueError as error:
      if not _PARTIAL.value:
        raise
      print(f"PARTIAL DATA: no split {split}: {error}", file=sys.stderr)
  if not datasets:
    raise ValueError(f"no split of {_DATA.value} could be read.")
  shards.prepare(
    datasets,
    _OUTPUT.value,
    processes=_PROCESSES.value,
    on_error=_ON_ERROR.value,
    overwrite=_OVERWRITE.value,
  )
  for split in datasets:
    prepared = data.load(name, split, _OUTPUT.value)
    print(f"{split}: {len(prepared):,} images in {_OUTPUT.value}")
  print(f"{time.monotonic() - start:.1f} s")


def _options(name):
  """The reader's options from the flags."""
  if name == "folder":
    return {"on_error": _ON_ERROR.value}
  if name == "coco":
    return {
      "partial": _PARTIAL.value,
      "year": int(_YEAR.value),
      "categories": _CATEGORIES.value,
      "images": os.path.abspath(_IMAGES.value) if _IMAGES.value else "",
    }
  return {"partial": _PARTIAL.value}


if __name__ == "__main__":
  flags.mark_flags_as_required(["data", "output"])
  command.run(main)
