"""Heads, options and outputs of the whole network, on the tiny one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fcrn_jax import models
from fcrn_jax.models import fcrn as fcrn_module
from fcrn_jax.models.fcrn import Classifier
from tests.networks import random_variables

HEADS = {"semantic": 4, "boxes": 3}


def _images(batch=2, height=33, width=46):
  rng = np.random.default_rng(0)
  return jnp.asarray(rng.normal(size=(batch, height, width, 3)), jnp.float32)


def _create(**options):
  model = models.create("fcrn_tiny", HEADS, **options)
  return model, jax.jit(model.init)(jax.random.key(0), _images())


def test_outputs_have_the_contracts_shapes():
  model, variables = _create()
  out = jax.jit(model.apply)(variables, _images())
  assert model.stride == 4 and dict(model.heads) == HEADS
  assert out["semantic"].shape == (2, 9, 12, 4)  # ceil(33 / 4), ceil(46 / 4)
  assert out["boxes"].shape == (2, 9, 12, 3, 4)


def test_parameter_tree_has_the_contracts_names():
  _, variables = _create()
  assert set(variables) == {"params", "batch_stats"}
  params = variables["params"]
  assert set(params) == {"backbone", "semantic", "boxes"}
  assert set(params["backbone"]) == {
    "conv1", "bn1", "layer1_0", "layer2_0", "layer3_0", "layer4_0"
  }  # fmt: skip
  assert set(params["backbone"]["layer2_0"]) == {
    "conv1", "bn1", "conv2", "bn2", "downsample_conv", "downsample_bn"
  }  # fmt: skip
  assert params["backbone"]["conv1"]["kernel"].shape == (7, 7, 3, 4)
  assert set(params["backbone"]["bn1"]) == {"scale", "bias"}
  stats = variables["batch_stats"]["backbone"]
  assert set(stats["bn1"]) == {"mean", "var"}
  bottleneck = jax.eval_shape(
    models.create("fcrn50_s8_k1_d1", {}).init, jax.random.key(0), _images()
  )["params"]["backbone"]["layer3_0"]
  assert set(bottleneck) == {
    "conv1", "bn1", "conv2", "bn2", "conv3", "bn3",
    "downsample_conv", "downsample_bn",
  }  # fmt: skip


@pytest.mark.parametrize("classifier_width", [0, 8])
def test_coarser_network_is_every_second_cell(classifier_width):
  model = models.create(
    "fcrn18_s4_k3_d2", HEADS, width=8, classifier_width=classifier_width
  )
  variables = random_variables(model)
  fine = jax.jit(model.apply)(variables, _images())
  coarse = jax.jit(model.coarser(2).apply)(variables, _images())
  for head, maps in fine.items():
    expected = maps[:, ::2, ::2]
    assert float(jnp.abs(expected).max()) > 0.1
    np.testing.assert_allclose(coarse[head], expected, atol=1e-4, rtol=1e-4)
  assert model.coarser(1) == model
  with pytest.raises(ValueError, match="no network 4 times as coarse"):
    model.coarser(4)
  # A classifier of one pixel has no dilation, but a hidden layer before it.
  model = models.create(
    "fcrn18_s4_k1_d1", HEADS, width=8, classifier_width=classifier_width
  )
  if classifier_width:
    with pytest.raises(ValueError, match="no network 2 times as coarse"):
      model.coarser(2)
  else:
    assert model.coarser(2).stride == 8


def test_a_hidden_layer_of_many_channels_is_the_same_convolution(monkeypatch):
  head = Classifier(3, 1, 2, jnp.float32, width=256)
  x = jax.random.normal(jax.random.key(0), (1, 9, 8, 16))
  variables = head.init(jax.random.key(1), x)
  found = head.apply(variables, x)
  monkeypatch.setattr(fcrn_module, "_MANY", 1000)
  np.testing.assert_allclose(found, head.apply(variables, x), atol=1e-5)


def test_box_head_starts_near_one_box_unit():
  model, variables = _create(box_unit=32.0)
  bias = variables["params"]["boxes"]["classifier"]["bias"]
  assert bias.tolist() == [0, 0, 1, 1] * 3
  boxes = jax.jit(model.apply)(variables, _images())["boxes"]
  median = np.median(boxes, axis=(0, 1, 2, 3))
  np.testing.assert_allclose(median, [0, 0, 32, 32], atol=16)


def test_box_unit_scales_the_boxes_only():
  model, variables = _create()
  scaled, _ = _create(box_unit=8.0)
  out = jax.jit(model.apply)(variables, _images())
  out8 = jax.jit(scaled.apply)(variables, _images())
  np.testing.assert_allclose(out8["boxes"], 8 * out["boxes"], rtol=1e-5)
  np.testing.assert_allclose(out8["semantic"], out["semantic"], rtol=1e-5)


@pytest.mark.parametrize("options", [
  {"batch_norm": "local"}, {"classifier_width": 8, "remat": True}
])  # fmt: skip
def test_bfloat16_computes_in_half_and_keeps_float32(options):
  model, variables = _create(dtype=jnp.bfloat16, **options)
  exact, _ = _create(**options)
  assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype("float32")}

  def loss(params, model):
    out, _ = model.apply(
      {**variables, "params": params},
      _images(),
      train=True,
      capture=("layer2",),
      mutable=["batch_stats"],
    )
    assert out["semantic"].dtype == out["boxes"].dtype == jnp.float32
    assert out["layer2"].dtype == model.dtype
    return jnp.mean(out["semantic"] ** 2) + jnp.mean(out["boxes"] ** 2)

  grad = jax.jit(jax.value_and_grad(loss), static_argnums=1)
  (half, half_grads), (full, full_grads) = (
    grad(variables["params"], m) for m in (model, exact)
  )
  np.testing.assert_allclose(half, full, rtol=0.05)
  norms = [
    float(jnp.sqrt(sum(jnp.sum(g**2) for g in jax.tree.leaves(tree))))
    for tree in (half_grads, full_grads)
  ]
  assert {g.dtype for g in jax.tree.leaves(half_grads)} == {
    jnp.dtype("float32")
  }
  np.testing.assert_allclose(*norms, rtol=0.1)


def test_dropout_acts_in_training_only():
  model, variables = _create(dropout=True)
  plain, _ = _create()
  apply = jax.jit(model.apply, static_argnames="train")

  def train(key):
    rngs = {"dropout": jax.random.key(key)}
    return apply(variables, _images(), train=True, rngs=rngs)["semantic"]

  assert jnp.array_equal(train(0), train(0))
  assert not jnp.array_equal(train(0), train(1))
  assert jnp.array_equal(
    apply(variables, _images(), train=False)["semantic"],
    jax.jit(plain.apply)(variables, _images())["semantic"],
  )


def test_dropout_rates_are_those_of_the_last_two_blocks():
  model = models.create("fcrn50_s8_k5_d12", {}, dropout=True)
  rates = {}

  def record(next_fun, args, kwargs, context):
    if type(context.module).__name__ == "Block" and context.module.dropout:
      rates[context.module.name] = context.module.dropout
    return next_fun(*args, **kwargs)

  from flax import linen as nn

  with nn.intercept_methods(record):
    jax.eval_shape(model.init, jax.random.key(0), _images())
  assert rates == {"layer4_1": 0.3, "layer4_2": 0.5}


def test_captured_stages_are_the_backbones_features():
  model, variables = _create()
  stages = ("stem", "layer1", "layer2", "layer3", "layer4")
  out = jax.jit(lambda v, x: model.apply(v, x, capture=stages))(
    variables, _images()
  )
  shapes = {stage: out[stage].shape[1:] for stage in stages}
  # Stride 4 is reached by the stem and kept.
  assert shapes == {
    "stem": (9, 12, 4), "layer1": (9, 12, 4), "layer2": (9, 12, 8),
    "layer3": (9, 12, 16), "layer4": (9, 12, 32),
  }  # fmt: skip
  with pytest.raises(ValueError, match="layer5"):
    model.apply(variables, _images(), capture=("layer5",))


def test_no_heads_give_features_only():
  model = models.create("fcrn_tiny", {})
  variables = jax.jit(model.init)(jax.random.key(0), _images())
  out = model.apply(variables, _images(), capture=("layer4",))
  assert set(out) == {"layer4"} and set(variables["params"]) == {"backbone"}


def test_vmap_over_images_equals_the_batch():
  model, variables = _create()
  batch = jax.jit(model.apply)(variables, _images())
  single = jax.jit(jax.vmap(lambda image: model.apply(variables, image[None])))(
    _images()
  )
  for head in HEADS:
    np.testing.assert_allclose(single[head][:, 0], batch[head], atol=1e-4)


def test_width_scales_all_channels():
  model, variables = _create(width=128)
  backbone = variables["params"]["backbone"]
  assert backbone["conv1"]["kernel"].shape[-1] == 8
  assert backbone["layer4_0"]["conv2"]["kernel"].shape == (3, 3, 64, 64)
  assert model.spec.num_params(HEADS, width=128) == sum(
    x.size for x in jax.tree.leaves(variables["params"])
  )


def test_local_batch_norm_trains_from_random_weights():
  """A few steps lower the loss: gradients reach every parameter."""
  model, variables = _create(batch_norm="local")
  target = (jnp.arange(12) % 4)[None, None].repeat(9, 1).repeat(2, 0)

  @jax.jit
  def step(variables):
    def loss(params):
      out, stats = model.apply(
        {**variables, "params": params},
        _images(),
        train=True,
        mutable=["batch_stats"],
      )
      logp = jax.nn.log_softmax(out["semantic"])
      nll = -jnp.take_along_axis(logp, target[..., None], -1).mean()
      return nll + 0.01 * jnp.mean(out["boxes"] ** 2), stats

    (value, stats), grads = jax.value_and_grad(loss, has_aux=True)(
      variables["params"]
    )
    params = jax.tree.map(lambda p, g: p - 0.1 * g, variables["params"], grads)
    return {"params": params, **stats}, value, grads

  values = []
  for _ in range(20):
    variables, value, grads = step(variables)
    values.append(float(value))
  assert values[-1] < 0.7 * values[0]
  assert all(jnp.abs(g).max() > 0 for g in jax.tree.leaves(grads))


@pytest.mark.parametrize("options, message", [
  ({"heads": {"semantics": 3}}, "heads is"),
  ({"heads": {"boxes": 0}}, "heads is"),
  ({"batch_norm": "global"}, "'frozen', 'local' or 'synced'"),
  ({"dtype": "float99"}, "dtype is 'float99'"),
  ({"dtype": "int8"}, "dtype is 'int8'"),
])  # fmt: skip
def test_mistakes_are_named(options, message):
  with pytest.raises(ValueError, match=message):
    models.create("fcrn_tiny", **{"heads": HEADS, **options})
