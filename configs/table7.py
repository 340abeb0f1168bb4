"""Table 7: how many hard pixels to keep.

  python -m experiments.train --config=configs/table7.py:voc2012_512 \
      --config.data.path=DIR --config.weights=resnet101.caffemodel --workdir=W

ROWS gives the paper's pixel accuracy, mean accuracy and mean IoU in percent;
our own are missing, see table1.
"""

from ml_collections import ConfigDict

from configs import default, table1, table3

ROWS = {
  "voc2012_all": (93.87, 81.87, 73.41),
  "voc2012_256": (94.11, 81.44, 74.41),
  "voc2012_512": (94.23, 82.09, 74.80),
  "voc2012_1024": (94.08, 81.84, 74.17),
  "cityscapes_all": (95.00, 79.38, 71.51),
  "cityscapes_256": (95.41, 81.37, 73.97),
  "cityscapes_512": (95.46, 82.04, 74.64),
  "cityscapes_1024": (95.38, 81.00, 73.45),
}


def get_config(arg: str = "voc2012_512") -> ConfigDict:
  """`dataset_k`, where k is the number of pixels kept or `all`."""
  default.check_row(arg, ROWS)
  dataset, _, k = arg.partition("_")
  if dataset == "voc2012":
    config = table1.voc2012().unlock()
    config.model.name = "fcrn101_s8_k5_d12"
  else:
    config = table3.cityscapes().unlock()
    config.model.name = "fcrn152_s8_k5_d12"
  config.loss.k = 0 if k == "all" else int(k)
  return config.lock()
