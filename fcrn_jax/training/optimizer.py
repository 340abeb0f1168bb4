"""Learning-rate schedules and optimisers, as optax chains."""

import jax
import optax


def schedule(
  name: str, lr: float, num_steps: int, warmup_steps: int = 0
) -> optax.Schedule:
  """Learning rate by step: decay to 0, or `constant`.

  Decay is `linear`, `cosine`, or `poly` (DeepLab's, of power 0.9). The rate
  rises linearly over the first `warmup_steps`.
  """
  decay_steps = max(num_steps - warmup_steps, 1)
  if name == "linear":
    decay = optax.linear_schedule(lr, 0.0, decay_steps)
  elif name == "cosine":
    decay = optax.cosine_decay_schedule(lr, decay_steps)
  elif name == "poly":
    decay = optax.polynomial_schedule(lr, 0.0, 0.9, decay_steps)
  elif name == "constant":
    decay = optax.constant_schedule(lr)
  else:
    raise ValueError(
      f"schedule is {name!r}; expected 'linear', 'poly', 'cosine' or"
      " 'constant'."
    )
  if not warmup_steps:
    return decay
  warmup = optax.linear_schedule(0.0, lr, warmup_steps)
  return optax.join_schedules([warmup, decay], [warmup_steps])


def create(
  name: str,
  learning_rate: optax.Schedule,
  *,
  weight_decay: float,
  momentum: float = 0.9,
  clip_norm: float = 0.0,
) -> optax.GradientTransformation:
  """`sgd` with momentum and L2 decay (the paper's Caffe), or `adamw`.

  Weights of convolutions decay; biases and BatchNorm's scale and bias do not.
  `clip_norm` bounds the global gradient norm; 0 leaves it.
  """
  if name == "sgd":
    steps = [
      optax.add_decayed_weights(weight_decay, mask=decayed),
      optax.sgd(learning_rate, momentum=momentum),
    ]
  elif name == "adamw":
    steps = [
      optax.adamw(learning_rate, weight_decay=weight_decay, mask=decayed)
    ]
  else:
    raise ValueError(f"optimizer is {name!r}; expected 'sgd' or 'adamw'.")
  # identity, so that a continued run may change its mind about clipping.
  clip = optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity()
  return optax.chain(clip, *steps)


def decayed(params):
  """Tree of booleans: True for the kernels, which weight decay acts on."""
  return jax.tree_util.tree_map_with_path(
    lambda path, _: path[-1].key == "kernel", params
  )
