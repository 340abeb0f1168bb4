"""Padded images through a network that is told where they end."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fcrn_jax import models
from tests import workdirs


@pytest.mark.parametrize("name, settings", [
  ("fcrn_tiny", {}),
  ("fcrn_tiny", {"caffe_pool": True, "classifier_width": 8}),
  ("fcrn18_s8_k3_d12", {"width": 4, "stride_in_1x1": False}),
  ("fcrn50_s16_k5_d6", {"width": 4}),
])  # fmt: skip
def test_outputs_are_those_without_the_padding(name, settings):
  rng = np.random.default_rng(0)
  model = models.create(
    name, {"semantic": 3, "boxes": 2}, batch_norm="local", **settings
  )
  variables = workdirs.draw(model, rng)
  # Biases and means that padding would otherwise pick up.
  variables = jax.tree.map(
    lambda x: x + 0.05 * rng.normal(size=x.shape) ** 2, variables
  )
  sizes = np.int32([[90, 117], [64, 64], [33, 128]])
  # Whatever the padding holds, it is not seen.
  images = rng.normal(0, 100, (3, 96, 128, 3)).astype(np.float32)
  padded = jax.jit(models.apply_within, static_argnums=0)(
    model, variables, images, sizes
  )
  plain = jax.jit(lambda v, x: model.apply(v, x, train=False))
  for index, (height, width) in enumerate(sizes):
    alone = plain(variables, images[index : index + 1, :height, :width])
    for head, expected in alone.items():
      h, w = expected.shape[1:3]
      assert (h, w) == (-(-height // model.stride), -(-width // model.stride))
      np.testing.assert_allclose(
        padded[head][index, :h, :w],
        expected[0],
        atol=2e-5 * jnp.abs(expected).max(),
      )


def test_a_whole_image_is_as_ever():
  model = models.create("fcrn_tiny", {"semantic": 3})
  variables = workdirs.draw(model, np.random.default_rng(1))
  images = np.random.default_rng(2).normal(size=(2, 64, 96, 3))
  images = images.astype(np.float32)
  whole = np.int32([[64, 96]] * 2)
  np.testing.assert_array_equal(
    models.apply_within(model, variables, images, whole)["semantic"],
    model.apply(variables, images, train=False)["semantic"],
  )


def test_an_end_beyond_the_reach_of_short_products_is_found():
  # 46,368 cells times as many pixels are more than 2^31.
  model = models.create("fcrn_tiny", {"semantic": 2})
  variables = workdirs.draw(model, np.random.default_rng(1))
  images = np.ones((1, 46_368, 4, 3), np.float32)
  whole = np.int32([images.shape[1:3]])
  np.testing.assert_allclose(
    models.apply_within(model, variables, images, whole)["semantic"],
    model.apply(variables, images, train=False)["semantic"],
    atol=1e-4,
  )
