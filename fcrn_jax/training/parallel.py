"""Running one per-device step on every device of every host.

`pmap` is the default driver. The state goes in and comes out replicated, with
no leading axis, so that checkpoints and metrics need no unreplicating.
"""

from collections.abc import Callable, Mapping

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fcrn_jax.training.step import AXIS


def pmap_step(step: Callable) -> Callable:
  """step(state, batch) over local devices; batch leaves are `d b ...`."""
  return jax.pmap(
    step,
    axis_name=AXIS,
    in_axes=(None, 0),
    out_axes=(None, None),
    donate_argnums=0,
  )


def shard_map_step(step: Callable) -> Callable:
  """The same step by shard_map and jit; batch leaves are `d b ...` too."""
  mesh = Mesh(np.array(jax.devices()), (AXIS,))

  def per_device(state, batch):
    return step(state, jax.tree.map(lambda x: x[0], batch))

  # With check_vma the gradients of the replicated parameters would be summed
  # over devices a second time.
  mapped = jax.shard_map(
    per_device,
    mesh=mesh,
    in_specs=(PartitionSpec(), PartitionSpec(AXIS)),
    out_specs=(PartitionSpec(), PartitionSpec()),
    check_vma=False,
  )
  return jax.jit(mapped, donate_argnums=0)


def replicate(state):
  """The state, equal in all processes, as arrays on all devices of all hosts.

  So that the second step does not compile again.
  """
  mesh = Mesh(np.array(jax.devices()), (AXIS,))
  sharding = NamedSharding(mesh, PartitionSpec())
  if jax.process_count() == 1:
    return jax.device_put(state, sharding)

  def put(x):
    return jax.make_array_from_process_local_data(sharding, np.asarray(x))

  return jax.tree.map(put, state)


def savable(state):
  """The replicated state as a checkpoint takes it.

  Several processes save arrays that all of them know, which those of pmap are
  not. One process saves its first device's copy: of copies on several devices,
  Orbax would cut and write a piece each.
  """
  if jax.process_count() > 1:
    return replicate(state)
  return jax.tree.map(lambda x: x.addressable_data(0), state)


def split_batch(batch: Mapping[str, np.ndarray], num_devices: int) -> dict:
  """Leaves `b ...` as `d b/d ...`, one part a local device."""
  size = len(next(iter(batch.values())))
  if size % num_devices:
    raise ValueError(
      f"a batch of {size} images does not divide among {num_devices} devices;"
      " set config.batch_size to a multiple of the device count."
    )
  shape = num_devices, size // num_devices
  # Copies: JAX holds on to what it is given, and the memory that processes of
  # the input share would be reported as leaked at the end.
  return {
    name: np.array(value).reshape(*shape, *value.shape[1:])
    for name, value in batch.items()
  }
