"""Every config, and every row of the paper's tables as the zoo has it."""

import importlib

import pytest

from configs import default, table6
from fcrn_jax import inference, instances, metrics, models
from fcrn_jax.data import pipeline
from fcrn_jax.models.pretrained import SOURCES
from fcrn_jax.predictor import loading
from fcrn_jax.types import Preprocessing

PLAIN = ("default", "shapes", "nuclei", "folder", "camvid")
EDITIONS = [
  ("nuclei", "hour"), ("nuclei", "gpu"), ("camvid", "cpu"), ("camvid", "gpu"),
  ("folder", "cpu"), ("folder", "gpu"),
]  # fmt: skip
TABLES = [f"table{n}" for n in range(1, 8)]


def rows():
  for name in TABLES:
    module = importlib.import_module(f"configs.{name}")
    for row in module.ROWS:
      if name == "table6":
        yield from ((name, f"{row},{part}") for part in module.NETWORKS)
      else:
        yield name, row


def assert_has_a_network(config):
  models.create(config.model.name, {}).coarser(2 if config.coarse else 1)


@pytest.mark.parametrize("name", PLAIN)
def test_plain_configs_are_locked_and_complete(name):
  config = importlib.import_module(f"configs.{name}").get_config()
  assert config.is_locked
  assert_has_a_network(config)
  with pytest.raises(AttributeError, match="Did you mean"):
    config.optim.lrr = 1


@pytest.mark.parametrize(("name", "edition"), EDITIONS)
def test_editions(name, edition):
  module = importlib.import_module(f"configs.{name}")
  config = module.get_config(edition)
  assert config.is_locked
  assert_has_a_network(config)
  with pytest.raises(ValueError, match="no row 'other'"):
    module.get_config("other")


def test_data_settings_are_those_of_the_pipeline():
  settings = set(importlib.import_module("configs.default").get_config().data)
  settings -= {"name", "path", "train_split", "val_split"}
  settings -= {"num_train", "num_val", "partial", "categories"}
  known = set(pipeline.PipelineOptions._fields)
  assert settings == known - {"stride", "batch_size", "fill"}


@pytest.mark.parametrize(("name", "row"), list(rows()))
def test_every_row_is_a_config(name, row):
  module = importlib.import_module(f"configs.{name}")
  config = module.get_config(row)
  assert config.is_locked
  assert set(config) == set(
    importlib.import_module("configs.default").get_config()
  )
  metrics.InstanceEvaluator(2, config.protocol)
  caffe = SOURCES["caffe"]
  assert Preprocessing(**config.preprocessing) == caffe.preprocessing
  assert config.model.stride_in_1x1 == caffe.stride_in_1x1
  assert config.model.caffe_pool == caffe.caffe_pool
  spec = models.spec(config.model.name)
  head = config.model.heads[0]
  assert head == ("boxes" if row.endswith("localization") else "semantic")
  # Section 3.1: the field of view must stay within the crop.
  assert spec.field_of_view <= min(config.data.crop)


AUG, SBD = ("train_aug", "seg_val"), ("sbd_train", "sbd_val")
TRAIN = ("train", "val")


@pytest.mark.parametrize(("name", "row", "splits", "k", "box_k", "weighting"), [
  ("table1", "fcrn50_s16_k3_d6", AUG, 0, None, None),
  ("table1", "fcrn101_s8_k7_d6", AUG, 0, None, None),
  ("table2", "vanilla", AUG, 0, None, None),
  ("table2", "bootstrapped", AUG, 512, None, None),
  ("table2", "test", AUG, 512, None, None),
  ("table3", "fcrn152_s8_k5_d12", TRAIN, 0, None, None),
  ("table4", "vanilla", TRAIN, 0, None, None),
  ("table4", "bootstrapped", TRAIN, 512, None, None),
  ("table5", "ours", TRAIN, 512, None, None),
  ("table6", "50,semantic", SBD, 0, None, None),
  ("table6", "50,localization", SBD, None, 0, "none"),
  ("table6", "50_bs,semantic", SBD, 512, None, None),
  ("table6", "50_bs,localization", SBD, None, 512, "none"),
  ("table6", "50_bs_weighted,localization", SBD, None, 512, "area"),
  ("table6", "101_bs_weighted,localization", SBD, None, 512, "area"),
  ("table6", "101_bs_weighted_coco,semantic", SBD, 512, None, None),
  ("table7", "voc2012_all", AUG, 0, None, None),
  ("table7", "voc2012_256", AUG, 256, None, None),
  ("table7", "cityscapes_all", TRAIN, 0, None, None),
  ("table7", "cityscapes_1024", TRAIN, 1024, None, None),
])  # fmt: skip
def test_what_a_row_trains(name, row, splits, k, box_k, weighting):
  """None: of the head that the network does not have."""
  config = importlib.import_module(f"configs.{name}").get_config(row)
  assert (config.data.train_split, config.data.val_split) == splits
  assert config.loss.scope == "crop" and config.loss.threshold == 0
  if k is not None:
    assert config.model.heads == ("semantic",) and config.loss.k == k
  else:
    assert config.model.heads == ("boxes",) and config.loss.box_k == box_k
    assert config.data.box_weighting == weighting
  further = (name, row) == ("table2", "test")
  assert config.model.dropout == further == config.inference.flip
  assert config.model.classifier_width == (512 if further else 0)
  assert (len(config.inference.scales) > 1) == further


@pytest.mark.parametrize("name", ["table1", "table3", "table7"])
def test_figures_equal_the_zoo(name):
  module = importlib.import_module(f"configs.{name}")
  number = int(name[-1])
  for row, figures in module.ROWS.items():
    config = module.get_config(row)
    found = [
      (r.pixel_accuracy, r.mean_accuracy, r.mean_iou)
      for r in models.spec(config.model.name).paper
      if r.table in {1: (1,), 3: (3,), 7: (1, 3, 7)}[number]
    ]
    assert figures in found, row


def test_settings_of_a_config_are_those_of_the_library():
  config = default.get_config()
  assert loading.fill(instances.Options, config.instances) == (
    instances.Options()
  )
  assert (
    loading.fill(inference.Options, config.inference) == inference.Options()
  )
  paper = table6.get_config("50,localization").instances
  assert loading.fill(instances.Options, paper) == instances.Options.paper()


def test_table2_means_are_of_its_rows():
  from configs import table2, table4

  # The mean of Table 2 includes the background, which it does not list; that
  # of Table 4 is the plain mean.
  for per_category, mean in table4.ROWS.values():
    assert len(per_category) == 19
    assert abs(sum(per_category) / 19 - mean) < 0.06
  for per_category, mean in table2.ROWS.values():
    assert len(per_category) == 20
    background = 21 * mean - sum(per_category)
    assert 90 < background < 98


def test_unknown_rows_are_named():
  from configs import table1

  with pytest.raises(ValueError, match="no row 'fcrn99'"):
    table1.get_config("fcrn99")
