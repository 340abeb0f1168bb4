"""Cell nuclei (Data Science Bowl 2018, fluorescence) from random weights.

  python -m experiments.train --config=configs/nuclei.py \
      --config.data.path=DIR --workdir=runs/nuclei

DIR (or $NUCLEI) is the data in VOC layout, see BUILD.md.
"""

import os

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
  """What four CPU cores can train in 20 minutes."""
  config = default.get_config().unlock()
  config.model.name = "fcrn18_s4_k3_d2"
  config.model.width = 16
  config.model.batch_norm = "local"
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
  # From random weights every pixel is hard: the hardest few alone teach
  # nothing but uniform scores.
  config.loss.k = 0
  config.loss.box_k = 0
  config.batch_size = 8
  config.num_steps = 1150
  config.optim.name = "adamw"
  config.optim.lr = 3e-3
  config.optim.schedule = "cosine"
  config.optim.warmup_steps = 50
  config.optim.weight_decay = 1e-2
  config.ema = 0.99
  config.log_every = 50
  config.checkpoint_every = 500
  config.instances.num_masks = 1
  config.instances.max_instances = 400
  config.protocol = "matching"
  return config.lock()
