"""Tiles cover a map once, and go where they came from."""

import itertools

import numpy as np
import pytest

from fcrn_jax import tiling


@pytest.mark.parametrize("length", [10, 32, 33, 100, 257])
@pytest.mark.parametrize("overlap", [0, 1, 4, 16])
def test_weights_add_up_to_one(length, overlap):
  total = np.zeros(length)
  for span in tiling.spans(length, 32, overlap):
    assert span.start >= 0 and span.stop <= max(length, 32)
    stop = span.first + len(span.weights)
    assert span.start <= span.first and stop <= span.stop
    total[span.first : stop] += span.weights
  np.testing.assert_allclose(total, 1, atol=1e-6)


@pytest.mark.parametrize("shifts", [1, 2])
def test_tiles_of_a_map_make_the_map(shifts):
  # The image ends within the last span: 2 x 2 maps a cell, one column less.
  height, width = 50 * shifts, 71 * shifts - (shifts > 1)
  whole = np.random.default_rng(0).random((height, width))
  total = np.zeros_like(whole)
  spans = [tiling.spans(length, 32, 8) for length in (50, 71)]
  for rows, columns in itertools.product(*spans):
    y, x = rows.start * shifts, columns.start * shifts
    tile = whole[y : y + 32 * shifts, x : x + 32 * shifts]
    place = tiling.place(rows, columns, whole.shape, shifts)
    total[place.target] += place.weight * tile[place.source]
  np.testing.assert_allclose(total, whole, rtol=1e-6)
