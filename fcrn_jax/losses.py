"""Per-pixel losses with online bootstrapping of hard pixels (section 2.2).

`scope` says within what the k hardest pixels are sought, and what the mean is
taken over: "crop" (each crop for itself, then the mean over crops: the result
does not depend on batch size or device count; a single axis is one crop of
pixels), "device" (all crops of a device as one), or "global" (all crops of all
devices as one; needs a mapped axis).
Void pixels are never kept; where nothing is valid, loss and gradient are 0.
"""

import math

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Bool, Float, Integer

from fcrn_jax import boxes
from fcrn_jax.types import IGNORE, Array

SCOPES = ("crop", "device", "global")


def hardest(
  hardness: Float[Array, "*shape"],
  valid: Bool[Array, "*shape"],
  k: int | None = 512,
  threshold: float | None = None,
) -> Bool[Array, "*shape"]:
  """Mask of the hard pixels of each crop.

  The leading axis counts crops; a single axis is one crop of n pixels.

  Args:
    hardness: larger is harder; carries no gradient.
    valid: pixels that may be kept.
    k: keeps exactly min(k, valid) pixels a crop, ties by the lower index;
      None keeps none by rank.
    threshold: keeps every valid pixel harder than this as well. With neither
      k nor threshold all valid pixels are kept.
  """
  if k is None and threshold is None:
    return valid
  if k is not None and k < 1:
    raise ValueError(f"k is {k}; expected at least 1, or None for no top-k.")
  crops = 1 if hardness.ndim == 1 else hardness.shape[0]
  hard = jax.lax.stop_gradient(hardness).reshape(crops, -1)
  hard = jnp.where(valid.reshape(crops, -1), hard, -jnp.inf)
  mask = jnp.zeros(hard.shape, bool)
  if k is not None:
    _, kept = jax.lax.top_k(hard, min(k, hard.shape[1]))
    mask = mask.at[jnp.arange(crops)[:, None], kept].set(True)
  if threshold is not None:
    mask |= hard > threshold
  return mask.reshape(valid.shape) & valid


def bootstrapped_cross_entropy(
  logits: Float[Array, "b *space c"],
  labels: Integer[Array, "b *space"],
  k: int | None = 512,
  threshold: float | None = None,
  scope: str = "crop",
  ignore: int = IGNORE,
  axis_name: str = "batch",
) -> tuple[Float[Array, ""], dict[str, Array]]:
  """Softmax cross-entropy over the hard pixels (equation 1).

  Args:
    logits: any float type; computed in float32.
    labels: 0 ... c - 1, or `ignore`; others make the loss infinite.
    k: number of pixels kept per scope; 512 is the best of Table 7.
    threshold: keep pixels whose true category has a probability below this
      (the t of equation 1); with k as well, whichever keeps more.
    scope: "crop", "device" or "global"; see the module.
    ignore: the void label.
    axis_name: the mapped axis of "global".

  Returns:
    The loss and, for the log, of this device: `kept` and `valid` (pixels per
    crop), `threshold` (largest kept probability of the true category) and
    `share` (c: the kept pixels' categories, summing to 1).
  """
  _check_scope(scope)
  valid = labels != ignore
  safe = jnp.where(valid, labels, 0).astype(jnp.int32)
  losses = optax.losses.softmax_cross_entropy_with_integer_labels(
    logits.astype(jnp.float32), safe
  )
  losses = jnp.where((safe >= 0) & (safe < logits.shape[-1]), losses, jnp.inf)
  if threshold is not None:
    if not 0 < threshold <= 1:
      raise ValueError(
        f"threshold is {threshold}; expected a probability in (0, 1]."
      )
    threshold = -math.log(threshold)
  mask = _hardest_in(scope, losses, valid, k, threshold, axis_name)
  loss = _mean(losses, mask, scope, axis_name)
  easiest = jnp.min(jnp.where(mask, losses, jnp.inf))
  return loss, {
    **_counts(mask, valid),
    "threshold": jnp.exp(-easiest),
    "share": _share(safe, mask, logits.shape[-1]),
  }


