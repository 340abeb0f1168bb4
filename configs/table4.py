"""Table 4: IoU per category on Cityscapes val.

  python -m experiments.train --config=configs/table4.py:bootstrapped \
      --config.data.path=DIR --config.weights=resnet152.caffemodel --workdir=W

ROWS gives the paper's IoU of the nineteen categories and their mean in
percent; our own are missing, see table1.
"""

from ml_collections import ConfigDict

from configs import default, table3

ROWS = {
  "vanilla": (
    (97.4, 80.3, 90.8, 47.6, 53.8, 53.1, 58.1, 70.2, 91.2, 59.6, 93.2, 77.1,
     54.4, 93.0, 67.1, 79.4, 62.2, 57.3, 72.7), 71.5),
  "bootstrapped": (
    (97.6, 82.0, 91.7, 52.3, 56.2, 57.0, 65.7, 74.4, 91.7, 62.5, 93.8, 79.8,
     59.6, 94.0, 66.2, 83.7, 70.3, 64.2, 75.5), 74.6),
}  # fmt: skip


def get_config(arg: str = "bootstrapped") -> ConfigDict:
  """The row `vanilla` or `bootstrapped`."""
  default.check_row(arg, ROWS)
  config = table3.cityscapes().unlock()
  config.model.name = "fcrn152_s8_k5_d12"
  config.loss.k = 512 if arg == "bootstrapped" else 0
  return config.lock()
