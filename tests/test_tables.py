"""The zoo's table: its numbers against known ones."""

from experiments import tables
from fcrn_jax import models


def test_work_and_parameters_of_resnet_50():
  """3.86e9 products at 224 (He et al.: 3.8e9), those with padding counted.

  23,508,032 parameters without its classifier, then 2048 x 21 + 21 of ours.
  """
  params, flops = tables._cost("fcrn50_s32_k1_d1", 512)
  assert params == 23_508_032 + 2048 * 21 + 21
  expected = 2 * 3.86e9 * (512 / 224) ** 2
  assert 0.96 * expected < flops < expected


def test_rows_of_the_zoo(monkeypatch):
  monkeypatch.setattr(models, "list_models", lambda: ["fcrn50_s16_k3_d6"])
  header, row = tables.zoo(64)
  assert row[:2] == ("fcrn50_s16_k3_d6", "208")
  assert row[4] == "69.09 (1); 66.41 (3)"
  lines = tables.text([header, row]).splitlines()
  assert lines[0].index("Mparams") == lines[1].index("23.90")
