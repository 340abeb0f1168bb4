"""Training: drivers agree, runs continue bit for bit, errors are clear."""

import json
import re
import signal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image

from configs import shapes
from fcrn_jax import checkpoint, data, evaluation, files, losses, models
from fcrn_jax.predictor import Predictor
from fcrn_jax.training import (
  interrupts,
  loop,
  optimizer,
  parallel,
  settings,
  step,
  writers,
)
from fcrn_jax.types import Preprocessing
from fcrn_jax.visualize import curves
from tests import workdirs

DEVICES = 4


@pytest.fixture(autouse=True)
def drawn(monkeypatch):
  """Lists what curves were to be drawn, which takes seconds, instead."""
  calls = []
  monkeypatch.setattr(
    loop.visualize, "save_curves", lambda *paths: calls.append(paths)
  )
  return calls


class Pixelwise(nn.Module):
  """A linear map of each pixel to both heads, quick to compile."""

  batch_norm: str = "frozen"  # of which it has none

  @nn.compact
  def __call__(self, images, train):
    x = nn.Dense(3 + 2 * 4)(images)
    boxes = x[..., 3:].reshape(*x.shape[:-1], 2, 4)
    return {"semantic": x[..., :3], "boxes": boxes}


def random_batch(size=8):
  rng = np.random.default_rng(1)
  shape = (size, 6, 5)
  valid = rng.random(shape) < 0.5
  valid[:2] = False  # nothing to learn on a device
  semantic = rng.integers(0, 3, shape).astype(np.uint8)
  semantic[:2] = 255
  return {
    "image": rng.integers(0, 256, (*shape, 3)).astype(np.uint8),
    "semantic": semantic,
    "boxes": rng.uniform(1, 9, (*shape, 4)).astype(np.float32),
    "classes": np.where(valid, rng.integers(1, 3, shape), 0).astype(np.uint8),
    "valid": valid,
    "weights": rng.uniform(0.5, 2, shape).astype(np.float32),
  }


def run_steps(driver, scope="crop", num_steps=3, ema=0.9, parts=1):
  model = Pixelwise()
  tx = optimizer.create(
    "sgd",
    optimizer.schedule("linear", 0.1, 10),
    weight_decay=1e-2,
  )
  variables = model.init(jax.random.key(0), jnp.zeros((1, 2, 2, 3)), False)
  state = step.create_state(
    jax.random.key_data(jax.random.key(1)), variables, tx, ema
  )
  options = step.LossOptions(k=7, box_k=7, scope=scope)
  train_step = driver(
    step.make_train_step(model, tx, options, Preprocessing(), ema, parts=parts)
  )
  batch = parallel.split_batch(random_batch(), DEVICES)
  for _ in range(num_steps):
    state, metrics = train_step(state, batch)
  return state, metrics


def assert_trees_close(a, b, **tolerance):
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), a, b)


@pytest.mark.parametrize("scope", ["crop", "device", "global"])
def test_pmap_and_shard_map_agree(scope):
  by_pmap = run_steps(parallel.pmap_step, scope)
  by_shard_map = run_steps(parallel.shard_map_step, scope)
  assert_trees_close(by_pmap, by_shard_map, rtol=1e-5, atol=1e-6)


def test_four_devices_equal_one_with_the_whole_batch():
  state, metrics = run_steps(parallel.pmap_step)

  def on_one_device(fn):
    mapped = jax.pmap(
      fn, "batch", in_axes=(None, 0), out_axes=(None, None),
      devices=jax.devices()[:1],
    )  # fmt: skip

    def run(state, batch):
      whole = {k: v.reshape(1, -1, *v.shape[2:]) for k, v in batch.items()}
      return mapped(state, whole)

    return run

  expected, expected_metrics = run_steps(on_one_device)
  assert_trees_close(state.params, expected.params, rtol=1e-5, atol=1e-6)
  assert_trees_close(state.ema, expected.ema, rtol=1e-5, atol=1e-6)
  assert_same_scalars(metrics, expected_metrics)


def assert_same_scalars(metrics, expected):
  """But for the largest of a device, whose mean is of devices."""
  found, expected = step.scalars(metrics, 1), step.scalars(expected, 1)
  assert found.keys() == expected.keys()
  for name in found.keys() - {"semantic_threshold", "box_threshold"}:
    np.testing.assert_allclose(
      found[name], expected[name], rtol=1e-5, err_msg=name
    )
  assert sum(found[f"semantic_share_{k}"] for k in range(3)) == pytest.approx(1)
  assert found["box_share_1"] + found["box_share_2"] == pytest.approx(1)


def test_parts_of_a_batch_equal_the_whole():
  whole = run_steps(parallel.pmap_step)
  by_parts = run_steps(parallel.pmap_step, parts=2)
  assert_trees_close(whole[0], by_parts[0], rtol=1e-5, atol=1e-6)
  assert_same_scalars(by_parts[1], whole[1])


