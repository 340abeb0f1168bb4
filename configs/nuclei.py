"""Cell nuclei (Data Science Bowl 2018, fluorescence) from random weights.

  python -m experiments.train --config=configs/nuclei.py \
      --config.data.path=DIR --workdir=runs/nuclei

  python -m experiments.train --config=configs/nuclei.py:hour ...
  python -m experiments.train --config=configs/nuclei.py:gpu ...

DIR (or $NUCLEI) is the data in VOC layout, see BUILD.md. TP/(TP+FP+FN) on
val_fluo at IoU 0.5 and 0.7, cores of an AMD EPYC, jax 0.10.2, 2026-11-23, with
data.instances_per_visit, instances.min_score and instances.min_area of 0:

  hour as it was, 54 min on four cores   0.859  0.753
  minutes, 13 on four cores              0.846  0.720
  1,850 steps, coarse=0, 28 min on two   0.834  0.710
  StarDist 0.9.2, 31 minutes on two      0.823  0.649

gpu on an H100, jax 0.11.2, 2026-11-27, beside CamVid's training on the same
GPU, 3.5 minutes, also without them      0.875  0.766

As they are now, 2026-11-30, cores shared with other jobs, and touching nuclei
found:

  hour, 98 minutes on one core           0.886  0.778  0.831
  minutes, 19 on two cores               0.860  0.748  0.782

The three were chosen on train_fluo, see docs/errors.md.
"""

import os

from ml_collections import ConfigDict

from configs import default


def get_config(edition: str = "minutes") -> ConfigDict:
  """What four CPU cores train in 15 minutes, in an "hour", or one "gpu"."""
  default.check_row(edition, ("minutes", "hour", "gpu"))
  config = default.from_random_weights()
  config.model.name = "fcrn18_s4_k3_d2"
  config.model.width = 16
  config.model.batch_norm = "synced"
  config.model.box_unit = 32.0
  config.data.path = os.environ.get("NUCLEI", "../shared/data/nuclei")
  config.data.train_split = "train_fluo"
  config.data.val_split = "val_fluo"
  config.data.crop = (256, 256)
  config.data.scale = (0.7, 1.4)
  config.data.input_scale = 2.0
  config.data.rot90 = True
  config.data.normalize = True
  config.data.gamma = 0.3
  config.data.cache = True
  config.data.instances_per_visit = 8
  config.loss.box_unit = 4.0
  config.loss.box_weight = 0.05
  config.batch_size = 8
  config.num_steps = 3000
  config.coarse = 0.9
  config.optim.lr = 3e-3
  config.optim.warmup_steps = 50
  config.ema = 0.99
  config.log_every = 50
  config.checkpoint_every = 500
  # Chosen on 60 images of train_fluo by a network that had not seen them.
  config.inference.flip = True
  config.inference.scales = (1.0, 1.25)
  config.instances.seeds = "agreement"
  # By networks of 1,600 steps on what they had not seen of train_fluo.
  config.instances.min_score = 0.75
  config.instances.min_area = 20.0
  config.instances.max_instances = 400
  config.protocol = "matching"
  if edition == "hour":
    config.num_steps = 12_000
    config.coarse = 0.8
    config.ema = 0.998
  elif edition == "gpu":
    default.use_large_gpu(config)
    config.model.width = 64
    config.data.aspect = 0.2
    config.data.contrast = 0.2
    config.optim.weight_decay = 0.05
    config.inference.transpose = True
    config.num_steps = 11_500
    config.coarse = 0.8
  return config.lock()
