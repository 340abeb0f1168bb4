"""The quick form of wide 3 x 3 convolutions against lax's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fcrn_jax import cpu
from fcrn_jax.models import layers, winograd


def _random(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def _lax_conv(x, kernel, dilation):
  return jax.lax.conv_general_dilated(
    x,
    kernel,
    (1, 1),
    [(dilation, dilation)] * 2,
    rhs_dilation=(dilation, dilation),
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
    precision="highest",
  )


@pytest.mark.parametrize("dilation", [1, 2, 4])
@pytest.mark.parametrize("height, width", [(1, 3), (8, 16), (9, 14), (21, 13)])
def test_values_and_gradients_are_those_of_a_convolution(
  height, width, dilation
):
  x, kernel = _random(2, height, width, 5), _random(3, 3, 5, 7, seed=1)
  gradient = _random(2, height, width, 7, seed=2)

  def both(conv):
    y, pull = jax.vjp(lambda x, kernel: conv(x, kernel, dilation), x, kernel)
    return y, *pull(gradient)

  for got, expected in zip(both(winograd.conv), both(_lax_conv), strict=True):
    scale = np.abs(expected).max()
    np.testing.assert_allclose(got / scale, expected / scale, atol=3e-6)


def test_gradient_of_a_gradient():
  x, kernel = _random(1, 6, 6, 2), _random(3, 3, 2, 3, seed=1)

  def penalty(conv):
    def loss(x, kernel):
      return jnp.sum(conv(x, kernel, 1) ** 3)

    slope = jax.grad(lambda k: jnp.sum(jax.grad(loss)(x, k) ** 2))(kernel)
    return slope / jnp.abs(slope).max()

  np.testing.assert_allclose(
    penalty(winograd.conv), penalty(_lax_conv), atol=1e-5
  )


def test_batched_by_vmap():
  x, kernels = _random(2, 6, 7, 3), _random(4, 3, 3, 3, 2, seed=1)
  got = jax.vmap(lambda k: winograd.conv(x, k, 2))(kernels)
  for part, kernel in zip(got, kernels, strict=True):
    np.testing.assert_allclose(part, _lax_conv(x, kernel, 2), atol=1e-4)


@pytest.mark.parametrize(
  "change",
  [
    {"dtype": jnp.bfloat16},
    {"stride": 2},
    {"size": 1},
    {"channels": 128},
    {"dilation": 16},  # tiles that cover 2.6 times the map
  ],
)
def test_where_it_does_not_pay(change, monkeypatch):
  def pays(size=3, channels=256, stride=1, dilation=2, dtype=jnp.float32):
    x = jnp.zeros((1, 20, 20, channels), dtype)
    kernel = jnp.zeros((size, size, channels, 256))
    return winograd.pays(x, kernel, stride, dilation)

  assert not pays()  # a process that was not prepared gets exact sums
  monkeypatch.setattr(cpu, "prepared", True)
  assert pays()
  assert not pays(**change)
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  assert not pays()


def test_layers_take_it_for_many_channels(monkeypatch):
  calls = []
  monkeypatch.setattr(cpu, "prepared", True)
  monkeypatch.setattr(
    winograd, "conv", lambda x, kernel, dilation: calls.append(dilation) or x
  )
  layers.conv(jnp.zeros((1, 16, 16, 256)), jnp.zeros((3, 3, 256, 256)), 1, 4)
  layers.conv(jnp.zeros((1, 16, 16, 16)), jnp.zeros((3, 3, 16, 16)), 1, 4)
  assert calls == [4]
