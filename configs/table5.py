"""Table 5: PASCAL-Context val, sixty categories with the background.

  python -m experiments.train --config=configs/table5.py \
      --config.data.path=DIR --config.weights=resnet101.caffemodel --workdir=W

ROWS gives the paper's pixel accuracy, mean accuracy and mean IoU in percent;
our own are missing, see table1.
"""

from ml_collections import ConfigDict

from configs import default

ROWS = {"ours": (72.9, 54.8, 44.5)}


def get_config(arg: str = "ours") -> ConfigDict:
  """ "The same model as the one used for PASCAL VOC 2012"."""
  default.check_row(arg, ROWS)
  config = default.caffe()
  config.model.name = "fcrn101_s8_k5_d12"
  config.model.heads = ("semantic",)
  config.data.name = "pascal_context"
  config.num_steps = 30_000
  return config.lock()