def test_parts_of_a_batch_need_less_memory_and_no_loop():
  """A loop over convolutions is many times as slow on a CPU."""
  model = models.create("fcrn_tiny", {"semantic": 3}, batch_norm="local")
  images = jnp.zeros((8, 64, 64, 3), jnp.uint8)
  batch = {"image": images, "semantic": jnp.zeros((8, 16, 16), jnp.uint8)}
  variables = jax.eval_shape(
    lambda x: model.init(jax.random.key(0), x, train=False),
    jnp.zeros(images.shape),
  )
  state = jax.eval_shape(
    lambda v: step.create_state(jnp.zeros(2, jnp.uint32), v, optax.sgd(1), 0.0),
    variables,
  )

  def compiled(parts):
    one_step = step.make_train_step(
      model, optax.sgd(1), step.LossOptions(None), Preprocessing(), parts=parts
    )
    mapped = jax.vmap(one_step, (None, 0), axis_name="batch")
    some = jax.tree.map(lambda x: x[None], batch)
    return jax.jit(mapped).lower(state, some).compile()

  whole, by_parts = compiled(1), compiled(4)
  assert "while(" not in by_parts.as_text()
  bytes_of = lambda p: p.memory_analysis().temp_size_in_bytes  # noqa: E731
  assert bytes_of(by_parts) < 0.5 * bytes_of(whole)


def test_parts_that_a_batch_does_not_have_are_refused(tmp_path):
  sound = tiny_config(num_steps=1, batch_size=8, accumulate=2)
  assert loop.train(sound, tmp_path / "a").step == 1
  with pytest.raises(ValueError, match="is 4; expected a multiple of 12"):
    loop.train(tiny_config(accumulate=3), tmp_path / "b")


class Stateful(Pixelwise):
  """Pixelwise on images with dropout, less a running mean that it updates."""

  batch_norm: str = "local"

  @nn.compact
  def __call__(self, images, train):
    mean = self.variable("batch_stats", "mean", jnp.zeros, ())
    x = nn.Dropout(0.5, deterministic=False)(images - mean.value)
    mean.value = 0.5 * mean.value + 0.5 * images.mean()
    return Pixelwise(name="heads")(x, train)


@pytest.mark.parametrize("parts", [1, 2])
def test_step_keys_and_statistics_are_those_of_device_and_part(parts):
  model, options = Stateful(), step.LossOptions(k=7, box_k=7)
  tx = optax.sgd(0.1)
  keys = {"params": jax.random.key(0), "dropout": jax.random.key(0)}
  variables = model.init(keys, jnp.ones((1, 2, 2, 3)), False)
  key = jax.random.key_data(jax.random.key(1))
  state = step.create_state(key, variables, tx, 0.0)
  start = jax.tree.map(np.array, state)
  batch = random_batch()
  images = Preprocessing()
  train_step = parallel.pmap_step(
    step.make_train_step(model, tx, options, images, parts=parts)
  )
  split = parallel.split_batch(batch, DEVICES)
  state, _ = train_step(train_step(state, split)[0], split)

  params, stats = start.params, start.batch_stats
  for now in range(2):
    gradients, means = [], []
    for device in range(DEVICES):
      key = jax.random.fold_in(jax.random.fold_in(start.key, now), device)
      several = jax.random.split(key, parts) if parts > 1 else [key]
      for part, own in enumerate(several):
        some = {
          name: values[device].reshape(parts, -1, *values.shape[2:])[part]
          for name, values in split.items()
        }

        def loss(params, some=some, own=own, stats=stats):
          outputs, updates = model.apply(
            {"params": params, "batch_stats": stats},
            images(some["image"]),
            True,
            mutable=["batch_stats"],
            rngs={"dropout": own},
          )
          total, _ = step.total_loss(outputs, some, options)
          return total, updates["batch_stats"]

        slope, mean = jax.grad(loss, has_aux=True)(params)
        gradients.append(slope)
        means.append(mean)
    slope = jax.tree.map(lambda *some: sum(some) / len(some), *gradients)
    params = jax.tree.map(lambda p, g: p - 0.1 * g, params, slope)
    stats = jax.tree.map(lambda *some: sum(some) / len(some), *means)
  assert_trees_close(state.params, params, rtol=1e-4, atol=1e-5)
  assert_trees_close(state.batch_stats, stats, rtol=1e-5)


def test_frozen_statistics_stay_bit_for_bit():
  model = Stateful("frozen")
  keys = {"params": jax.random.key(0), "dropout": jax.random.key(0)}
  variables = model.init(keys, jnp.ones((1, 2, 2, 3)), False)
  variables["batch_stats"]["mean"] = jnp.float32(0.1)
  key = jax.random.key_data(jax.random.key(1))
  state = step.create_state(key, variables, optax.sgd(0.1), 0.0)
  train_step = parallel.pmap_step(
    step.make_train_step(
      model, optax.sgd(0.1), step.LossOptions(), Preprocessing()
    )
  )
  state, _ = train_step(state, parallel.split_batch(random_batch(), DEVICES))
  assert state.batch_stats["mean"] == np.float32(0.1)


def test_logged_losses_are_means_since_the_last_log(tmp_path, capsys):
  logged = {}
  for every in (1, 2):
    config = tiny_config(num_steps=4, log_every=every, checkpoint_every=0)
    loop.train(config, tmp_path / str(every))
    rows = files.read_lines(tmp_path / str(every) / "metrics.jsonl")
    logged[every] = [row["loss"] for row in rows]
  expected = np.reshape(logged[1], (2, 2)).mean(1)
  np.testing.assert_allclose(logged[2], expected, rtol=1e-5)
  # What a log file shows: a line each, and no bar.
  lines = capsys.readouterr().err.splitlines()
  assert [line.split(":")[0] for line in lines[-2:]] == ["step 2/4", "step 4/4"]
  assert f"loss {logged[2][1]:.4g}, " in lines[-1]
  assert lines[-1].endswith(" images/s, 00:00 left")


