"""Readers of the field's data sets, and of data prepared as array_record.

voc2012_sbd, pascal_context, cityscapes and coco have SPLITS, Options and
load(path, split, options); tfds_builders wraps them as tensorflow_datasets
builders. None needs TensorFlow.
"""

import pathlib
from typing import Any


def is_prepared(path: Any) -> bool:
  """Whether a directory holds data that shards.prepare or a builder wrote.

  ValueError if it was cut off.
  """
  path = pathlib.Path(path).expanduser()
  if (path / "dataset_info.json").is_file():
    return (path / "metadata.json").is_file()
  if path.is_dir() and any(path.glob(".*.array_record.json")):
    raise ValueError(
      f"{path} holds data whose preparation is unfinished; run the same "
      "experiments.prepare_data again, it goes on where it stopped."
    )
  return False
