"""Table 1: depth, resolution and classifier on PASCAL VOC 2012 val.

  python -m experiments.train --config=configs/table1.py:fcrn101_s8_k5_d12 \
      --config.data.path=DIR --config.weights=resnet101.caffemodel --workdir=W

Needs VOC 2012 and SBD (python -m experiments.prepare_data --help) and ImageNet
weights. Vanilla networks: no bootstrapping, no dropout, one view. ROWS gives
the paper's pixel accuracy, mean accuracy and mean IoU in percent; our own
figures are missing: neither weights nor data were at hand so far.
"""

from ml_collections import ConfigDict

from configs import default

ROWS = {
  "fcrn50_s16_k3_d6": (92.74, 78.68, 69.09),
  "fcrn50_s8_k3_d6": (92.50, 77.60, 67.61),
  "fcrn50_s8_k3_d12": (93.03, 79.51, 69.94),
  "fcrn50_s8_k3_d18": (93.02, 79.28, 70.01),
  "fcrn50_s8_k5_d6": (92.98, 79.34, 69.81),
  "fcrn50_s8_k5_d12": (93.25, 79.84, 71.10),
  "fcrn50_s8_k7_d6": (93.14, 79.54, 70.67),
  "fcrn101_s16_k3_d6": (93.22, 80.16, 70.93),
  "fcrn101_s8_k3_d6": (93.20, 79.87, 70.20),
  "fcrn101_s8_k3_d12": (93.68, 81.29, 72.34),
  "fcrn101_s8_k3_d18": (93.67, 81.15, 72.37),
  "fcrn101_s8_k5_d6": (93.52, 81.00, 71.97),
  "fcrn101_s8_k5_d12": (93.87, 81.87, 73.41),
  "fcrn101_s8_k7_d6": (93.61, 81.34, 72.56),
}


def get_config(arg: str = "fcrn101_s8_k5_d12") -> ConfigDict:
  """The row of a network."""
  default.check_row(arg, ROWS)
  config = voc2012().unlock()
  config.model.name = arg
  return config.lock()


def voc2012() -> ConfigDict:
  """Category segmentation on the augmented VOC 2012, 10,582 images."""
  config = default.caffe()
  config.model.heads = ("semantic",)
  config.data.name = "voc2012_sbd"
  config.data.train_split = "train_aug"
  config.data.val_split = "seg_val"
  config.loss.k = 0
  # 45 epochs of 10,582 images at batch 16, ours; the paper gives no schedule.
  config.num_steps = 30_000
  return config.lock()