def test_loss_options_are_those_of_the_config():
  config = tiny_config(**{
    "loss.k": 5, "loss.box_k": 6, "loss.threshold": 0.7, "loss.scope": "device",
    "loss.box_weight": 0.5, "loss.box_unit": 4.0, "model.box_unit": 8.0,
  })  # fmt: skip
  assert settings.loss_options(config) == step.LossOptions(
    k=5, threshold=0.7, scope="device", box_k=6, box_weight=0.5, box_unit=4.0
  )
  config = tiny_config(**{
    "loss.k": 0, "loss.box_k": 0, "loss.box_unit": 0.0, "model.box_unit": 8.0,
  })  # fmt: skip
  found = settings.loss_options(config)
  assert (found.k, found.box_k, found.box_unit) == (None, None, 8.0)


@pytest.mark.parametrize(("name", "value", "message"), [
  ("inference.shifts", 3, "inference.shifts is 3"),
  ("inference.scales", (), "inference.scales is"),
  ("inference.tile", 16, "inference.tile is 16"),
  ("instances.masks", "bxes", "masks is 'bxes'"),
  ("instances.iou_threshold", 1.5, "iou_threshold is 1.5"),
  ("loss.scope", "batch", "loss.scope is 'batch'"),
  ("loss.k", -1, "loss.k is -1; expected a number of at least 0"),
  ("loss.threshold", 1.5, "loss.threshold is 1.5; expected a share"),
  ("optim.clip_norm", -1.0, "clip_norm is -1.0; expected a number of at least"),
  ("ema", 1.5, "ema is 1.5; expected a share"),
  ("num_steps", 0, "num_steps is 0; expected a number above 0"),
  ("model.box_unit", 0.0, "box_unit is 0.0; expected a number above 0"),
  ("data.label_stride", -2, "label_stride is -2; expected a number of at"),
  ("data.label_stride", 3, "label_stride is 3; expected a divisor"),
  ("data.scale", (1.3, 0.7), "scale is"),
  ("batch_size", 6, "batch_size is 6; expected a multiple of 4"),
  ("preprocessing.channel_order", "rbg", "channel_order is 'rbg'"),
])  # fmt: skip
def test_settings_are_refused_before_anything_is_written(
  tmp_path, name, value, message
):
  config = tiny_config().copy_and_resolve_references().unlock()
  with config.ignore_type():
    config.update_from_flattened_dict({name: value})
  with pytest.raises(ValueError, match=message):
    loop.train_and_evaluate(config.lock(), tmp_path)
  assert not (tmp_path / "config.json").exists()


def test_hard_pixels_of_a_whole_batch_need_it_whole(tmp_path):
  config = tiny_config(batch_size=8, accumulate=2, **{"loss.scope": "device"})
  with pytest.raises(ValueError, match=r"scope is 'device' and config\.accum"):
    loop.train(config, tmp_path)


def test_frozen_statistics_without_weights_are_told(tmp_path, caplog):
  config = tiny_config(num_steps=1, **{"model.batch_norm": "frozen"})
  loop.train(config, tmp_path)
  assert "'frozen' without config.weights" in caplog.text


def test_step_decays_kernels_and_averages_weights():
  # Without data (all void, nothing valid) only weight decay moves the kernel:
  # w <- w - lr * wd * w, and the bias stays.
  model, tx = Pixelwise(), optimizer.create(
    "sgd", optimizer.schedule("constant", 0.5, 10), weight_decay=0.1
  )  # fmt: skip
  variables = model.init(jax.random.key(0), jnp.zeros((1, 2, 2, 3)), False)
  batch = random_batch(4)
  batch["semantic"][:] = 255
  batch["valid"][:] = False
  key = jax.random.key_data(jax.random.key(1))
  state = step.create_state(key, variables, tx, ema=0.9)
  train_step = parallel.pmap_step(
    step.make_train_step(model, tx, step.LossOptions(), Preprocessing(), 0.9)
  )
  before = jax.tree.map(np.array, state.params["Dense_0"])
  state, metrics = train_step(state, parallel.split_batch(batch, DEVICES))
  after = state.params["Dense_0"]
  np.testing.assert_allclose(after["kernel"], 0.95 * before["kernel"], 1e-6)
  np.testing.assert_array_equal(after["bias"], before["bias"])
  assert metrics["loss"] == metrics["gradient_norm"] == 0
  # The decay of a young average is (1 + 0) / (10 + 0).
  np.testing.assert_allclose(
    state.ema["Dense_0"]["kernel"],
    (0.1 + 0.9 * 0.95) * before["kernel"],
    rtol=1e-6,
  )
  # The optimizer's state goes on: v <- 0.9 v + 0.1 w, w <- w - 0.5 v.
  state, _ = train_step(state, parallel.split_batch(batch, DEVICES))
  np.testing.assert_allclose(
    state.params["Dense_0"]["kernel"],
    (0.95 - 0.5 * (0.9 * 0.1 + 0.1 * 0.95)) * before["kernel"],
    rtol=1e-6,
  )


