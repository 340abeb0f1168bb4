"""The readers as tensorflow_datasets builders, written as array_record.

  import tensorflow_datasets as tfds
  from fcrn_jax.data.builders import tfds_builders

  builder = tfds_builders.Voc2012Sbd(data_dir="~/tensorflow_datasets")
  builder.download_and_prepare(
    download_config=tfds.download.DownloadConfig(manual_dir="~/archives"))
  source = builder.as_data_source("train_aug")   # len(source), source[0]

Without TensorFlow, and resumable: tfds's own writer sorts splits above 1 GB
with TensorFlow, so _generate_splits is ours (shards.write_split). Each builder
has a configuration "partial" that accepts samples of the data.
`builder.processes` sets the number of worker processes (1); more need the
script guarded by `if __name__ == "__main__"`.
"""

import dataclasses
import logging
import os
import pathlib
import shutil
from typing import Any

import tensorflow_datasets as tfds

from fcrn_jax.data.builders import (
  cityscapes,
  coco,
  pascal_context,
  records,
  shards,
  voc2012_sbd,
)
from fcrn_jax.data.functions import Functions


@dataclasses.dataclass(eq=False)
class Config(tfds.core.BuilderConfig):
  """A builder's configuration: its reader's options."""

  options: Any = None


def _configs(**options: Any) -> tuple[Config, ...]:
  return tuple(Config(name=k, options=v) for k, v in options.items())


class _Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """What the four share; `reader` is the module that reads the data."""

  VERSION = tfds.core.Version("1.0.0")
  processes = 1
  # Nothing is downloaded; looking for checksums, tfds would import
  # importlib_resources, which it does not install.
  url_infos: Any = None
  reader: Any = None
  splits: tuple[str, ...] = ()
  features: tfds.features.FeaturesDict = None

  def _info(self):
    info = tfds.core.DatasetInfo(
      builder=self,
      description=self.reader.__doc__,
      features=self.features,
      metadata=tfds.core.MetadataDict(),
      disable_shuffling=True,
    )
    info.set_file_format(tfds.core.FileFormat.ARRAY_RECORD)
    return info

  def _split_generators(self, dl_manager):
    return {
      split: self._generate_examples(dataset)
      for split, dataset in self._datasets(dl_manager).items()
    }

  def _generate_examples(self, dataset):
    for index in range(len(dataset)):
      yield index, records.encode(dataset, index)

  def _datasets(self, dl_manager) -> dict[str, Functions]:
    """The data set of each split; "partial" leaves out splits not there."""
    options = self.builder_config.options
    datasets = {}
    for split in self.splits:
      try:
        datasets[split] = self.reader.load(
          dl_manager.manual_dir, split, options
        )
      except ValueError as error:
        if not options.partial:
          raise
        logging.warning("PARTIAL DATA: no split %s: %s", split, error)
    if not datasets:
      raise ValueError(f"no split could be read from {dl_manager.manual_dir}.")
    return datasets

  def _generate_splits(self, dl_manager, download_config):
    """Writes the shards to a folder that outlives a run that is cut off.

    data_dir is tfds's temporary folder here; it vanishes with an error.
    """
    final = pathlib.Path(self.data_dir)
    unfinished = final.parent / f"unfinished-{self.version}"
    datasets = self._datasets(dl_manager)
    if limit := download_config.max_examples_per_split:
      datasets = {
        split: dataclasses.replace(dataset, ids=dataset.ids[:limit])
        for split, dataset in datasets.items()
      }
    lengths = {
      split: [
        len(ids)
        for ids in shards.write_split(
          dataset, unfinished, processes=self.processes, on_error="raise"
        )
      ]
      for split, dataset in datasets.items()
    }
    for file in unfinished.iterdir():
      os.replace(file, final / file.name)
    shutil.rmtree(unfinished)
    self.info.metadata.update(records.metadata(datasets))
    return [
      shards.split_info(final, self.name, split, counts)
      for split, counts in lengths.items()
    ]


class Voc2012Sbd(_Builder):
  """VOC 2012 segmentation merged with SBD; splits as in voc2012_sbd."""

  BUILDER_CONFIGS = _configs(
    full=voc2012_sbd.Options(), partial=voc2012_sbd.Options(partial=True)
  )
  MANUAL_DOWNLOAD_INSTRUCTIONS = voc2012_sbd.HELP
  reader = voc2012_sbd
  splits = tuple(voc2012_sbd.SPLITS)
  features = records.features(True, voc2012_sbd.FLAGS)


class PascalContext(_Builder):
  """PASCAL-Context, 59 categories and background."""

  BUILDER_CONFIGS = _configs(
    full=pascal_context.Options(), partial=pascal_context.Options(partial=True)
  )
  MANUAL_DOWNLOAD_INSTRUCTIONS = pascal_context.HELP
  reader = pascal_context
  splits = tuple(pascal_context.SPLITS)
  features = records.features(False)


class Cityscapes(_Builder):
  """Cityscapes fine annotations: 19 train ids, instances of 8."""

  BUILDER_CONFIGS = _configs(
    full=cityscapes.Options(), partial=cityscapes.Options(partial=True)
  )
  MANUAL_DOWNLOAD_INSTRUCTIONS = cityscapes.HELP
  reader = cityscapes
  splits = tuple(cityscapes.SPLITS)
  features = records.features(True)


class Coco(_Builder):
  """COCO instances of 2017 or 2014: its 80 categories, or VOC's 20."""

  BUILDER_CONFIGS = _configs(
    all_2017=coco.Options(2017, "all"),
    voc_2017=coco.Options(2017, "voc"),
    all_2014=coco.Options(2014, "all"),
    voc_2014=coco.Options(2014, "voc"),
    partial=coco.Options(2017, "all", partial=True),
  )
  MANUAL_DOWNLOAD_INSTRUCTIONS = coco.HELP
  reader = coco
  splits = ("train", "val")
  features = records.features(True)
