"""Table 6: instance segmentation on SBD, 5,623 train and 5,732 val images.

Two networks a row, trained one after the other and evaluated together:

  python -m experiments.train --config=configs/table6.py:50_bs,semantic \
      --config.data.path=DIR --config.weights=resnet50.caffemodel --workdir=S
  python -m experiments.train --config=configs/table6.py:50_bs,localization \
      --config.data.path=DIR --config.weights=resnet50.caffemodel --workdir=L
  python -m experiments.evaluate --semantic=S --localization=L --protocol=sds

ROWS gives the paper's mAP^r at 0.5, at 0.7 and its volume in percent; our own
are missing, see table1. The semantic network is trained on SBD train alone:
4,629 of the 5,732 val images are in the 10,582 of Table 1. The semantic network
of the COCO row starts from one trained on COCO:

  python -m experiments.train \
      --config=configs/table6.py:101_bs_weighted_coco,coco \
      --config.data.path=COCO --config.weights=resnet101.caffemodel --workdir=C
  python -m experiments.export --workdir=C --output=coco.safetensors

and takes --config.weights=coco.safetensors.
"""

from ml_collections import ConfigDict

from configs import default

ROWS = {
  "50": (57.2, 40.5, 52.5),
  "50_bs": (58.7, 42.0, 53.8),
  "50_bs_weighted": (59.8, 43.5, 54.7),
  "101_bs_weighted": (60.9, 44.6, 55.5),
  "101_bs_weighted_coco": (61.5, 46.6, 56.4),
}
NETWORKS = ("semantic", "localization")


def get_config(arg: str = "101_bs_weighted,localization") -> ConfigDict:
  """`row,network`: network is semantic, localization, or coco."""
  row, _, network = arg.partition(",")
  default.check_row(row, ROWS)
  default.check_row(network, (*NETWORKS, "coco"))
  config = default.caffe()
  depth = row.split("_")[0]
  config.model.name = f"fcrn{depth}_s8_k5_d12"
  config.data.name = "voc2012_sbd"
  config.data.train_split = "sbd_train"
  config.data.val_split = "sbd_val"
  bootstrapped = 512 if "_bs" in row else 0
  config.loss.k = config.loss.box_k = bootstrapped
  if network == "localization":
    config.model.heads = ("boxes",)
    config.data.box_weighting = "area" if "weighted" in row else "none"
  else:
    config.model.heads = ("semantic",)
  if network == "coco":
    config.data.name = "coco"
    config.data.train_split = "train2014"
    config.data.val_split = "val2014"
    config.data.categories = "voc"
    config.num_steps = 60_000
  # instances.Options.paper(): nested masks, of which fragments stay, blocks on
  # upsampled scores.
  config.instances.num_masks = 2
  config.instances.min_fill = 0.0
  config.instances.min_extent = 0.0
  config.instances.masks = "blocks"
  return config.lock()
