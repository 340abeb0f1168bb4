"""Writes a trained model as one file, or its weights with a model card.

  python -m experiments.export --workdir=W --output=model.fcrn
  python -m experiments.export --semantic=S --localization=L --output=model.fcrn
  python -m experiments.export --workdir=W --output=weights.safetensors

A file holds networks, grouping and settings for any image size on cpu, cuda
and tpu, for experiments.predict --workdir=model.fcrn or Predictor.load.
"""

import pathlib

from absl import flags

from experiments import command, networks

flags.adopt_module_key_flags(networks)
_OUTPUT = flags.DEFINE_string(
  "output", None, "The file; .safetensors writes weights and a .json card."
)


def main():
  """Exports with the flags."""
  from experiments import common
  from fcrn_jax.predictor import artefact

  common.start()
  output = pathlib.Path(_OUTPUT.value)
  if output.suffix == ".safetensors":
    artefact.save_weights(output, *networks.joint())
  else:
    networks.load().save(output)
  print(f"{output}: {output.stat().st_size / 2**20:.1f} MiB")


if __name__ == "__main__":
  flags.mark_flag_as_required("output")
  command.run(main)
