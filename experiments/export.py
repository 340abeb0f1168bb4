"""Writes a trained model as one file, or its weights with a model card.

  python -m experiments.export --workdir=W --output=model.fcrn
  python -m experiments.export --semantic=S --localization=L --output=model.fcrn
  python -m experiments.export --workdir=W --output=weights.safetensors

A file holds networks, grouping and settings for any image size on cpu, cuda
and tpu, for experiments.predict --workdir=model.fcrn or Predictor.load.
"""

import pathlib

from absl import flags

from experiments import command

_WORKDIR = flags.DEFINE_string("workdir", None, "Workdir of a joint network.")
_SEMANTIC = flags.DEFINE_string("semantic", None, "Workdir for the scores.")
_LOCALIZATION = flags.DEFINE_string(
  "localization", None, "Workdir for the boxes."
)
_STEP = flags.DEFINE_integer("step", None, "Checkpoint; default the newest.")
_OUTPUT = flags.DEFINE_string(
  "output", None, "The file; .safetensors writes weights and a .json card."
)


def main():
  """Exports with the flags."""
  from experiments import common
  from fcrn_jax.predictor import Predictor, artefact

  common.start()
  output = pathlib.Path(_OUTPUT.value)
  if output.suffix == ".safetensors":
    if not _WORKDIR.value:
      raise ValueError("weights are written of one --workdir; pass it.")
    artefact.save_weights(output, _WORKDIR.value, _STEP.value)
  else:
    Predictor.load(
      _WORKDIR.value,
      semantic=_SEMANTIC.value,
      localization=_LOCALIZATION.value,
      step=_STEP.value,
    ).save(output)
  print(f"{output}: {output.stat().st_size / 2**20:.1f} MiB")


if __name__ == "__main__":
  flags.mark_flag_as_required("output")
  command.run(main)