def test_finer_labels_meet_interpolated_logits():
  # Two cells with logits (0, 8) and (0, 0), labels of half a cell: between
  # half-pixel centres the second logit is 8, 6, 2, 0. Labels 1, 1, 0, void.
  logits = jnp.array([[[[0.0, 8.0], [0.0, 0.0]]]])
  labels = jnp.array([[[1, 1, 0, 255]] * 2], jnp.uint8)
  loss, _ = step.total_loss(
    {"semantic": logits}, {"semantic": labels}, step.LossOptions(k=None)
  )
  expected = np.log1p(np.exp([-8.0, -6.0, 2.0])).mean()
  np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_coarse_logits_stand_where_their_cells_are():
  # Cells 0 and 2 of four, labels of half a cell: linear logits stay linear.
  rising = jnp.arange(4.0)[None, :, None, None] * jnp.ones((1, 4, 4, 2))
  logits = rising * jnp.array([0.0, 1.0])
  labels = jnp.ones((1, 8, 8), jnp.uint8).at[:, 5:].set(255)  # cell 2's end

  def loss(logits, factor):
    outputs, batch = {"semantic": logits}, {"semantic": labels}
    return step.total_loss(outputs, batch, step.LossOptions(k=None), factor)[0]

  fine = loss(logits, 1)
  np.testing.assert_allclose(loss(logits[:, ::2, ::2], 2), fine, rtol=1e-6)
  assert abs(loss(logits[:, ::2, ::2], 1) - fine) > 0.01


def test_coarse_boxes_are_those_of_their_cells():
  batch = {k: jnp.asarray(v) for k, v in random_batch().items()}
  boxes = jnp.ones((8, 3, 3, 2, 4))
  options = step.LossOptions(box_k=None)
  loss, _ = step.total_loss({"boxes": boxes}, batch, options, 2)
  cut = {name: value[:, ::2, ::2] for name, value in batch.items()}
  expected, _ = step.total_loss({"boxes": boxes}, cut, options)
  assert expected > 0 and loss == expected


def test_schedules_by_hand():
  linear = optimizer.schedule("linear", 1.0, num_steps=12, warmup_steps=2)
  rates = [float(linear(i)) for i in (0, 1, 2, 7, 12)]
  np.testing.assert_allclose(rates, [0, 0.5, 1, 0.5, 0])
  poly = optimizer.schedule("poly", 2.0, num_steps=10)
  np.testing.assert_allclose(poly(5), 2 * 0.5**0.9, rtol=1e-6)
  cosine = optimizer.schedule("cosine", 2.0, num_steps=10)
  np.testing.assert_allclose([cosine(0), cosine(5), cosine(10)], [2, 1, 0])
  with pytest.raises(ValueError, match="'step'; expected 'linear'"):
    optimizer.schedule("step", 1.0, 10)


def test_sgd_equals_its_formula():
  # Clip the gradient, decay the kernel: v <- m v + g + d w, w <- w - r v.
  rates, decay = [0.5, 0.25, 0.125], np.array([0.1, 0.1, 0])
  tx = optimizer.create(
    "sgd", lambda step: jnp.array(rates)[step], weight_decay=0.1, momentum=0.8,
    clip_norm=6.0,
  )  # fmt: skip
  params = {"kernel": jnp.array([1.0, 2]), "bias": jnp.array([3.0])}
  w, v, state = np.array([1.0, 2, 3]), np.zeros(3), tx.init(params)
  for rate, gradient in zip(
    rates, np.array([[1, 2, 2], [4, 4, 7], [0, 3, 4]]), strict=True
  ):  # of norms 3, 9 and 5
    clipped = gradient * min(1, 6 / np.linalg.norm(gradient))
    v = 0.8 * v + clipped + decay * w
    w = w - rate * v
    found = {
      "kernel": jnp.float32(gradient[:2]),
      "bias": jnp.float32(gradient[2:]),
    }
    updates, state = tx.update(found, state, params)
    params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(
      [*params["kernel"], *params["bias"]], w, rtol=1e-6
    )


def test_adamw_and_unknown_optimizers():
  rate = optax.constant_schedule(0.1)
  tx = optimizer.create("adamw", rate, weight_decay=0.0, clip_norm=1.0)
  params = {"a": {"kernel": jnp.ones(2), "bias": jnp.ones(2)}}
  updates, _ = tx.update(params, tx.init(params), params)
  np.testing.assert_allclose(updates["a"]["kernel"], -0.1, rtol=1e-4)
  tx = optimizer.create("adamw", rate, weight_decay=0.2)
  nothing = jax.tree.map(jnp.zeros_like, params)
  updates, _ = tx.update(nothing, tx.init(params), params)
  np.testing.assert_allclose(updates["a"]["kernel"], -0.02, rtol=1e-6)
  assert not updates["a"]["bias"].any()
  with pytest.raises(ValueError, match="'adam'; expected"):
    optimizer.create("adam", rate, weight_decay=0.0)


def test_total_loss_is_of_the_options():
  batch = {name: jnp.asarray(x) for name, x in random_batch().items()}
  outputs = {
    "semantic": jax.random.normal(jax.random.key(0), (8, 6, 5, 3)),
    "boxes": 9 * jax.random.normal(jax.random.key(1), (8, 6, 5, 2, 4)),
  }
  options = step.LossOptions(
    k=3, threshold=0.4, scope="device", box_k=5, box_weight=0.25, box_unit=2.0
  )
  total, metrics = step.total_loss(outputs, batch, options)
  semantic, _ = losses.bootstrapped_cross_entropy(
    outputs["semantic"], batch["semantic"], k=3, threshold=0.4, scope="device"
  )
  names = ("boxes", "classes", "valid", "weights")
  boxes, _ = losses.bootstrapped_box_loss(
    outputs["boxes"], *(batch[name] for name in names),
    k=5, scope="device", unit=2.0,
  )  # fmt: skip
  np.testing.assert_allclose(total, semantic + boxes / 4, rtol=1e-6)
  np.testing.assert_allclose(metrics["loss"], total, rtol=1e-6)
  np.testing.assert_allclose(metrics["box_loss"], boxes, rtol=1e-6)


