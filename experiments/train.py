r"""Trains a network and evaluates it; a workdir with a checkpoint continues.

  python -m experiments.train --config=configs/shapes.py --workdir=runs/shapes
  python -m experiments.train --config=configs/folder.py \
      --config.data.path=DIR --workdir=runs/mine --config.optim.lr=0.01
"""

import os
import pathlib

from absl import flags
from ml_collections import config_flags

from experiments import command

_CONFIG = config_flags.DEFINE_config_file(
  "config", None, "Settings: a file of configs/; --config.NAME=V overrides."
)
_WORKDIR = flags.DEFINE_string(
  "workdir", None, "Folder for checkpoints, metrics, scores and samples."
)

_DISTRIBUTED = flags.DEFINE_bool(
  "distributed", False, "One of several hosts, each with this command."
)


def main():
  """Runs training with the flags."""
  import jax

  from experiments import common
  from fcrn_jax.training import loop

  if _DISTRIBUTED.value:
    # Where no cluster tells them; JAX_COORDINATOR_ADDRESS it reads itself.
    known = {
      name: int(os.environ[f"JAX_{name.upper()}"])
      for name in ("num_processes", "process_id")
      if f"JAX_{name.upper()}" in os.environ
    }
    jax.distributed.initialize(**known)
  common.start()
  loop.train_and_evaluate(_CONFIG.value, pathlib.Path(_WORKDIR.value))


if __name__ == "__main__":
  flags.mark_flags_as_required(["config", "workdir"])
  command.run(main)
