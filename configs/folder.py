"""Your own data in VOC layout; no code needed.

  python -m experiments.check_data --data=DIR
  python -m experiments.train --config=configs/folder.py \
      --config.data.path=DIR --workdir=runs/mine

  python -m experiments.train --config=configs/folder.py:gpu ...

DIR holds JPEGImages, SegmentationClass, SegmentationObject,
ImageSets/Segmentation/{train,val}.txt and labels.txt. Without
SegmentationObject add --config.model.heads='("semantic",)'.

Without ":gpu" a network for a CPU: the one of configs/nuclei.py, with crops and
batches of the same size, whose measured speed makes the 6,000 steps some 27
minutes on four cores of an AMD EPYC and, as that is estimated from steps of one
stride, 45 on two. On two cores shared with two others' work (2026-11-28, jax
0.10.2) a step took 3.5 s, one of the coarse ones 1.8: three to four hours.

":gpu" is a larger network that takes ImageNet weights (--config.weights, see
BUILD.md). It is meant to fit one GPU of 16 GB, on which it has not been run; on
a CPU it takes days.
"""

from ml_collections import ConfigDict

from configs import default


def get_config(edition: str = "cpu") -> ConfigDict:
  """A joint network for an hour of CPU cores, or a larger one for a "gpu"."""
  default.check_row(edition, ("cpu", "gpu"))
  return (_gpu() if edition == "gpu" else _cpu()).lock()


def _cpu():
  config = default.from_random_weights()
  config.model.name = "fcrn18_s4_k3_d2"
  config.model.width = 16
  config.model.batch_norm = "synced"
  config.model.box_unit = 32.0
  config.data.crop = (256, 256)
  config.batch_size = 8
  config.num_steps = 6000
  config.coarse = 0.8
  config.optim.lr = 3e-3
  config.optim.warmup_steps = 50
  config.ema = 0.99
  config.log_every = 50
  config.checkpoint_every = 500
  return config


def _gpu():
  """Learns from random weights, or from ImageNet's."""
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
  return config