def test_batch_that_does_not_divide_is_refused():
  with pytest.raises(ValueError, match=r"batch of 6 images .* 4 devices"):
    parallel.split_batch({"image": np.zeros((6, 2))}, 4)


def test_a_split_batch_lets_go_of_the_memory_it_came_in():
  batch = {"image": np.arange(12).reshape(4, 3)}
  split = parallel.split_batch(batch, 2)
  np.testing.assert_array_equal(split["image"][1], [[6, 7, 8], [9, 10, 11]])
  assert not np.shares_memory(split["image"], batch["image"])


def tiny_config(**changes):
  config = shapes.get_config().unlock()
  config.model.name = "fcrn_tiny"
  config.model.width = 64
  config.data.crop = (32, 32)
  config.data.num_train = 12
  config.data.num_val = 3
  config.batch_size = 4
  config.num_steps = 6
  config.log_every = 2
  config.checkpoint_every = 3
  config.update_from_flattened_dict(changes)
  return config.lock()


@pytest.mark.parametrize(("name", "coarse", "factors"), [
  ("fcrn_tiny", 0.0, [1, 1, 1]),
  ("fcrn18_s4_k3_d2", 0.5, [2, 1, 2, 1, 1]),  # coarse to step 3
])  # fmt: skip
def test_continued_run_ends_bit_identical(
  tmp_path, monkeypatch, drawn, name, coarse, factors
):
  config = tiny_config(
    **{"model.name": name, "model.width": 16 if coarse else 64}, coarse=coarse
  )
  make, seen = step.make_train_step, []
  monkeypatch.setattr(
    step, "make_train_step", lambda *a, **k: seen.append(a[-1]) or make(*a, **k)
  )
  whole = loop.train(config, tmp_path / "whole")
  # The checkpoint of step 3 is between two of the log (2, 4); stop after 5.
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(checkpoint.Checkpointer, "reached_preemption",
                  lambda self, now: now == 5)  # fmt: skip
    loop.train(config, tmp_path / "parts")
  continued = loop.train(config, tmp_path / "parts")
  assert seen == factors
  assert int(continued.step) == 6
  jax.tree.map(np.testing.assert_array_equal, whole, continued)
  steps = [
    row["step"]
    for row in files.read_lines(tmp_path / "parts" / "metrics.jsonl")
  ]
  assert steps == [2, 4, 5, 6]
  whole = tmp_path / "whole"
  # Step 4 alone follows the second compilation, which its speed leaves out.
  rows = files.read_lines(whole / "metrics.jsonl")
  unknown = [row["step"] for row in rows if not row["images_per_second"]]
  assert unknown == ([4] if coarse else [])
  labels = "background", "ellipse", "rectangle", "triangle", "ring"
  assert drawn[0] == (whole / "metrics.jsonl", whole / "curves.png", labels)
  curves.save_curves(*drawn[0])
  assert (whole / "curves.png").stat().st_size > 1000


def test_the_best_checkpoint_is_kept_also_by_a_continued_run(
  tmp_path, monkeypatch, capsys
):
  scores = iter([0.2, 0.5, 0.3, 0.1, None, 0.4])
  monkeypatch.setattr(
    loop, "_evaluate", lambda *_: {"ap_r_vol": next(scores), "ap_r_0.5": 0.9}
  )
  monkeypatch.setattr(loop.Predictor, "load", lambda workdir: None)
  config = tiny_config(eval_every=1)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(checkpoint.Checkpointer, "reached_preemption",
                  lambda self, now: now == 4)  # fmt: skip
    loop.train(config, tmp_path)
  assert checkpoint.Checkpointer(tmp_path).steps == [2, 3, 4]
  loop.train(config, tmp_path)
  assert checkpoint.Checkpointer(tmp_path).steps == [2, 5, 6]
  said = "highest ap_r_vol of val: 0.5000 at step 2, "
  assert capsys.readouterr().out.count(said) == 2


def test_restores_weights_for_inference(tmp_path):
  state = loop.train(tiny_config(num_steps=3), tmp_path)
  config, variables, now = checkpoint.restore_for_inference(tmp_path)
  assert now == 3
  assert config.model.name == "fcrn_tiny"
  assert config.categories == ("ellipse", "rectangle", "triangle", "ring")
  assert config.data.crop == (32, 32)
  jax.tree.map(np.testing.assert_array_equal, variables["params"], state.ema)
  with pytest.raises(ValueError, match=r"no checkpoint of step 9 .*\[3\]"):
    checkpoint.restore_for_inference(tmp_path, step=9)


def test_checkpoint_of_another_net_lists_the_differences(tmp_path):
  loop.train(tiny_config(num_steps=3), tmp_path)
  other = tiny_config(**{"model.width": 128, "num_steps": 6})
  with pytest.raises(ValueError, match="of another network") as error:
    loop.train(other, tmp_path)
  assert "bn1/mean" in str(error.value)
  assert checkpoint.read_config(tmp_path).model.width == 64, "config kept"