def bootstrapped_box_loss(
  predicted: Float[Array, "b *space c 4"],
  target_boxes: Float[Array, "b *space 4"],
  classes: Integer[Array, "b *space"],
  valid: Bool[Array, "b *space"],
  weights: Float[Array, "b *space"],
  k: int | None = 512,
  scope: str = "crop",
  unit: float = 1.0,
  axis_name: str = "batch",
) -> tuple[Float[Array, ""], dict[str, Array]]:
  """Smooth L1 on the four channels of each pixel's own category.

  The pixels kept are those whose predicted box has the lowest IoU with the
  true one, not those of the largest loss (section 2.2); weights enter after
  the choice. The loss of a pixel is the sum over its four targets, as in Fast
  R-CNN.

  Args:
    predicted: (dy, dx, height, width) per foreground category, in pixels.
    target_boxes: the same four of the pixel's instance.
    classes: category 1 ... c of the pixel's instance; anything where invalid.
    valid: pixels that belong to an instance.
    weights: per pixel, the same within an instance (Batch.weights).
    k: number of pixels kept per scope; None keeps all.
    scope: "crop", "device" or "global"; see the module.
    unit: pixels per unit of the loss; smooth L1 turns linear at one unit.
    axis_name: the mapped axis of "global".

  Returns:
    The loss and, for the log, of this device: `kept` and `valid` (pixels per
    crop), `threshold` (largest kept IoU), `iou` (mean over valid pixels) and
    `share` (c: the kept pixels' categories 1 ... c, summing to 1).
  """
  _check_scope(scope)
  index = jnp.where(valid, classes.astype(jnp.int32) - 1, 0)
  known = (index >= 0) & (index < predicted.shape[-2])
  index = jnp.where(known, index, 0)
  own = jnp.take_along_axis(predicted, index[..., None, None], axis=-2)
  own = own[..., 0, :].astype(jnp.float32)
  target = jnp.where(valid[..., None], target_boxes, 0).astype(jnp.float32)
  here = jnp.zeros(2)
  overlap = boxes.iou(boxes.decode(own, here), boxes.decode(target, here))
  overlap = jnp.where(known, jax.lax.stop_gradient(overlap), -1)
  mask = _hardest_in(scope, -overlap, valid, k, None, axis_name)
  losses = optax.losses.huber_loss(own / unit, target / unit).sum(axis=-1)
  losses = jnp.where(known, losses, jnp.inf)
  loss = _mean(losses * weights, mask, scope, axis_name)
  return loss, {
    **_counts(mask, valid),
    "threshold": jnp.max(jnp.where(mask, overlap, 0)),
    "iou": jnp.sum(overlap, where=valid) / jnp.maximum(valid.sum(), 1),
    "share": _share(index, mask, predicted.shape[-2]),
  }


def _check_scope(scope):
  if scope not in SCOPES:
    raise ValueError(
      f"scope is {scope!r}; expected 'crop', 'device' or 'global'."
    )


def _hardest_in(scope, hardness, valid, k, threshold, axis_name):
  if scope == "crop":
    return hardest(hardness, valid, k, threshold)
  flat, flat_valid = hardness.reshape(-1), valid.reshape(-1)
  if scope == "global" and k is not None:
    flat = jax.lax.all_gather(flat, axis_name)
    flat_valid = jax.lax.all_gather(flat_valid, axis_name)
    mask = hardest(flat.reshape(-1), flat_valid.reshape(-1), k, threshold)
    mask = mask.reshape(flat.shape)[jax.lax.axis_index(axis_name)]
  else:
    mask = hardest(flat, flat_valid, k, threshold)
  return mask.reshape(valid.shape)


def _mean(losses, mask, scope, axis_name):
  """Mean over the kept; of "global", this device's part times the devices.

  So the mean over devices, which the training step takes, is the loss.
  """
  # A single axis is one crop, as for `hardest`.
  per_crop = scope == "crop" and mask.ndim > 1
  axes = tuple(range(1, mask.ndim)) if per_crop else None
  # The inner where keeps a masked pixel's infinite loss out of the gradient.
  total = jnp.where(mask, losses, 0).sum(axes)
  count = mask.sum(axes).astype(jnp.float32)
  if scope == "global":
    devices = jax.lax.psum(1, axis_name)
    count = jax.lax.psum(count, axis_name) / devices
  # Under "global" a count below 1 is a fraction, not an empty set.
  return jnp.mean(total / jnp.where(count > 0, count, 1))


def _counts(mask, valid):
  crops = len(valid) if valid.ndim > 1 else 1
  return {
    "kept": mask.sum() / crops,
    "valid": valid.sum() / crops,
  }


def _share(classes, mask, num_classes):
  kept = mask.reshape(-1).astype(jnp.float32)
  counts = jnp.bincount(classes.reshape(-1), kept, length=num_classes)
  return counts / jnp.maximum(mask.sum(), 1)
