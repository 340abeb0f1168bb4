"""Hard-pixel losses against naive numpy loops, forward and gradient."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fcrn_jax import boxes, losses

RNG = np.random.default_rng(0)


def naive_hardest(hardness, valid, k, threshold):
  """One crop: sort by (-hardness, index), take k, add those over threshold."""
  order = sorted(
    (i for i in range(len(hardness)) if valid[i]),
    key=lambda i: (-hardness[i], i),
  )
  mask = np.zeros(len(hardness), bool)
  if k is None and threshold is None:
    mask[order] = True
  if k is not None:
    mask[order[:k]] = True
  if threshold is not None:
    for i in order:
      mask[i] |= hardness[i] > threshold
  return mask


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("k", [None, 1, 3, 8, 50])
@pytest.mark.parametrize("threshold", [None, 0.0, 2.0])
def test_hardest_equals_naive_with_ties(k, threshold, jit):
  hardness = RNG.integers(0, 4, (5, 12)).astype(np.float32)
  valid = RNG.random((5, 12)) < 0.7
  valid[2] = False
  fn = functools.partial(losses.hardest, k=k, threshold=threshold)
  mask = (jax.jit(fn) if jit else fn)(jnp.array(hardness), jnp.array(valid))
  for crop in range(5):
    expected = naive_hardest(hardness[crop], valid[crop], k, threshold)
    np.testing.assert_array_equal(mask[crop], expected)


def test_hardest_keeps_exactly_k_of_equal_pixels():
  valid = jnp.ones((2, 40), bool).at[1, 7:].set(False)
  mask = losses.hardest(jnp.ones((2, 40)), valid, k=9)
  assert mask.sum(axis=1).tolist() == [9, 7]
  assert mask[0, :9].all()


def test_hardest_takes_one_crop_and_grids():
  # 1 2   the two hardest of the valid are 4 (void) -> 3 and 2
  # 3 4
  grid = jnp.array([[[1.0, 2.0], [3.0, 4.0]]])
  valid = jnp.array([[[True, True], [True, False]]])
  expected = [[[False, True], [True, False]]]
  assert losses.hardest(grid, valid, k=2).tolist() == expected
  flat = losses.hardest(grid.reshape(-1), valid.reshape(-1), k=2)
  assert flat.tolist() == [False, True, True, False]


def test_pixels_in_a_single_axis_are_one_crop():
  labels = jnp.array([0, 1, 1, 255])
  logits = jnp.array(RNG.normal(size=(4, 2)))
  for loss_fn, case in (
    (losses.bootstrapped_cross_entropy, (logits, labels)),
    (losses.bootstrapped_box_loss, [x[0] for x in box_case(crops=1)]),
  ):
    flat, crop = loss_fn(*case, k=2), loss_fn(*(x[None] for x in case), k=2)
    jax.tree.map(np.testing.assert_allclose, flat, crop)


def test_hardest_refuses_k_below_one():
  with pytest.raises(ValueError, match="k is 0"):
    losses.hardest(jnp.ones(3), jnp.ones(3, bool), k=0)


def naive_cross_entropy(logits, labels, k, threshold):
  """Mean over crops of the mean over kept pixels, with its gradient."""
  gradient = np.zeros_like(logits)
  total, masks = 0.0, []
  for crop in range(len(logits)):
    flat = logits[crop].reshape(-1, logits.shape[-1]).astype(np.float64)
    label = labels[crop].reshape(-1)
    probs = np.exp(flat - flat.max(1, keepdims=True))
    probs /= probs.sum(1, keepdims=True)
    valid = label != 255
    true = probs[np.arange(len(label)), np.where(valid, label, 0)]
    limit = None if threshold is None else -np.log(threshold)
    mask = naive_hardest(-np.log(true), valid, k, limit)
    masks.append(mask)
    count = max(mask.sum(), 1)
    for i in np.flatnonzero(mask):
      total -= np.log(true[i]) / count / len(logits)
      row = probs[i].copy()
      row[label[i]] -= 1
      gradient[crop].reshape(-1, logits.shape[-1])[i] = row / (
        count * len(logits)
      )
  return total, gradient, np.array(masks)


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize(
  ("k", "threshold"),
  [(512, None), (7, None), (None, 0.3), (7, 0.3), (None, 1.0)],
)
def test_cross_entropy_equals_naive(k, threshold, jit):
  logits = RNG.normal(size=(3, 6, 5, 4)).astype(np.float32)
  labels = RNG.integers(0, 4, (3, 6, 5)).astype(np.uint8)
  labels[RNG.random(labels.shape) < 0.3] = 255
  labels[1] = 255  # a crop of nothing but void
  fn = functools.partial(
    losses.bootstrapped_cross_entropy, k=k, threshold=threshold
  )
  fn = jax.value_and_grad(fn, has_aux=True)
  fn = jax.jit(fn) if jit else fn
  (loss, stats), gradient = fn(jnp.array(logits), jnp.array(labels))
  expected, slope, masks = naive_cross_entropy(logits, labels, k, threshold)
  np.testing.assert_allclose(loss, expected, rtol=1e-5)
  np.testing.assert_allclose(gradient, slope, atol=1e-6)
  np.testing.assert_allclose(stats["kept"], masks.sum() / 3, rtol=1e-6)
  share = np.bincount(labels.reshape(-1)[masks.reshape(-1)], minlength=4)
  np.testing.assert_allclose(stats["share"], share / masks.sum(), rtol=1e-6)


def test_threshold_keeps_probabilities_below_it():
  # Two categories, logits (x, 0): true category 0 has p = sigmoid(x).
  probability = np.array([0.1, 0.5, 0.59, 0.61, 0.9], np.float32)
  x = np.log(probability / (1 - probability))
  logits = jnp.stack([jnp.array(x), jnp.zeros(5)], axis=-1)[None]
  loss, stats = losses.bootstrapped_cross_entropy(
    logits, jnp.zeros((1, 5), int), k=None, threshold=0.6
  )
  np.testing.assert_allclose(loss, -np.log(probability[:3]).mean(), rtol=1e-5)
  np.testing.assert_allclose(stats["threshold"], 0.59, rtol=1e-5)
  assert stats["kept"] == 3


@pytest.mark.parametrize("scope", ["crop", "device"])
def test_void_alone_gives_zero_loss_and_gradient(scope):
  fn = functools.partial(losses.bootstrapped_cross_entropy, scope=scope)
  logits = jnp.zeros((2, 4, 4, 3))
  labels = jnp.full((2, 4, 4), 255)
  (loss, stats), gradient = jax.value_and_grad(fn, has_aux=True)(logits, labels)
  assert loss == 0
  assert not gradient.any()
  assert stats["kept"] == 0


def test_bfloat16_logits_are_summed_in_float32():
  logits = jnp.array(RNG.normal(size=(1, 900, 4)), jnp.bfloat16)
  labels = jnp.array(RNG.integers(0, 4, (1, 900)))
  low, _ = losses.bootstrapped_cross_entropy(logits, labels)
  high, _ = losses.bootstrapped_cross_entropy(
    logits.astype(jnp.float32), labels
  )
  assert low.dtype == jnp.float32
  assert low == high


def box_case(crops=3, pixels=20, categories=3):
  sizes = RNG.uniform(4, 40, (crops, pixels, 2))
  target = np.concatenate(
    [RNG.uniform(-10, 10, (crops, pixels, 2)), sizes], axis=-1
  ).astype(np.float32)
  noise = RNG.normal(scale=4, size=(crops, pixels, categories, 4))
  predicted = (target[:, :, None] + noise).astype(np.float32)
  classes = RNG.integers(1, categories + 1, (crops, pixels))
  valid = RNG.random((crops, pixels)) < 0.6
  weights = RNG.uniform(0.2, 3, (crops, pixels)).astype(np.float32)
  return predicted, target, classes, valid, weights


def naive_box_loss(predicted, target, classes, valid, weights, k, unit):
  gradient = np.zeros_like(predicted)
  total = 0.0
  for crop in range(len(predicted)):
    own = np.array(
      [predicted[crop, i, c - 1] for i, c in enumerate(classes[crop])]
    )
    here = np.zeros(2, np.float32)
    overlap = boxes.iou(
      boxes.decode(own, here), boxes.decode(target[crop], here)
    )
    mask = naive_hardest(-overlap, valid[crop], k, None)
    count = max(mask.sum(), 1) * len(predicted)
    for i in np.flatnonzero(mask):
      for j in range(4):
        x = (own[i, j] - target[crop, i, j]) / unit
        value = 0.5 * x * x if abs(x) < 1 else abs(x) - 0.5
        total += weights[crop, i] * value / count
        gradient[crop, i, classes[crop, i] - 1, j] = (
          weights[crop, i] * np.clip(x, -1, 1) / unit / count
        )
  return total, gradient


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize(("k", "unit"), [(512, 1.0), (5, 4.0), (None, 1.0)])
def test_box_loss_equals_naive(k, unit, jit):
  case = box_case()
  case[3][1] = False
  fn = functools.partial(losses.bootstrapped_box_loss, k=k, unit=unit)
  fn = jax.value_and_grad(fn, has_aux=True)
  (loss, stats), gradient = (jax.jit(fn) if jit else fn)(*map(jnp.array, case))
  expected, slope = naive_box_loss(*case, k, unit)
  np.testing.assert_allclose(loss, expected, rtol=1e-5)
  np.testing.assert_allclose(gradient, slope, atol=1e-6)
  kept = [min(k or 99, int(row.sum())) for row in case[3]]
  np.testing.assert_allclose(stats["kept"], sum(kept) / 3, rtol=1e-6)


def test_box_loss_picks_by_iou_not_by_loss():
  # Pixel 0: a 100-pixel box off by 10 (loss 9.5, IoU 0.82); pixel 1: a
  # 4-pixel box off by 3 (loss 2.5, IoU 1 / 7). The second is the harder.
  target = jnp.array([[[0.0, 0, 100, 100], [0, 0, 4, 4]]])
  predicted = target.at[0, 0, 0].add(10).at[0, 1, 0].add(3)[:, :, None]
  loss, stats = losses.bootstrapped_box_loss(
    predicted,
    target,
    jnp.ones((1, 2), int),
    jnp.ones((1, 2), bool),
    jnp.ones((1, 2)),
    k=1,
  )
  np.testing.assert_allclose(loss, 2.5)
  np.testing.assert_allclose(stats["threshold"], 1 / 7, rtol=1e-6)


def test_stats_of_boxes_typed_out():
  # Boxes of 4 x 4 pixels with IoUs of 1, 1 / 7 (3 pixels lower) and 1 / 2
  # (half as high), one that is not valid, and a crop without instances.
  target = jnp.tile(jnp.array([0.0, 0, 4, 4]), (2, 4, 1))
  predicted = jnp.tile(target[:, :, None], (1, 1, 2, 1))
  predicted = predicted.at[0, 1, 1, 0].set(3).at[0, 2, 1, 2].set(2)
  classes = jnp.array([[1, 2, 2, 1], [0, 0, 0, 0]])
  valid = jnp.array([[True, True, True, False], [False] * 4])
  case = predicted, target, classes, valid, jnp.ones((2, 4))
  _, stats = losses.bootstrapped_box_loss(*case, k=2)
  expected = {
    "kept": 2 / 2, "valid": 3 / 2, "threshold": 1 / 2,
    "iou": (1 + 1 / 7 + 1 / 2) / 3, "share": [0, 1],
  }  # fmt: skip
  assert stats.keys() == expected.keys()
  for name, value in expected.items():
    np.testing.assert_allclose(stats[name], value, rtol=1e-6, err_msg=name)
  _, stats = losses.bootstrapped_box_loss(*(x[1:] for x in case))
  assert not any(np.any(value) for value in stats.values())  # nor NaN


def test_stats_of_categories_typed_out():
  # True probabilities of 0.2, 0.9 and 0.6 of two categories, and void.
  true = np.array([0.2, 0.9, 0.6, 0.5], np.float32)
  labels = jnp.array([[0, 1, 1, 255], [255] * 4])
  other = jnp.log(1 / true - 1)  # logits (0, x) or (x, 0)
  logits = jnp.stack([0 * other, other], -1)
  logits = jnp.where(labels[..., None] == 1, logits[..., ::-1], logits)
  _, stats = losses.bootstrapped_cross_entropy(logits, labels, k=2)
  expected = {
    "kept": 2 / 2, "valid": 3 / 2, "threshold": 0.6, "share": [0.5, 0.5],
  }  # fmt: skip
  assert stats.keys() == expected.keys()
  for name, value in expected.items():
    np.testing.assert_allclose(stats[name], value, rtol=1e-6, err_msg=name)
  _, stats = losses.bootstrapped_cross_entropy(logits[1:], labels[1:])
  assert not any(np.any(value) for value in stats.values())


@pytest.mark.parametrize("num_valid", [60, 2])  # 2: less than one a device
@pytest.mark.parametrize(
  ("fn", "kept"),
  [
    ("semantic", {"k": 11}),
    ("semantic", {"k": None}),
    ("semantic", {"k": 3, "threshold": 0.5}),
    ("boxes", {"k": 11}),
    ("boxes", {"k": None}),
  ],
)
def test_global_scope_equals_one_device_with_all_crops(fn, kept, num_valid):
  devices = 4
  valid = np.zeros(8 * 9, bool)
  valid[RNG.permutation(len(valid))[:num_valid]] = True
  valid = valid.reshape(8, 9)
  if fn == "semantic":
    logits = RNG.normal(size=(8, 9, 3)).astype(np.float32)
    case = [logits, np.where(valid, RNG.integers(0, 3, (8, 9)), 255)]
    loss_fn = functools.partial(losses.bootstrapped_cross_entropy, **kept)
  else:
    case = list(box_case(crops=8, pixels=9))
    case[3] = valid
    loss_fn = functools.partial(losses.bootstrapped_box_loss, **kept)

  def global_loss(*parts):
    gradient_fn = jax.value_and_grad(
      functools.partial(loss_fn, scope="global"), has_aux=True
    )
    (loss, _), gradient = gradient_fn(*parts)
    return jax.lax.pmean(loss, "batch"), gradient / devices

  split = [
    np.reshape(x, (devices, 8 // devices, *np.shape(x)[1:])) for x in case
  ]
  loss, gradient = jax.pmap(global_loss, axis_name="batch")(*split)
  (expected, _), slope = jax.value_and_grad(
    functools.partial(loss_fn, scope="device"), has_aux=True
  )(*map(jnp.array, case))
  np.testing.assert_allclose(loss, expected, rtol=1e-5)
  np.testing.assert_allclose(gradient.reshape(slope.shape), slope, atol=1e-6)


def test_scope_is_checked():
  with pytest.raises(ValueError, match="'batch'; expected 'crop'"):
    losses.bootstrapped_cross_entropy(
      jnp.zeros((1, 2, 3)), jnp.zeros((1, 2), int), scope="batch"
    )


@pytest.mark.parametrize("label", [-1, 3, 200])
@pytest.mark.parametrize("kept", [{"k": 2}, {"k": None, "threshold": 0.7}])
def test_labels_out_of_range_cannot_pass(label, kept):
  logits = jnp.zeros((1, 4, 3)).at[..., 0].set(5.0)
  labels = jnp.array([[0, 0, label, 0]])
  loss, _ = losses.bootstrapped_cross_entropy(logits, labels, **kept)
  assert loss == jnp.inf


@pytest.mark.parametrize("category", [-1, 0, 4])
@pytest.mark.parametrize("k", [3, None])
def test_boxes_of_no_category_cannot_pass(category, k):
  predicted, target, classes, valid, weights = box_case()
  classes[0, np.flatnonzero(valid[0])[0]] = category
  classes[0, np.flatnonzero(~valid[0])] = category  # which do not count
  loss, _ = losses.bootstrapped_box_loss(
    *map(jnp.array, (predicted, target, classes, valid, weights)), k=k
  )
  assert loss == jnp.inf