@pytest.mark.parametrize(
  ("name", "value"),
  [("model.box_unit", 8.0), ("model.stride_in_1x1", False),
   ("model.caffe_pool", True), ("preprocessing.channel_order", "bgr"),
   ("categories", ("a", "b", "c", "d")), ("data.input_scale", 2.0),
   ("data.normalize", True)],
)  # fmt: skip
def test_other_network_of_the_same_shapes_is_refused(tmp_path, name, value):
  workdirs.make(tmp_path)
  config = checkpoint.read_config(tmp_path).unlock()
  checkpoint.refuse_other_config(tmp_path, config)
  config.num_steps += 1
  config.data.path = "elsewhere"
  checkpoint.refuse_other_config(tmp_path, config)
  config.update_from_flattened_dict({name: value})
  message = re.escape(f"has {value}; use a new")
  with pytest.raises(ValueError, match=rf"{name}=.* {message}"):
    checkpoint.refuse_other_config(tmp_path, config)


def test_a_setting_newer_than_the_workdir_was_off(tmp_path):
  workdirs.make(tmp_path)
  values = files.read_json(tmp_path / "config.json")
  del values["data"]["normalize"], values["model"]["caffe_pool"]
  files.write_json(tmp_path / "config.json", values)
  config = tiny_config().copy_and_resolve_references().unlock()
  config.update(checkpoint.read_config(tmp_path).to_dict())
  checkpoint.refuse_other_config(tmp_path, config)
  config.data.normalize = True
  with pytest.raises(ValueError, match="now has True"):
    checkpoint.refuse_other_config(tmp_path, config)


def test_a_continued_run_checks_what_shapes_do_not_tell(tmp_path):
  loop.train(tiny_config(num_steps=3), tmp_path)
  with pytest.raises(ValueError, match=r"config\.model\.box_unit=16\.0"):
    loop.train(tiny_config(**{"model.box_unit": 8.0}), tmp_path)
  assert checkpoint.read_config(tmp_path).model.box_unit == 16, "config kept"


@pytest.mark.parametrize("log_every", [1, 0])
def test_loss_that_is_not_finite_stops_the_run(tmp_path, log_every):
  config = tiny_config(
    **{"optim.lr": 1e30, "optim.warmup_steps": 0, "log_every": log_every}
  )
  with pytest.raises(FloatingPointError, match=r"lower config\.optim\.lr"):
    loop.train(config, tmp_path)
  # Nothing that is not finite is saved, whatever the log's interval.
  assert checkpoint.Checkpointer(tmp_path).latest_step is None


def test_what_is_being_saved_is_saved_when_a_run_ends_in_an_error(
  tmp_path, monkeypatch
):
  order, close = [], checkpoint.Checkpointer.close
  monkeypatch.setattr(
    checkpoint.Checkpointer,
    "close",
    lambda c: (order.append("close"), close(c)),
  )

  def refuse(scalars, now, latest_step):
    if now == 3:
      order.append("error")
      raise FloatingPointError

  monkeypatch.setattr(loop, "_refuse_infinite", refuse)
  with pytest.raises(FloatingPointError):
    loop.train(tiny_config(checkpoint_every=2, log_every=1), tmp_path)
  assert order == ["error", "close"]
  assert checkpoint.Checkpointer(tmp_path).latest_step == 2


def test_ctrl_c_ends_a_run_with_a_checkpoint(tmp_path, monkeypatch):
  write = writers.MetricsWriter.write

  def interrupted(writer, now, scalars):
    write(writer, now, scalars)
    if now == 2:
      signal.raise_signal(signal.SIGINT)

  monkeypatch.setattr(writers.MetricsWriter, "write", interrupted)
  before = signal.getsignal(signal.SIGINT)
  assert loop.train(tiny_config(checkpoint_every=0), tmp_path).step == 3
  assert signal.getsignal(signal.SIGINT) is before
  assert checkpoint.Checkpointer(tmp_path).latest_step == 3
  with interrupts.remembered() as seen:
    signal.raise_signal(signal.SIGINT)
    assert seen
    with pytest.raises(KeyboardInterrupt):
      signal.raise_signal(signal.SIGINT)


def test_changed_settings_are_listed(tmp_path):
  config = tiny_config()
  checkpoint.write_config(tmp_path, config)
  assert checkpoint.changes(tmp_path, config) == []
  found = checkpoint.changes(tmp_path, tiny_config(**{"optim.lr": 0.5}))
  assert found == [f"config.optim.lr {config.optim.lr} -> 0.5"]


def test_gradient_that_is_not_finite_stops_the_run(tmp_path, monkeypatch):
  norm = optax.tree.norm
  monkeypatch.setattr(step.optax.tree, "norm", lambda g: norm(g) * jnp.inf)
  with pytest.raises(FloatingPointError, match="the gradient_norm is inf"):
    loop.train(tiny_config(), tmp_path)


def test_boxes_alone_train_and_are_not_scored(tmp_path, capsys):
  changes = {"model.heads": ("boxes",), "num_steps": 2}
  assert loop.train_and_evaluate(tiny_config(**changes), tmp_path) == {}
  assert f"--localization={tmp_path}" in capsys.readouterr().out
  with pytest.raises(ValueError, match="eval_every needs"):
    loop.train(tiny_config(**changes, eval_every=1), tmp_path)


def test_coarse_steps_that_cannot_be_are_refused_first(tmp_path):
  with pytest.raises(ValueError, match=r"coarse is 75\.0; expected a share"):
    loop.train(tiny_config(coarse=75), tmp_path)
  with pytest.raises(ValueError, match="fcrn_tiny has no network 2 times"):
    loop.train(tiny_config(coarse=0.5), tmp_path)
  assert not (tmp_path / "config.json").exists()


