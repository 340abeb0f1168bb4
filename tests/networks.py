"""Variables of untrained networks, without compiling their init."""

import jax
import jax.numpy as jnp
import numpy as np


def random_variables(model, seed=0):
  """As after init, but for random BatchNorm statistics."""
  shapes = jax.eval_shape(
    lambda: model.init(
      jax.random.key(0), jnp.zeros((1, 64, 64, 3)), train=False
    )
  )
  rng = np.random.default_rng(seed)

  def draw(path, leaf):
    *_, head, _, name = (None, None, *(key.key for key in path))
    if name in ("scale", "var"):
      value = rng.uniform(0.5, 1, leaf.shape)
    elif name == "mean":
      value = rng.uniform(-0.1, 0.1, leaf.shape)
    elif name == "kernel":
      deviation = np.sqrt(2 / np.prod(leaf.shape[:-1]))
      value = rng.normal(
        0, deviation * (0.1 if head == "boxes" else 1), leaf.shape
      )
    else:  # biases: boxes of one unit's height and width
      value = np.resize([0, 0, 1, 1], leaf.shape) * (head == "boxes")
    return jnp.asarray(value, jnp.float32)

  return jax.tree_util.tree_map_with_path(draw, shapes)
