"""The gradients that are quick on a GPU against those of the plain forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fcrn_jax import models
from fcrn_jax.models import gradients, layers


def _random(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def _both(function, x, weights, dy):
  y, pull = jax.vjp(function, x, weights)
  return y, *pull(dy)


def _assert_close(got, expected, tolerance=3e-6):
  for ours, theirs in zip(got, expected, strict=True):
    assert ours.dtype == theirs.dtype
    scale = np.abs(theirs).max()
    np.testing.assert_allclose(ours / scale, theirs / scale, atol=tolerance)


@pytest.mark.parametrize("dilation", [1, 2, 3, 4])
@pytest.mark.parametrize("height, width", [(1, 3), (8, 16), (9, 14)])
def test_dilated_convolution(height, width, dilation):
  x, kernel = _random(2, height, width, 5), _random(3, 3, 5, 7, seed=1)
  dy = _random(2, height, width, 7, seed=2)

  def lax_conv(x, kernel):
    return jax.lax.conv_general_dilated(
      x, kernel, (1, 1), [(dilation, dilation)] * 2,
      rhs_dilation=(dilation, dilation),
      dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )  # fmt: skip

  ours = _both(lambda x, k: gradients.conv(x, k, dilation), x, kernel, dy)
  _assert_close(ours, _both(lax_conv, x, kernel, dy))


def test_spaced_cells():
  # Cells 0 2 4 and 1 3 (and one of zeros) of both axes.
  x = jnp.arange(1.0, 26).reshape(1, 5, 5, 1)
  parts = gradients.spaced_cells(x, 2)[..., 0]
  np.testing.assert_array_equal(
    parts[0], [[1, 3, 5], [11, 13, 15], [21, 23, 25]]
  )
  np.testing.assert_array_equal(parts[1], [[2, 4, 0], [12, 14, 0], [22, 24, 0]])
  np.testing.assert_array_equal(parts[3], [[7, 9, 0], [17, 19, 0], [0, 0, 0]])


@pytest.mark.parametrize("shape", [(4, 6, 5), (3, 7, 7), (1, 1, 9)])
def test_product(shape):
  x, matrix = _random(*shape, 8), _random(8, 3, seed=1)
  dy = _random(*shape, 3, seed=2)
  ours = _both(lambda x, m: gradients.product(x, m, x.dtype), x, matrix, dy)
  _assert_close(ours, _both(jnp.matmul, x, matrix, dy))


def test_product_in_half_precision_has_gradients_of_half_precision():
  x, matrix = (
    jnp.asarray(a, jnp.bfloat16)
    for a in (_random(2, 6, 5, 8), _random(8, 3, seed=1))
  )
  dy = _random(2, 6, 5, 3, seed=2)
  ours = _both(lambda x, m: gradients.product(x, m, jnp.float32), x, matrix, dy)
  assert [z.dtype for z in ours] == [jnp.float32, jnp.bfloat16, jnp.bfloat16]
  exact = _both(
    jnp.matmul, *(np.asarray(a, np.float32) for a in (x, matrix)), dy
  )
  _assert_close([z.astype(jnp.float32) for z in ours], exact, 1e-2)


def test_num_parts():
  # 256 blocks of results: 16 of them need 16 parts, two need 128, of which
  # 144 is the next divisor of 16 x 126 rows.
  assert gradients.num_parts(16, 63, 16) == 16
  assert gradients.num_parts(16, 126, 2) == 144
  assert gradients.num_parts(16, 63, 300) == 1
  assert gradients.num_parts(2, 3, 1) == 6


def test_a_network_for_a_gpu_is_the_same_network(monkeypatch):
  # Every form that a GPU takes, on the CPU.
  images = _random(2, 32, 40, 3)
  model = models.create("fcrn50_s8_k3_d2", {"semantic": 3}, width=8)
  variables = model.init(jax.random.key(0), images, train=False)

  def loss(params):
    out = model.apply({**variables, "params": params}, images, train=True)
    return jnp.sum(jnp.sin(out["semantic"]))

  plain = jax.value_and_grad(loss)(variables["params"])
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  assert layers.gradients.pays(images)
  quick = jax.value_and_grad(loss)(variables["params"])
  _assert_close(jax.tree.leaves(quick), jax.tree.leaves(plain), 1e-4)
