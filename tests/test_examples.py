"""The library as other people's code uses it; the examples of BUILD.md."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fcrn_jax as fcrn
from tests.networks import random_variables


@pytest.fixture(scope="module")
def network():
  """(model, variables, images) of a small joint network."""
  model = fcrn.models.create("fcrn_tiny", heads={"semantic": 4, "boxes": 3})
  images = np.random.default_rng(0).integers(0, 256, (2, 32, 48, 3), np.uint8)
  return model, random_variables(model), images


def test_features_of_any_stage(network):
  model, variables, images = network
  preprocess = fcrn.Preprocessing()

  apply = jax.jit(model.apply, static_argnames=("train", "capture"))
  out = apply(
    variables, preprocess(images), train=False, capture=("layer1", "layer4")
  )
  features = out["layer4"]  # b h w c

  assert features.shape[:3] == (2, 8, 12) == out["semantic"].shape[:3]
  assert out["layer1"].shape[:3] == (2, 8, 12)


def test_a_backbone_without_heads():
  model = fcrn.models.create("fcrn18_s8_k1_d1", heads={})
  shapes = jax.eval_shape(
    lambda x: model.init(jax.random.key(0), x, train=False),
    jnp.zeros((1, 64, 64, 3)),
  )
  assert set(shapes["params"]) == {"backbone"}


def test_heads_replaced(network):
  """From 3 categories to 7, with boxes left out."""
  _, trained, images = network

  model = fcrn.models.create("fcrn_tiny", heads={"semantic": 8})
  inputs = fcrn.Preprocessing()(images)
  fresh = random_variables(model, seed=1)  # or model.init
  variables = {
    "params": {**fresh["params"], "backbone": trained["params"]["backbone"]},
    "batch_stats": trained["batch_stats"],
  }
  apply = jax.jit(model.apply, static_argnames="train")
  out = apply(variables, inputs, train=False)

  assert out["semantic"].shape == (2, 8, 12, 8)


def test_fine_tuning_of_a_subset(network):
  """The heads and the last stage learn, the rest stays as it is."""
  model, variables, images = network
  inputs = fcrn.Preprocessing()(images)
  labels = np.random.default_rng(1).integers(0, 4, (2, 8, 12))

  def learns(path, _):
    names = [key.key for key in path]
    last = names[0] == "backbone" and names[1].startswith("layer4")
    return "learn" if names[0] != "backbone" or last else "keep"

  params = variables["params"]
  tx = optax.multi_transform(
    {"learn": optax.sgd(0.1, momentum=0.9), "keep": optax.set_to_zero()},
    jax.tree_util.tree_map_with_path(learns, params),
  )

  def loss_fn(params):
    out = model.apply({**variables, "params": params}, inputs, train=False)
    loss, _ = fcrn.losses.bootstrapped_cross_entropy(
      out["semantic"], labels, k=32
    )
    return loss

  opt_state = tx.init(params)
  loss, gradients = jax.jit(jax.value_and_grad(loss_fn))(params)
  updates, opt_state = tx.update(gradients, opt_state, params)
  tuned = optax.apply_updates(params, updates)

  assert loss > 0
  same = jax.tree.map(lambda a, b: bool((a == b).all()), params, tuned)
  assert all(jax.tree.leaves(same["backbone"]["conv1"]))
  assert all(jax.tree.leaves(same["backbone"]["layer1_0"]))
  assert not same["backbone"]["layer4_0"]["conv1"]["kernel"]
  assert not same["semantic"]["classifier"]["kernel"]


def test_vmap_over_an_ensemble_and_over_images(network):
  """Two sets of weights at once, their mean score, then voting per image."""
  model, variables, images = network
  inputs = fcrn.Preprocessing()(images)
  other = jax.tree.map(lambda x: x * 1.01, variables)

  both = jax.tree.map(lambda *x: jnp.stack(x), variables, other)
  apply = lambda v, x: model.apply(v, x, train=False)  # noqa: E731
  out = jax.jit(jax.vmap(apply, in_axes=(0, None)))(both, inputs)
  probs = jax.nn.softmax(out["semantic"]).mean(0)  # b h w c
  points = fcrn.boxes.cell_points(8, 12, model.stride, jnp)
  boxes = fcrn.boxes.decode(out["boxes"].mean(0), points[:, :, None])
  options = fcrn.instances.Options(max_instances=10)
  extract = lambda p, b: fcrn.instances.extract(  # noqa: E731
    p, b, options, stride=model.stride
  )
  found = jax.jit(jax.vmap(extract))(probs, boxes)

  assert found.masks.shape == (2, 10, 8, 12)
  # The boxes are in pixels of the image: one object that all cells agree on.
  one = jnp.tile(jnp.array([0.0, 0, 8, 12]) * model.stride, (2, 8, 12, 2, 1))
  sure = jnp.tile(jnp.array([0.1, 0.8, 0.1]), (2, 8, 12, 1))
  assert jax.vmap(extract)(sure, one).valid.sum(1).tolist() == [1, 1]
  alone = jax.jit(apply)(other, inputs)["semantic"]
  np.testing.assert_allclose(out["semantic"][1], alone, rtol=1e-4, atol=1e-4)


def test_gradient_of_a_score_to_the_image(network):
  """What pixels matter to the score of category 2 in the middle cell."""
  model, variables, images = network
  inputs = fcrn.Preprocessing()(images)

  def score(image):
    out = model.apply(variables, image[None], train=False)
    return jax.nn.log_softmax(out["semantic"][0, 4, 6])[2]

  gradients = jax.jit(jax.vmap(jax.grad(score)))(inputs)
  saliency = jnp.abs(gradients).sum(-1)  # b H W

  assert saliency.shape == (2, 32, 48) and (saliency.max((1, 2)) > 0).all()
  # A finite difference along the gradient agrees with it.
  norm = np.linalg.norm(gradients[0])
  step = 1e-2 * gradients[0] / norm
  after, before = map(jax.jit(score), (inputs[0] + step, inputs[0] - step))
  np.testing.assert_allclose((after - before) / 2e-2, norm, rtol=2e-2)


def test_weights_in_and_out(network, tmp_path):
  model, variables, images = network
  pretrained = fcrn.models.pretrained
  conventions = pretrained.Conventions(fcrn.Preprocessing(), True)
  path = tmp_path / "mine.safetensors"

  pretrained.write(path, variables, conventions, {"note": "mine"})
  fresh = jax.tree.map(jnp.zeros_like, variables)
  loaded = fcrn.models.load_pretrained(path, model, fresh)
  preprocess = pretrained.preprocessing(path)
  out = model.apply(loaded, preprocess(images), train=False)

  expected = model.apply(variables, fcrn.Preprocessing()(images), train=False)
  np.testing.assert_array_equal(out["semantic"], expected["semantic"])


def test_scores_of_masks_from_anywhere():
  masks = np.zeros((2, 8, 8), bool)
  masks[0, :3, :3] = masks[1, 4:, 4:] = True
  evaluator = fcrn.metrics.InstanceEvaluator(num_classes=2)
  found = masks[:1], np.array([1]), np.array([0.9])
  evaluator.add(*found, masks, np.array([1, 1]))
  assert evaluator.result("matching")["matching_0.5"] == 0.5
  assert 0.5 <= evaluator.result("coco")["ap"] < 0.51  # one of 101 recalls
