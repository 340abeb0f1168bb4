"""Every name: shapes, sizes, fields of view and the paper's figures."""

import re

import jax
import jax.numpy as jnp
import pytest

from fcrn_jax import models

# Parameters with heads {"semantic": 21} | {"boxes": 20}. A name that
# list_models gives without an entry here fails test_zoo_and_goldens_agree.
GOLDEN = {
  "fcrn50_s16_k3_d6": (23_895_125, 24_982_672),
  "fcrn50_s8_k3_d6": (23_895_125, 24_982_672),
  "fcrn50_s8_k3_d12": (23_895_125, 24_982_672),
  "fcrn50_s8_k3_d18": (23_895_125, 24_982_672),
  "fcrn50_s8_k5_d6": (24_583_253, 27_604_112),
  "fcrn50_s8_k5_d12": (24_583_253, 27_604_112),
  "fcrn50_s8_k7_d6": (25_615_445, 31_536_272),
  "fcrn101_s16_k3_d6": (42_887_253, 43_974_800),
  "fcrn101_s8_k3_d6": (42_887_253, 43_974_800),
  "fcrn101_s8_k3_d12": (42_887_253, 43_974_800),
  "fcrn101_s8_k3_d18": (42_887_253, 43_974_800),
  "fcrn101_s8_k5_d6": (43_575_381, 46_596_240),
  "fcrn101_s8_k5_d12": (43_575_381, 46_596_240),
  "fcrn101_s8_k7_d6": (44_607_573, 50_528_400),
  "fcrn50_s8_k5_d18": (24_583_253, 27_604_112),
  "fcrn50_s8_k7_d12": (25_615_445, 31_536_272),
  "fcrn152_s16_k3_d6": (58_530_901, 59_618_448),
  "fcrn152_s8_k3_d6": (58_530_901, 59_618_448),
  "fcrn152_s8_k3_d12": (58_530_901, 59_618_448),
  "fcrn152_s8_k3_d18": (58_530_901, 59_618_448),
  "fcrn152_s8_k5_d6": (59_219_029, 62_239_888),
  "fcrn152_s8_k5_d12": (59_219_029, 62_239_888),
  "fcrn152_s8_k7_d6": (60_251_221, 66_172_048),
  "fcrn18_s2_k3_d6": (11_273_301, 11_545_232),
  "fcrn18_s4_k3_d2": (11_273_301, 11_545_232),
  "fcrn18_s4_k3_d6": (11_273_301, 11_545_232),
  "fcrn18_s8_k3_d2": (11_273_301, 11_545_232),
  "fcrn18_s8_k3_d12": (11_273_301, 11_545_232),
  "fcrn34_s2_k3_d6": (21_381_461, 21_653_392),
  "fcrn34_s4_k3_d6": (21_381_461, 21_653_392),
  "fcrn34_s8_k5_d12": (21_553_493, 22_308_752),
  "fcrn50_s4_k5_d12": (24_583_253, 27_604_112),
}


def test_zoo_and_goldens_agree():
  assert sorted(models.list_models()) == sorted(GOLDEN)


