r"""Checks a data set: what is wrong, why, and what to do.

  python -m experiments.check_data --data=DIR           (all splits)
  python -m experiments.check_data --data=DIR --split=val --output=runs/check
  python -m experiments.check_data --data=DIR --name=voc2012_sbd \
      --train_split=train_aug --test_split=sbd_val         (refused)

DIR is a folder in VOC layout, prepared data, a COCO json or its folder, or the
official files of --name. Writes report.json, histograms.png and worst.png to
--output. Exit code 1 if there are errors.
"""

import json
import pathlib

from absl import flags

from experiments import command

_DATA = flags.DEFINE_string("data", None, "The data's directory, or a json.")
_NAME = flags.DEFINE_string(
  "name", "", "folder, voc2012_sbd, pascal_context, cityscapes or coco; empty: "
  "guessed from what is there."
)  # fmt: skip
_SPLIT = flags.DEFINE_list("split", [], "Splits to check; empty: all.")
_OUTPUT = flags.DEFINE_string("output", "runs/check", "Folder for the report.")
_PARTIAL = flags.DEFINE_bool("partial", False, "Accept a sample of the data.")
_TRAIN = flags.DEFINE_string(
  "train_split", "", "With --test_split: only ask whether images leak."
)
_TEST = flags.DEFINE_string("test_split", "", "See --train_split.")
_ALLOW = flags.DEFINE_bool("allow_leak", False, "Do not refuse leaked images.")


def main():
  """Checks with the flags; returns the exit code."""
  from fcrn_jax import data, files
  from fcrn_jax.data import check, check_report

  name = _NAME.value or check.guess_name(_DATA.value)
  partial = _PARTIAL.value and name != "folder"  # whose lists say what is whole
  options = {"partial": True} if partial else {}
  if bool(_TRAIN.value) != bool(_TEST.value):
    raise ValueError("--train_split and --test_split go together; pass both.")
  if _TRAIN.value:
    train, test = (
      data.load(name, split, _DATA.value, options)
      for split in (_TRAIN.value, _TEST.value)
    )
    stamp = check.refuse_leak(train, test, _ALLOW.value)
    print(json.dumps(stamp))
    return 0
  report = check.examine(
    *check.open_splits(name, _DATA.value, _SPLIT.value, options)
  )
  print(f"{name}  {_DATA.value}\n")
  print(check_report.text(report))
  output = pathlib.Path(_OUTPUT.value)
  files.write_json(output / "report.json", check_report.values(report))
  written = ["report.json"]
  for name, draw in (
    ("histograms.png", check_report.plot), ("worst.png", check_report.picture)
  ):  # fmt: skip
    (output / name).unlink(missing_ok=True)  # of an earlier check
    if report.readable:
      draw(report, output / name)
      written.append(name)
  print(f"{', '.join(written)} in {output}")
  return 1 if report.num_errors else 0


if __name__ == "__main__":
  flags.mark_flag_as_required("data")
  command.run(main)