def test_what_evaluation_would_refuse_is_refused_first(tmp_path, monkeypatch):
  # A ValueError, or in tests that of beartype.
  with pytest.raises(Exception, match="protocol"):
    loop.train_and_evaluate(tiny_config(protocol="voc"), tmp_path)
  same = tiny_config(**{"data.val_split": "train"})
  with pytest.raises(ValueError, match="its scores there mean nothing"):
    loop.train_and_evaluate(same, tmp_path)
  dataset = loop.load_split(tiny_config(), "train")
  monkeypatch.setattr(type(dataset), "has_instances", False)
  with pytest.raises(ValueError, match="no instances to learn boxes from"):
    loop.train(tiny_config(), tmp_path)
  assert not list(tmp_path.iterdir())


def test_workdir_without_config_or_checkpoint_is_named(tmp_path):
  with pytest.raises(ValueError, match=r"has no config\.json"):
    checkpoint.restore_for_inference(tmp_path)
  checkpoint.write_config(tmp_path, tiny_config())
  with pytest.raises(ValueError, match="has no checkpoint"):
    checkpoint.restore_for_inference(tmp_path)


def test_metrics_writer_drops_what_a_continued_run_repeats(tmp_path):
  writer = writers.MetricsWriter(tmp_path, step=0, enabled=True)
  for now in (1, 2, 3):
    writer.write(now, {"loss": float(now) if now < 3 else float("nan")})
  (tmp_path / "metrics.jsonl").open("a").write('{"step": 4, "lo')
  writer = writers.MetricsWriter(tmp_path, step=2, enabled=True)
  writer.write(3, {"loss": 0.5})
  rows = [json.loads(x) for x in (tmp_path / "metrics.jsonl").open()]
  assert rows == [
    {"step": 1, "loss": 1.0},
    {"step": 2, "loss": 2.0},
    {"step": 3, "loss": 0.5},
  ]


def squares(split, broken=(), category="square"):
  """Two images of a bright square each, labelled by functions."""

  def image_fn(key):
    if key in broken:
      raise ValueError(f"{key} is truncated")
    return image

  image = np.zeros((40, 40, 3), np.uint8)
  image[8:24, 8:24] = 200
  labels = {"semantic": (image[..., 0] > 0).astype(np.uint8)}
  return data.Functions(
    [f"{split}{k}" for k in range(2)], image_fn, lambda _: labels,
    (category,), split=split, has_instances=False,
  )  # fmt: skip


def test_trains_on_a_data_set_of_functions(tmp_path, monkeypatch, capsys):
  config = tiny_config(**{"model.heads": ("semantic",), "num_steps": 3,
                          "eval_every": 2})  # fmt: skip
  train_data, val_data = squares("one"), squares("other")
  evaluate, calls = evaluation.evaluate, []
  monkeypatch.setattr(
    evaluation, "evaluate", lambda *a, **k: calls.append(a) or evaluate(*a, **k)
  )
  scores = loop.train_and_evaluate(config, tmp_path, train_data, val_data)
  assert len(calls) == 2, "the last step is scored once"
  shown = capsys.readouterr()
  assert f"step 3, other: pixel_accuracy {scores['pixel_accuracy']:.4g}, " in (
    shown.err
  )
  assert "highest mean_iou of other" in shown.out
  assert scores["num_images"] == 2 and scores["split"] == "other"
  assert "iou_square" in scores and scores["leak_check"] == "done"
  assert config.categories == () and config.data.name == "shapes"
  assert (tmp_path / "eval_other.json").is_file()
  # Scores on the way are those of the step, whatever checkpoint_every says.
  lines = (tmp_path / "metrics.jsonl").read_text()
  assert lines.count("val_iou_square") == 2
  # The workdir says that it learned from functions, which cannot be loaded.
  again = evaluation.evaluate(Predictor.load(tmp_path), val_data)
  assert again["leak_check"].startswith("not done")
  with pytest.raises(ValueError, match="pass both"):
    loop.train_and_evaluate(config, tmp_path, train_data)
  with pytest.raises(ValueError, match="2 of the 2 images of functions"):
    loop.train_and_evaluate(config, tmp_path, train_data, squares("one"))


@pytest.mark.parametrize(("semantic", "instances", "message"), [
  ((0, 255), (0, 1), r"have no label but \[0, 255\].* write 1 for 255"),
  ((0, 0), (0, 0), r"have no label but \[0\]"),
  ((0, 1), (0, 255), r"have labels \[0, 1\], but no instance .*heads="),
])  # fmt: skip
def test_masks_of_which_nothing_is_learned_are_refused(
  tmp_path, caplog, semantic, instances, message
):
  def write(folder, name, values):
    path = tmp_path / folder
    path.mkdir(parents=True, exist_ok=True)
    picture = np.repeat(np.uint8([values]), [2, 2], axis=1)
    Image.fromarray(picture.repeat(4, 0)).save(path / f"{name}.png")

  names = [f"im{k}" for k in range(20)]
  (tmp_path / "labels.txt").write_text("background\ncell\n")
  lists = tmp_path / "ImageSets/Segmentation"
  lists.mkdir(parents=True)
  (lists / "train.txt").write_text("\n".join(names))
  for name in names:
    write("JPEGImages", name, (0, 200))
    write("SegmentationClass", name, semantic)
    write("SegmentationObject", name, instances)
  changes = {"data.name": "folder", "data.path": str(tmp_path), "num_steps": 1,
             "data.num_train": 0, "data.num_val": 0}  # fmt: skip
  with pytest.raises(ValueError, match=f"all training images {message}"):
    loop.train(tiny_config(**changes), tmp_path / "w")
  assert "the first 16 have" in caplog.text
  # A few images that teach nothing are as it may be.
  write("SegmentationClass", names[-1], (0, 1))
  write("SegmentationObject", names[-1], (0, 7))
  assert loop.train(tiny_config(**changes), tmp_path / "w").step == 1


