"""CamVid street scenes, eleven categories, from random weights.

  python -m experiments.train --config=configs/camvid.py \
      --config.data.path=DIR --workdir=runs/camvid
  python -m experiments.train --config=configs/camvid.py:gpu ...

DIR (or $CAMVID) is the data in VOC layout, labels 0 to 10 and 255 = void.
Mean IoU on val:

  cpu, 57 minutes on four cores of an AMD EPYC, jax 0.10.2, 2026-11-23    0.658
  gpu, 3.7 minutes on an H100 that also trained nuclei, jax 0.11.2,
  2026-11-27                                                              0.736

FC-DenseNet-103 publishes 0.669 from random weights, on the test split.
"""

import os

from ml_collections import ConfigDict

from configs import default


def get_config(edition: str = "cpu") -> ConfigDict:
  """What four CPU cores train in an hour, or with "gpu" one large GPU."""
  default.check_row(edition, ("cpu", "gpu"))
  config = default.from_random_weights()
  config.model.heads = ("semantic",)
  config.model.batch_norm = "synced"
  config.data.path = os.environ.get("CAMVID", "../shared/data/camvid")
  config.data.scale = (0.6, 1.5)
  config.data.brightness = 0.1
  config.data.contrast = 0.2
  config.data.cache = True
  # Poles and signs are smaller than a cell.
  config.data.label_stride = 2
  config.loss.k = 4096
  config.loss.threshold = 0.7
  config.inference.flip = True
  config.inference.shifts = 2
  if edition == "gpu":
    default.use_large_gpu(config)
    config.model.name = "fcrn18_s4_k3_d2"
    config.data.crop = (320, 416)
    config.data.aspect = 0.15
    config.data.gamma = 0.2
    config.optim.weight_decay = 0.05
    config.inference.scales = (0.8, 1.0, 1.25)
    config.num_steps = 8600
    config.coarse = 0.75
  else:
    config.model.name = "fcrn18_s8_k3_d2"
    config.model.width = 32
    config.data.crop = (256, 320)
    config.batch_size = 8
    config.num_steps = 8000
    config.coarse = 0.75
    config.optim.lr = 3e-3
    config.optim.warmup_steps = 100
    config.ema = 0.995
    config.log_every = 50
    config.checkpoint_every = 500
  return config.lock()