@pytest.mark.parametrize("name", models.list_models())
def test_every_name_has_its_size_and_shapes(name):
  spec = models.spec(name)
  model = models.create(name, {"semantic": 21, "boxes": 20})
  images = jnp.zeros((1, 65, 70, 3))
  out, variables = jax.eval_shape(
    lambda: model.init_with_output(jax.random.key(0), images)
  )
  sizes = {
    part: sum(x.size for x in jax.tree.leaves(tree))
    for part, tree in variables["params"].items()
  }
  for head, expected in zip(("semantic", "boxes"), GOLDEN[name], strict=True):
    assert sizes["backbone"] + sizes[head] == expected
  cells = -(-65 // spec.stride), -(-70 // spec.stride)
  assert out["semantic"].shape == (1, *cells, 21)
  assert out["boxes"].shape == (1, *cells, 20, 4)


@pytest.mark.parametrize("name, field_of_view", [
  # The FoV column of Tables 1 and 3.
  ("fcrn50_s16_k3_d6", 208), ("fcrn50_s8_k3_d6", 104),
  ("fcrn50_s8_k3_d12", 200), ("fcrn50_s8_k3_d18", 296),
  ("fcrn101_s8_k5_d6", 200), ("fcrn101_s8_k5_d12", 392),
  ("fcrn50_s8_k5_d18", 584), ("fcrn152_s8_k7_d6", 296),
  ("fcrn50_s8_k7_d12", 584),
])  # fmt: skip
def test_fields_of_view_are_the_papers(name, field_of_view):
  assert models.spec(name).field_of_view == field_of_view


def test_field_of_view_is_what_reaches_a_cell():
  # The gradient of the middle cell's score on the top features: k3 d2 sees
  # features up to 2 away, that is 5 cells of 4 pixels.
  from fcrn_jax.models.layers import wide_conv

  kernel = jnp.ones((3, 3, 1, 1))
  reach = jax.grad(lambda x: wide_conv(x, kernel, 2)[0, 8, 8, 0])(
    jnp.zeros((1, 17, 17, 1))
  )[0, :, :, 0]
  rows = jnp.flatnonzero(reach.any(1))
  assert (int(rows[-1] - rows[0]) + 1) * 4 == 20
  assert models.spec("fcrn18_s4_k3_d2").field_of_view == 20


@pytest.mark.parametrize("name", ["fcrn18_s4_k3_d6", "fcrn50_s8_k5_d12"])
def test_num_params_counts_the_heads_asked_for(name):
  spec = models.spec(name)
  counts = spec.num_params({"semantic": 21}), spec.num_params({"boxes": 20})
  assert counts == GOLDEN[name]


def test_spec_reads_the_name():
  spec = models.spec("fcrn101_s16_k3_d6")
  found = (spec.depth, spec.stride, spec.kernel, spec.dilation)
  assert found == (101, 16, 3, 6)
  assert models.spec("fcrn_tiny").num_params({"semantic": 3}) < 30_000


def test_paper_rows_have_the_papers_figures():
  best = models.spec("fcrn101_s8_k5_d12").paper
  by_setting = {(r.table, r.dataset, r.setting): r for r in best}
  assert by_setting[1, "voc2012", "vanilla"].mean_iou == 73.41
  assert by_setting[7, "voc2012", "512 pixels"].mean_iou == 74.80
  assert by_setting[3, "cityscapes", "vanilla"].mean_accuracy == 79.17
  coco = by_setting[6, "voc2012_sbd", "512 pixels, weighted, COCO"]
  assert (coco.ap_r_05, coco.ap_r_07, coco.ap_r_vol) == (61.5, 46.6, 56.4)
  rows = [r for name in models.list_models() for r in models.spec(name).paper]
  # Rows that name a network: Table 1 has 14, Table 3 has 23, Table 6 five;
  # Table 7's eight less the two without bootstrapping, which repeat others.
  tables = [r.table for r in rows]
  assert [tables.count(t) for t in (1, 3, 6, 7)] == [14, 23, 5, 6]


@pytest.mark.parametrize("wrong, close", [
  ("fcrn101_s8_k5_d21", "fcrn101_s8_k5_d12"),
  ("fcrn110_s8_k5_d12", "fcrn101_s8_k5_d12"),
  ("fcrn50_s8_k4_d6", "fcrn50_s8_k\\d_d6"),
  ("fcrn-tiny", "fcrn_tiny"),
])  # fmt: skip
def test_an_unknown_name_suggests_the_closest(wrong, close):
  with pytest.raises(ValueError, match="Did you mean") as error:
    models.spec(wrong)
  assert re.search(rf"Did you mean '{close}", str(error.value))
