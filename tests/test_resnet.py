"""The backbones: dilation rule, exactness across strides, known sizes."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fcrn_jax import cpu
from fcrn_jax.models import resnet
from fcrn_jax.models.resnet import ResNet, Step


def _random_variables(model, images):
  """Random kernels and random BatchNorm parameters and statistics."""
  shapes = jax.eval_shape(
    lambda: model.init(jax.random.key(0), images, train=False)
  )
  rng = np.random.default_rng(0)

  def draw(path, shape):
    if path[-1].key == "kernel":
      fan_in = np.prod(shape.shape[:-1])
      values = rng.normal(size=shape.shape) / np.sqrt(fan_in)
    elif path[-1].key in ("scale", "var"):
      values = rng.uniform(0.5, 1.5, shape.shape)
    else:
      values = rng.normal(size=shape.shape) * 0.1
    return jnp.asarray(values, jnp.float32)

  return jax.tree_util.tree_map_with_path(draw, shapes)


def test_down_samplings_removes_the_last_ones_first():
  # conv1, max-pool, layer2, layer3, layer4 as (stride, before, after).
  assert resnet.down_samplings(32) == [Step(2, 1, 1)] * 5
  assert resnet.down_samplings(8) == [Step(2, 1, 1)] * 3 + [
    Step(1, 1, 2), Step(1, 2, 4),
  ]  # fmt: skip
  assert resnet.down_samplings(1) == [
    Step(1, 1, 2), Step(1, 2, 4), Step(1, 4, 8), Step(1, 8, 16),
    Step(1, 16, 32),
  ]  # fmt: skip
  with pytest.raises(ValueError, match="output_stride is 12"):
    resnet.down_samplings(12)


@pytest.mark.parametrize("stride_in_1x1, expected", [
  # Stride 8: layer3 loses its stride first, layer4 after it. With the stride
  # in the 1 x 1, a block's own 3 x 3 is already dilated; else it is not yet.
  (True, {"layer2_0": 1, "layer3_0": 2, "layer3_1": 2, "layer4_0": 4}),
  (False, {"layer2_0": 1, "layer3_0": 1, "layer3_1": 2, "layer4_0": 2,
           "layer4_1": 4}),
])  # fmt: skip
def test_dilation_rule_follows_the_place_of_the_stride(stride_in_1x1, expected):
  model = ResNet(50, 8, 4, stride_in_1x1=stride_in_1x1)
  images = jnp.zeros((1, 32, 32, 3))
  found = {}

  def record(next_fun, args, kwargs, context):
    module = context.module
    if type(module).__name__ == "Conv" and module.size == 3:
      found[module.path[0]] = module.dilation
    return next_fun(*args, **kwargs)

  with jax.disable_jit(), resnet.nn.intercept_methods(record):
    jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=False))
  assert {name: found[name] for name in expected} == expected


@pytest.mark.parametrize("depth, stride_in_1x1, size, strides", [
  (18, True, (65, 97), (16, 8, 4, 2, 1)),
  (50, True, (64, 96), (8, 1)),
  (50, False, (65, 97), (8, 1)),
  (50, False, (33, 30), (16, 2)),
])  # fmt: skip
def test_dense_output_subsampled_is_the_sparse_output(
  depth, stride_in_1x1, size, strides
):
  """Down to stride 1: pooling and stem removed too.

  To the rounding of float64: whether the last bits are equal too depends on
  how XLA cuts its sums, which differs by machine.
  """
  images = np.random.default_rng(1).normal(size=(1, *size, 3))
  make = functools.partial(
    ResNet, depth, width=8, stride_in_1x1=stride_in_1x1, dtype=jnp.float64
  )
  with jax.enable_x64(True):
    variables = jax.tree.map(
      lambda x: x.astype(jnp.float64), _random_variables(make(32), images)
    )

    def features(stride):
      apply = jax.jit(make(stride).apply, static_argnums=2)
      return np.asarray(apply(variables, images, False)["layer4"])

    sparse = features(32)
    largest = np.abs(sparse).max()
    assert largest > 0.1
    for stride in strides:
      dense, step = features(stride), 32 // stride
      assert dense.dtype == np.float64
      assert dense.shape[1:3] == tuple(-(-n // stride) for n in size)
      difference = np.abs(dense[:, ::step, ::step] - sparse).max()
      assert difference < 1e-13 * largest, stride


@pytest.mark.parametrize(
  ("stride_in_1x1", "prepared"), [(True, False), (False, False), (False, True)]
)
def test_full_width_stride_8_equals_stride_32(
  stride_in_1x1, prepared, monkeypatch
):
  monkeypatch.setattr(cpu, "prepared", prepared)
  images = jnp.asarray(
    np.random.default_rng(1).normal(size=(2, 129, 96, 3)), jnp.float32
  )
  make = functools.partial(ResNet, 50, stride_in_1x1=stride_in_1x1)
  variables = _random_variables(make(32), images)
  sparse, dense = (
    jax.jit(make(stride).apply, static_argnums=2)(variables, images, False)
    for stride in (32, 8)
  )
  difference = dense["layer4"][:, ::4, ::4] - sparse["layer4"]
  difference = float(jnp.abs(difference).max())
  if prepared:  # Winograd's form rounds otherwise
    assert 0 < difference < 2e-6 * float(jnp.abs(sparse["layer4"]).max())
  else:
    assert difference == 0.0


# torchvision's counts less the classifier (512 or 2048 x 1000 + 1000).
@pytest.mark.parametrize("depth, count", [
  (18, 11_689_512 - 513_000),
  (34, 21_797_672 - 513_000),
  (50, 25_557_032 - 2_049_000),
  (101, 44_549_160 - 2_049_000),
  (152, 60_192_808 - 2_049_000),
])  # fmt: skip
@pytest.mark.parametrize("stride", [1, 8, 32])
def test_parameter_counts_are_torchvisions(depth, count, stride):
  variables = jax.eval_shape(
    lambda: ResNet(depth, stride).init(
      jax.random.key(0), jnp.zeros((1, 64, 64, 3)), train=False
    )
  )
  leaves = jax.tree.leaves(variables["params"])
  assert sum(leaf.size for leaf in leaves) == count


def test_remat_changes_nothing():
  images = jnp.asarray(
    np.random.default_rng(1).normal(size=(1, 33, 33, 3)), jnp.float32
  )
  grads = []
  for remat in (False, True):
    model = ResNet(10, 8, 8, remat=remat)
    variables = _random_variables(model, images)

    def loss(params, model=model, variables=variables):
      out = model.apply({**variables, "params": params}, images, train=True)
      return jnp.mean(out["layer4"] ** 2)

    program = str(jax.make_jaxpr(jax.grad(loss))(variables["params"]))
    assert ("remat" in program) == remat
    grads.append(jax.jit(jax.grad(loss))(variables["params"]))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), *grads)


def test_blocks_are_computed_once():
  # XLA's CPU program must not compute a block's output anew for each reader,
  # through the sums of all blocks before it.
  network = ResNet(34, output_stride=8, width=8)
  x = jnp.zeros((1, 64, 64, 3))
  variables = network.init(jax.random.key(0), x, False)
  forward = jax.jit(lambda variables, x: network.apply(variables, x, False))
  text = forward.lower(variables, x).compile().as_text()
  sums = re.findall(r"= \S+ fusion\((.*?)\), kind=kLoop", text)
  # Convolution and shortcut, each with scale, offset and statistics.
  assert sums
  assert max(len(operands.split(", ")) for operands in sums) <= 10
