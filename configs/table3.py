"""Table 3: depth, resolution and classifier on Cityscapes val.

  python -m experiments.train --config=configs/table3.py:fcrn152_s8_k5_d12 \
      --config.data.path=DIR --config.weights=resnet152.caffemodel --workdir=W

ROWS gives the paper's pixel accuracy, mean accuracy and mean IoU in percent;
our own are missing, see table1.
"""

from ml_collections import ConfigDict

from configs import default

ROWS = {
  "fcrn50_s16_k3_d6": (93.83, 74.67, 66.41),
  "fcrn50_s8_k3_d6": (94.38, 74.89, 66.58),
  "fcrn50_s8_k3_d12": (94.47, 75.91, 67.68),
  "fcrn50_s8_k3_d18": (94.53, 76.52, 68.38),
  "fcrn50_s8_k5_d6": (94.48, 76.17, 68.04),
  "fcrn50_s8_k5_d12": (94.61, 76.68, 68.71),
  "fcrn50_s8_k5_d18": (94.64, 76.34, 68.53),
  "fcrn50_s8_k7_d6": (94.58, 76.88, 68.79),
  "fcrn50_s8_k7_d12": (94.64, 76.57, 68.79),
  "fcrn101_s16_k3_d6": (94.11, 76.26, 67.62),
  "fcrn101_s8_k3_d6": (94.68, 77.15, 68.58),
  "fcrn101_s8_k3_d12": (94.78, 78.30, 69.99),
  "fcrn101_s8_k3_d18": (94.82, 78.21, 70.00),
  "fcrn101_s8_k5_d6": (94.75, 78.11, 69.89),
  "fcrn101_s8_k5_d12": (94.87, 79.17, 71.16),
  "fcrn101_s8_k7_d6": (94.75, 78.43, 70.40),
  "fcrn152_s16_k3_d6": (94.26, 76.89, 68.30),
  "fcrn152_s8_k3_d6": (94.82, 78.30, 69.69),
  "fcrn152_s8_k3_d12": (94.94, 78.79, 70.66),
  "fcrn152_s8_k3_d18": (94.93, 79.19, 70.92),
  "fcrn152_s8_k5_d6": (94.88, 78.77, 70.61),
  "fcrn152_s8_k5_d12": (95.00, 79.38, 71.51),
  "fcrn152_s8_k7_d6": (94.91, 79.08, 70.87),
}


def get_config(arg: str = "fcrn152_s8_k5_d12") -> ConfigDict:
  """The row of a network."""
  default.check_row(arg, ROWS)
  config = cityscapes().unlock()
  config.model.name = arg
  return config.lock()


def cityscapes() -> ConfigDict:
  """Category segmentation on the 2,975 finely labelled images."""
  config = default.caffe()
  config.model.heads = ("semantic",)
  config.data.name = "cityscapes"
  # Wider than the largest field of view, 584: section 3.1 wants crops larger.
  config.data.crop = (704, 704)
  config.loss.k = 0
  # 140 + 64 epochs [A] of 2,975 images at batch 16; [A] keeps the rate for the
  # 140 and halves it then, here it falls all along.
  config.num_steps = 38_000
  return config.lock()
