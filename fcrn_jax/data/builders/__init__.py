"""Readers of the field's data sets, and of data prepared as array_record.

voc2012_sbd, pascal_context, cityscapes and coco have SPLITS, Options and
load(path, split, options); tfds_builders wraps them as tensorflow_datasets
builders. None needs TensorFlow.
"""

import pathlib
from typing import Any


def is_prepared(path: Any) -> bool:
  """Whether a directory holds data that shards.prepare or a builder wrote."""
  path = pathlib.Path(path).expanduser()
  return all(
    (path / name).is_file() for name in ("dataset_info.json", "metadata.json")
  )
