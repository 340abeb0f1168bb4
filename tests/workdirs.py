"""Workdirs of untrained tiny networks, and a perfect network for scenes."""

import jax
import jax.numpy as jnp
import numpy as np

from configs import default
from fcrn_jax import checkpoint
from fcrn_jax.predictor import loading
from fcrn_jax.training import optimizer, step

CATEGORIES = ("ellipse", "rectangle", "triangle", "ring")  # those of shapes


def make(path, heads=("semantic", "boxes"), seed=0, steps=7, **changes):
  """A workdir with a checkpoint; `changes` are dotted fields."""
  config = default.get_config().unlock()
  config.model.name = "fcrn_tiny"
  config.model.heads = heads
  config.model.batch_norm = "local"
  config.categories = CATEGORIES
  config.data.name = "shapes"
  config.data.num_val = 6
  config.eval_images = 0
  for name, value in changes.items():
    config.update_from_flattened_dict({name.replace("__", "."): value})
  model = loading.create_model(config)
  variables = draw(model, np.random.default_rng(seed))
  schedule = optimizer.schedule("linear", 0.1, 10)
  tx = optimizer.create("sgd", schedule, weight_decay=0.0)
  key = jax.random.key_data(jax.random.key(0))
  state = step.create_state(key, variables, tx, ema=0.0)
  checkpoint.write_config(path, config)
  checkpointer = checkpoint.Checkpointer(path)
  checkpointer.save(steps, state, {})
  checkpointer.close()
  return path


def draw(model, rng):
  """Variables as after init, without compiling that."""
  shapes = jax.eval_shape(
    lambda key, x: model.init(key, x, train=False),
    jax.random.key(0),
    jnp.zeros((1, 64, 64, 3)),
  )

  def one(path, leaf):
    name = path[-1].key
    if name in ("scale", "var"):
      return jnp.ones(leaf.shape)
    if name in ("bias", "mean"):
      return jnp.zeros(leaf.shape)
    deviation = np.sqrt(2 / np.prod(leaf.shape[:-1]))
    return jnp.asarray(rng.normal(0, deviation, leaf.shape), jnp.float32)

  return jax.tree_util.tree_map_with_path(one, shapes)
