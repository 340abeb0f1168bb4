"""Your own data in VOC layout; no code needed.

  python -m experiments.check_data --data=DIR
  python -m experiments.train --config=configs/folder.py \
      --config.data.path=DIR --workdir=runs/mine

DIR holds JPEGImages, SegmentationClass, SegmentationObject,
ImageSets/Segmentation/{train,val}.txt and labels.txt. Without
SegmentationObject add --config.model.heads='("semantic",)'. Set
--config.weights to ImageNet weights where you have them; the defaults are
meant to fit one GPU of 16 GB, on which they have not been run.
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
  """A joint network that learns from random weights or better ones."""
  config = default.get_config().unlock()
  config.model.name = "fcrn50_s8_k5_d12"
  config.model.batch_norm = "local"
  config.data.crop = (320, 320)
  # From random weights every pixel is hard: the hardest few alone teach
  # nothing but uniform scores. With weights set 512, the default.
  config.loss.k = 0
  config.loss.box_k = 0
  config.num_steps = 10_000
  config.optim.lr = 0.01
  config.optim.warmup_steps = 200
  config.optim.clip_norm = 10.0
  config.data.num_workers = 2
  return config.lock()
