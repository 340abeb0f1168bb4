"""Fast forms against plain loops and lax; normalisation modes."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fcrn_jax.models import layers


def _random(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def _loop_conv(x, kernel, stride, dilation):
  """Definition: output (i, j) is centred on input (i stride, j stride)."""
  b, height, width, _ = x.shape
  size, reach = kernel.shape[0], kernel.shape[0] // 2
  out = np.zeros(
    (b, -(-height // stride), -(-width // stride), kernel.shape[3])
  )
  for i in range(out.shape[1]):
    for j in range(out.shape[2]):
      for r in range(size):
        for c in range(size):
          y = i * stride + (r - reach) * dilation
          x0 = j * stride + (c - reach) * dilation
          if 0 <= y < height and 0 <= x0 < width:
            out[:, i, j] += x[:, y, x0].astype(np.float64) @ kernel[r, c]
  return out


def _lax_conv(x, kernel, stride, dilation):
  padding = dilation * (kernel.shape[0] // 2)
  return jax.lax.conv_general_dilated(
    x,
    kernel,
    (stride, stride),
    [(padding, padding)] * 2,
    rhs_dilation=(dilation, dilation),
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
    precision="highest",
  )


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size, dilation", [(1, 1), (3, 1), (3, 2), (7, 1)])
@pytest.mark.parametrize("height, width", [(1, 3), (6, 9)])
def test_conv_is_its_definition(height, width, size, dilation, stride):
  x, kernel = _random(2, height, width, 3), _random(size, size, 3, 5)
  got = layers.conv(x, kernel, stride, dilation)
  np.testing.assert_allclose(
    got, _loop_conv(x, kernel, stride, dilation), atol=1e-4
  )


@pytest.mark.parametrize("size, dilation", [(1, 1), (3, 2), (3, 12), (5, 6)])
@pytest.mark.parametrize("height, width", [(1, 1), (5, 8), (20, 13)])
def test_wide_conv_is_its_definition(height, width, size, dilation):
  # Dilations of 6 and 12 reach beyond the smaller maps altogether.
  x, kernel = _random(2, height, width, 4), _random(size, size, 4, 3)
  np.testing.assert_allclose(
    layers.wide_conv(x, kernel, dilation),
    _loop_conv(x, kernel, 1, dilation),
    atol=1e-4,
  )


@pytest.mark.parametrize("form", ["conv", "wide_conv"])
@pytest.mark.parametrize("size, stride, dilation", [
  (1, 1, 1), (1, 2, 1), (3, 1, 1), (3, 1, 4), (3, 2, 1), (7, 2, 1),
])  # fmt: skip
def test_gradients_equal_those_of_lax(form, size, stride, dilation):
  if form == "wide_conv" and stride > 1:
    pytest.skip("the classifier has no stride")
  x, kernel = _random(2, 9, 11, 16), _random(size, size, 16, 32, seed=1)

  def fast(x, kernel):
    if form == "wide_conv":
      return layers.wide_conv(x, kernel, dilation)
    return layers.conv(x, kernel, stride, dilation)

  y, pull_fast = jax.vjp(jax.jit(fast), x, kernel)
  y2, pull = jax.vjp(lambda x, k: _lax_conv(x, k, stride, dilation), x, kernel)
  np.testing.assert_allclose(y, y2, atol=1e-3)
  cotangent = _random(*y.shape, seed=2)
  for got, expected in zip(pull_fast(cotangent), pull(cotangent), strict=True):
    np.testing.assert_allclose(got, expected, atol=2e-3)


def test_conv_under_vmap():
  x, kernel = _random(3, 2, 9, 9, 4), _random(3, 3, 4, 5)
  got = jax.vmap(lambda x: layers.conv(x, kernel, 1, 2))(x)
  for i in range(3):
    np.testing.assert_allclose(
      got[i], layers.conv(x[i], kernel, 1, 2), atol=1e-4
    )


def test_max_pool_pads_symmetrically():
  x = jnp.arange(1.0, 8)[None, :, None, None] * -1  # -1 ... -7 in a column
  # Windows of 3 centred on rows 0, 2, 4, 6; the padding never wins.
  assert layers.max_pool(x)[0, :, 0, 0].tolist() == [-1, -2, -4, -6]
  # Stride removed, then dilated by 2: centred on every row, rows i-2, i, i+2.
  dilated = layers.max_pool(x, 1, 2)[0, :, 0, 0].tolist()
  assert dilated == [-1, -2, -1, -2, -3, -4, -5]


class _Normed(nn.Module):
  mode: str

  @nn.compact
  def __call__(self, x, train):
    conv = layers.Conv(4, 1, name="conv")
    return layers.BatchNorm(self.mode, name="bn")(conv, x, train)


def _variables(mode, x):
  variables = _Normed(mode).init(jax.random.key(0), x, False)
  stats = {"mean": _random(4), "var": np.abs(_random(4, seed=1)) + 0.1}
  affine = {"scale": _random(4, seed=2), "bias": _random(4, seed=3)}
  kernel = variables["params"]["conv"]
  return {
    "params": {"conv": kernel, "bn": affine},
    "batch_stats": {"bn": stats},
  }


def _expected(variables, y, mean, var):
  bn = variables["params"]["bn"]
  return (y - mean) / (var + 1e-5) ** 0.5 * bn["scale"] + bn["bias"]


@pytest.mark.parametrize("train", [False, True])
def test_frozen_norm_uses_and_keeps_the_running_statistics(train):
  x = _random(2, 5, 5, 3)
  variables = _variables("frozen", x)
  got, updated = _Normed("frozen").apply(
    variables, x, train, mutable=["batch_stats"]
  )
  stats = variables["batch_stats"]["bn"]
  y = x @ np.asarray(variables["params"]["conv"]["kernel"])[0, 0]
  np.testing.assert_allclose(
    got, _expected(variables, y, stats["mean"], stats["var"]), atol=1e-4
  )
  jax.tree.map(
    np.testing.assert_array_equal,
    updated["batch_stats"],
    variables["batch_stats"],
  )
  grads = jax.grad(
    lambda p: jnp.sum(
      _Normed("frozen").apply({**variables, "params": p}, x, train) ** 2
    )
  )(variables["params"])
  assert all(jnp.abs(g).max() > 0 for g in jax.tree.leaves(grads))


@pytest.mark.parametrize("mode", ["frozen", "local"])
def test_gradients_of_norm_are_those_of_its_definition(mode):
  x, dy = _random(2, 5, 5, 3), _random(2, 5, 5, 4)
  variables = _variables(mode, x)

  def ours(params, x):
    return _Normed(mode).apply(
      {**variables, "params": params}, x, True, mutable=["batch_stats"]
    )[0]

  def defined(params, x):
    y = jnp.einsum("bhwi,io->bhwo", x, params["conv"]["kernel"][0, 0])
    stats = variables["batch_stats"]["bn"]
    if mode == "local":
      stats = {"mean": y.mean((0, 1, 2)), "var": y.var((0, 1, 2))}
    return _expected({"params": params}, y, stats["mean"], stats["var"])

  expected = jax.vjp(defined, variables["params"], x)[1](dy)
  got = jax.vjp(ours, variables["params"], x)[1](dy)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), got, expected
  )


@pytest.mark.parametrize("mode", ["frozen", "local"])
def test_gradients_take_products_for_sums(mode):
  # XLA's CPU program would sum over pixels on one thread, and turn maps of
  # four axes around for products of 1 x 1 kernels.
  x, dy = _random(2, 16, 16, 8), _random(2, 16, 16, 4)
  variables = _variables(mode, x)

  def gradients(variables, x, dy):
    def output(params, x):
      return _Normed(mode).apply(
        {**variables, "params": params}, x, True, mutable=["batch_stats"]
      )[0]

    return jax.vjp(output, variables["params"], x)[1](dy)

  text = jax.jit(gradients).lower(variables, x, dy).compile().as_text()
  shapes = dict(re.findall(r"%(\S+) = f32\[([\d,]*)\]", text))
  summed = re.findall(r" reduce(?:-window)?\(%([^,)]+)", text)
  assert [s for s in summed if shapes[s].startswith("2,16,16")] == []
  assert "f32[4,512]" not in text


def test_local_norm_uses_the_batch_and_updates_the_running_statistics():
  x = _random(2, 5, 5, 3)
  variables = _variables("local", x)
  got, updated = _Normed("local").apply(
    variables, x, True, mutable=["batch_stats"]
  )
  y = x @ np.asarray(variables["params"]["conv"]["kernel"])[0, 0]
  mean, var = y.mean((0, 1, 2)), y.var((0, 1, 2))
  np.testing.assert_allclose(got, _expected(variables, y, mean, var), atol=1e-4)
  old, new = variables["batch_stats"]["bn"], updated["batch_stats"]["bn"]
  np.testing.assert_allclose(
    new["mean"], 0.9 * old["mean"] + 0.1 * mean, atol=1e-5
  )
  np.testing.assert_allclose(
    new["var"], 0.9 * old["var"] + 0.1 * var, atol=1e-5
  )


def test_synced_norm_sees_the_batch_of_all_devices():
  x = _random(8, 5, 5, 3) * np.arange(1, 9)[:, None, None, None]
  variables = _variables("synced", x[:2])
  whole, whole_stats = _Normed("local").apply(
    variables, x, True, mutable=["batch_stats"]
  )
  parts, stats = jax.pmap(
    lambda x: _Normed("synced").apply(
      variables, x, True, mutable=["batch_stats"]
    ),
    axis_name="batch",
  )(x.reshape(4, 2, 5, 5, 3))
  np.testing.assert_allclose(parts.reshape(whole.shape), whole, atol=1e-4)
  for device in range(4):
    jax.tree.map(
      lambda a, b, d=device: np.testing.assert_allclose(a[d], b, rtol=1e-4),
      stats,
      whole_stats,
    )


def test_add_relu_is_relu_of_the_sum():
  rng = np.random.default_rng(0)
  x, y, dy = rng.normal(size=(3, 1, 9, 9, 4)).astype(np.float32)
  x[0, 0], y[0, 0] = 0, 0
  expected, backward = jax.vjp(lambda x, y: nn.relu(x + y), x, y)
  actual, backward_of_ours = jax.vjp(layers.add_relu, x, y)
  np.testing.assert_array_equal(actual, expected)
  for ours, theirs in zip(backward_of_ours(dy), backward(dy), strict=True):
    np.testing.assert_array_equal(ours, theirs)


def test_initial_kernels_of_several_keys_at_once():
  keys = jax.random.split(jax.random.key(3), 2)
  draw = lambda key: layers.he_normal()(key, (3, 3, 4, 8))  # noqa: E731
  both = jax.vmap(draw)(keys)
  for member, key in zip(both, keys, strict=True):
    np.testing.assert_array_equal(member, draw(key))