def test_a_broken_validation_image_is_left_out_where_that_is_asked(tmp_path):
  changes = {"model.heads": ("semantic",), "num_steps": 2, "eval_every": 1}
  data_sets = squares("one"), squares("other", broken=["other1"])
  with pytest.raises(ValueError, match="other1 is truncated"):
    loop.train_and_evaluate(tiny_config(**changes), tmp_path / "a", *data_sets)
  changes["data.on_error"] = "skip"
  scores = loop.train_and_evaluate(
    tiny_config(**changes), tmp_path / "b", *data_sets
  )
  assert scores["num_images"] == 1 and scores["skipped_images"] == 1
  assert [p.name for p in (tmp_path / "b/samples").iterdir()] == ["other0.png"]


def test_scores_of_a_part_on_the_way_are_not_the_final_ones(tmp_path):
  changes = {"model.heads": ("semantic",), "num_steps": 2, "eval_every": 1}
  config = tiny_config(**changes, eval_images=1)
  data_sets = squares("one"), squares("other")
  scores = loop.train_and_evaluate(config, tmp_path, *data_sets)
  assert scores["num_images"] == 2
  for name, number in (("eval_other", 2), ("eval_other_first_1", 1)):
    assert files.read_json(tmp_path / f"{name}.json")["num_images"] == number


def test_refuses_before_training_what_the_evaluation_would(tmp_path):
  config, train_data = (
    tiny_config(**{"model.heads": ("semantic",)}),
    squares("one"),
  )
  with pytest.raises(ValueError, match="other0 is truncated"):
    loop.train_and_evaluate(
      config, tmp_path / "c", train_data, squares("other", broken=["other0"])
    )
  with pytest.raises(ValueError, match=r"the networks know .*square.*circle"):
    loop.train_and_evaluate(
      config, tmp_path / "c", train_data, squares("other", category="circle")
    )
  assert not (tmp_path / "c").exists()


def test_a_continued_run_may_clip_and_needs_no_pretrained_weights(tmp_path):
  loop.train(tiny_config(num_steps=2), tmp_path)
  changes = {"optim.clip_norm": 1.0, "weights": "deleted.pth", "num_steps": 4}
  (tmp_path / "metrics.jsonl").unlink()
  assert loop.train(tiny_config(**changes), tmp_path).step == 4


@pytest.mark.parametrize(
  ("name", "value"),
  [("model.heads", ()), ("model.heads", ("semantics",)),
   ("model.dtype", "float33"), ("data.crop", (0, 32)), ("data.crop", (32,)),
   ("model.width", 8)],
)  # fmt: skip
def test_settings_that_cannot_be_are_named(tmp_path, name, value):
  with pytest.raises(ValueError, match=name.split(".")[1]):
    loop.train(tiny_config(**{name: value}), tmp_path)


def test_shares_are_numbered_by_category():
  batch = random_batch()
  outputs = Pixelwise().apply(
    Pixelwise().init(jax.random.key(0), jnp.zeros((1, 2, 2, 3)), False),
    batch["image"].astype(np.float32), False,
  )  # fmt: skip
  _, found = step.total_loss(outputs, batch, step.LossOptions(k=7, box_k=7))
  shares = {name: x.shape for name, x in found.items() if x.ndim}
  assert shares == {"semantic_share": (3,), "box_share": (2,)}


def test_scalars_are_means_over_steps_or_over_pixels():
  sums = {
    "loss": 6.0, "semantic_kept": 4.0, "semantic_share": np.array([1.0, 0, 3]),
    "box_kept": 0.5, "box_valid": 8.0, "box_iou": 2.0,
    "box_share": np.array([0.5, 0]),
  }  # fmt: skip
  expected = {
    "loss": 3, "semantic_kept": 2, "semantic_share_0": 0.25,
    "semantic_share_1": 0, "semantic_share_2": 0.75, "box_kept": 0.25,
    "box_valid": 4, "box_iou": 0.25, "box_share_1": 1, "box_share_2": 0,
  }  # fmt: skip
  assert step.scalars(sums, 2) == expected
  nothing = {name: 0 * value for name, value in sums.items()}
  assert not any(step.scalars(nothing, 2).values())


@pytest.mark.parametrize("factor", [2, 4])
def test_interpolation_of_a_coarser_networks_odd_maps_is_exact(factor):
  for cells in (3, 5, 7, 15):  # of the coarser network
    size = factor * (2 * cells - 1)  # labels: factor per cell of the finer one
    centres = 2 * factor * (jnp.arange(cells) + 0.25)  # in labels
    logits = jnp.broadcast_to(centres[:, None, None], (cells, cells, 1))[None]
    found = step._interpolate(logits, (size, size), 2)[0, :, 0, 0]
    inside = jnp.clip(jnp.arange(size) + 0.5, centres[0], centres[-1])
    np.testing.assert_allclose(found, inside, atol=1e-4)


def test_interpolated_logits_are_not_rounded_on_accelerators():
  interpolate = jax.jit(lambda x: step._interpolate(x, (8, 8), 1))
  program = interpolate.lower(jnp.zeros((1, 4, 4, 2))).as_text()
  products = [x for x in program.splitlines() if "dot_general" in x]
  assert len(products) == 2
  assert all("precision = [HIGHEST, HIGHEST]" in x for x in products)
