"""One training step as one device sees it; training.parallel runs it on all."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

from fcrn_jax import losses
from fcrn_jax.types import Array, Preprocessing

AXIS = "batch"


class LossOptions(NamedTuple):
  """What is minimised: semantic loss + box_weight x box loss."""

  k: int | None = 512  # hard pixels of the category loss; Table 7
  threshold: float | None = None
  scope: str = "crop"
  box_k: int | None = 512  # ours: section 2.2 calls it "similar"
  box_weight: float = 1.0  # ours; the paper trains two networks separately
  box_unit: float = 1.0  # pixels per unit of the box loss


class TrainState(struct.PyTreeNode):
  """Everything that a continued run needs beside the data's position.

  `ema` is an exponential moving average of params, or None.
  """

  step: Array
  params: Any
  batch_stats: Any
  opt_state: Any
  ema: Any
  key: Array


def create_state(
  key: Array, variables: Mapping, tx: optax.GradientTransformation, ema: float
) -> TrainState:
  """State before the first step; `ema` is the decay, 0 for none."""
  params = variables["params"]
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    batch_stats=variables.get("batch_stats", {}),
    opt_state=tx.init(params),
    ema=jax.tree.map(jnp.array, params) if ema else None,
    key=key,
  )


def make_train_step(
  model: nn.Module,
  tx: optax.GradientTransformation,
  options: LossOptions,
  preprocessing: Preprocessing,
  ema: float = 0.0,
  factor: int = 1,
  parts: int = 1,
) -> Callable:
  """step(state, batch) -> (state, metrics), under a mapped axis AXIS.

  Gradients and metrics are means over devices, so that the state stays equal
  on all of them. The random key depends on step and device alone.

  factor: cells of the batch per cell of a model.coarser, on each axis.
  parts: into so many a device's batch is cut, which follow each other and whose
    gradients, metrics and BatchNorm statistics are averaged: one part's
    activations are held at a time.
  """

  def step(state: TrainState, batch: Mapping[str, Array]):
    key = jax.random.fold_in(state.key, state.step)
    key = jax.random.fold_in(key, jax.lax.axis_index(AXIS))

    def loss_fn(params, batch, key):
      variables = {"params": params, "batch_stats": state.batch_stats}
      outputs, updates = model.apply(
        variables,
        preprocessing(batch["image"]),
        train=True,
        mutable=["batch_stats"],
        rngs={"dropout": key},
      )
      loss, metrics = total_loss(outputs, batch, options, factor)
      return loss, (metrics, updates.get("batch_stats", {}))

    gradients_of = functools.partial(
      jax.grad(loss_fn, has_aux=True), state.params
    )
    if parts == 1:
      found = gradients_of(batch, key)
    else:
      found = _mean_over_parts(gradients_of, batch, key, parts)
    gradients, (metrics, batch_stats) = jax.lax.pmean(found, AXIS)
    if model.batch_norm == "frozen":  # a mean would round them
      batch_stats = state.batch_stats
    updates, opt_state = tx.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    average = state.ema
    if average is not None:
      # A young average follows the weights more closely.
      decay = jnp.minimum(ema, (1 + state.step) / (10 + state.step))
      average = optax.incremental_update(params, average, 1 - decay)
    metrics["gradient_norm"] = optax.tree.norm(gradients)
    state = state.replace(
      step=state.step + 1,
      params=params,
      batch_stats=batch_stats,
      opt_state=opt_state,
      ema=average,
    )
    return state, metrics

  return step


def _mean_over_parts(fn, batch, key, parts):
  """The mean of fn(part, key) over the parts of a batch, one at a time."""
  batch = jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:]), batch)
  inputs = batch, jax.random.split(key, parts)

  def add(total, part):
    return jax.tree.map(jnp.add, total, fn(*part)), None

  shapes = jax.eval_shape(fn, *jax.tree.map(lambda x: x[0], inputs))
  total = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
  if jax.default_backend() == "cpu":
    # In a loop XLA's CPU compiler gives the gradients of convolutions a form
    # that takes 25 to 40 times as long.
    for index in range(parts):
      part = jax.tree.map(lambda x, index=index: x[index], inputs)
      total, _ = add(total, (_after(total, part[0]), part[1]))
  else:
    total, _ = jax.lax.scan(add, total, inputs)
  return jax.tree.map(lambda x: x / parts, total)


def _after(done, batch):
  """The batch, in a way that no part of it is worked on before `done` is there.

  Else the compiler, which drops optimization_barrier on a CPU, works on all
  parts at once, and holds what each needs. Only zeros where `done` is no
  number, which the loop ends the training for.
  """
  sound = ~jnp.isnan(sum(x.ravel()[0] for x in jax.tree.leaves(done)))
  return jax.tree.map(lambda x: jnp.where(sound, x, jnp.zeros_like(x)), batch)


def total_loss(
  outputs: Mapping[str, Array],
  batch: Mapping[str, Array],
  options: LossOptions,
  factor: int = 1,
) -> tuple[Array, dict[str, Array]]:
  """Loss of the heads that the model has, and metrics for the log.

  A mean over pixels comes times their number, for `scalars`. A head's share is
  one array of all categories: as scalars, those of 80 would be 160 results of
  every step and as many sums over devices.
  Labels may be finer than the logits, which are interpolated then; of the
  boxes, those of every factor-th cell count; see make_train_step.
  """
  total, metrics = 0.0, {}
  if "semantic" in outputs:
    labels = batch["semantic"].astype(jnp.int32)
    logits = outputs["semantic"]
    if labels.shape != logits.shape[:-1]:  # finer
      logits = _interpolate(logits, labels.shape[1:], factor)
    loss, stats = losses.bootstrapped_cross_entropy(
      logits,
      labels,
      k=options.k,
      threshold=options.threshold,
      scope=options.scope,
      axis_name=AXIS,
    )
    total += loss
    metrics |= {"semantic_loss": loss} | _named("semantic", stats)
  if "boxes" in outputs:
    boxes, classes, valid, weights = (
      batch[name][:, ::factor, ::factor]
      for name in ("boxes", "classes", "valid", "weights")
    )
    loss, stats = losses.bootstrapped_box_loss(
      outputs["boxes"],
      boxes,
      classes.astype(jnp.int32),
      valid,
      weights,
      k=options.box_k,
      scope=options.scope,
      unit=options.box_unit,
      axis_name=AXIS,
    )
    total += options.box_weight * loss
    metrics |= {"box_loss": loss} | _named("box", stats)
  return total, {"loss": total} | metrics


def _interpolate(logits, size, factor):
  """Logits `b h w c` at every label, linearly; edges repeated."""
  for axis, length in enumerate(size, 1):
    number = logits.shape[axis]
    # A power of two; an odd map's last coarse cell may stand for less.
    per_cell = 1 << (-(-length // number) - 1).bit_length()
    # A label's centre in cells, less that of cell 0: those of a coarser network
    # have the centres of the cells that they are.
    position = (jnp.arange(length) + 0.5) / per_cell - 0.5 / factor
    position = jnp.clip(position, 0, number - 1)
    weights = nn.relu(1 - jnp.abs(position[:, None] - jnp.arange(number)))
    # On accelerators the default would round logits to 8 or 11 bits.
    logits = jnp.tensordot(
      logits, weights, (axis, 1), precision=jax.lax.Precision.HIGHEST
    )
    logits = jnp.moveaxis(logits, -1, axis)
  return logits


# What is a mean over pixels, and how many there are of them.
_NUMBER_OF = {"share": "kept", "iou": "valid"}


def _named(head, stats):
  """The statistics by name, what is a mean over pixels as the sum it is of."""
  return {
    f"{head}_{name}": value * stats.get(_NUMBER_OF.get(name), 1)
    for name, value in stats.items()
  }


def scalars(sums: Mapping[str, Array], num_steps: int) -> dict[str, float]:
  """Means over the steps whose metrics were summed, as flat numbers.

  Those of pixels are over all pixels of the steps, whatever the device. A share
  is one number per label, that of the boxes from category 1.
  """
  flat = {}
  for name, value in sums.items():
    head, _, kind = name.partition("_")
    number = num_steps
    if kind in _NUMBER_OF:
      number = float(sums[f"{head}_{_NUMBER_OF[kind]}"]) or 1.0
    mean = np.asarray(value, np.float64) / number
    first = 0 if head == "semantic" else 1
    many = enumerate(mean.ravel().tolist(), first)
    named = {f"{name}_{label}": share for label, share in many}
    flat |= named if mean.ndim else {name: float(mean)}
  return flat
