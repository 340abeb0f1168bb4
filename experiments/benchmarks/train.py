"""A whole training step beside the same one in torch.

  python -m experiments.benchmark --what=train
  python -m experiments.benchmark --what=train \
      --set=names=fcrn101_s8_k5_d12,sizes=504,batch=16,dtype=bfloat16

Preprocessing, network with running statistics (as the paper's authors train),
the hardest 512 pixels of each crop, gradients, SGD with momentum and weight
decay. Ours is the step that experiments.train runs, over all devices; torch's
is channels_last, on a GPU also compiled. Options as of the network benchmark
(names, sizes, batch, dtype, repeats, sides, compile_mode); the batch's default
is one image a core on a CPU.
"""

import os
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8

from experiments.benchmarks import network, timing
from fcrn_jax import models
from fcrn_jax.training import optimizer, parallel, step
from fcrn_jax.types import Preprocessing

K = 512


OPTIONS = {k: v for k, v in network.OPTIONS.items() if k != "peers"}


def run(options: dict[str, str]) -> list[dict]:
  """One row per network, size and side."""
  settings = network.parse({**options, "peers": "0"})
  if not settings["gpu"]:
    cores = len(os.sched_getaffinity(0))
    settings["batch"] = int(options["batch"] or cores)
  return [
    row
    for name in settings["names"]
    for size in settings["sizes"]
    for row in _compare(name, size, settings)
  ]


def _compare(name, size, settings):
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (settings["batch"], size, size, 3), np.uint8)
  cells = -(-size // models.spec(name).stride)
  shape = settings["batch"], cells, cells
  labels = rng.integers(0, network.CLASSES, shape, np.uint8)
  calls, memory = {}, {}
  if "jax" in settings["sides"]:
    calls["jax", "step"], memory["jax", "step"] = jax_step(
      name, images, labels, settings["dtype"]
    )
  for side in settings["sides"]:
    if side != "jax":
      calls[side, "step"] = _torch_step(side, name, images, labels, settings)
  seconds = timing.in_turns(calls, settings["repeats"])
  if settings["gpu"]:
    memory |= network.torch_memory(calls)
  return network.rows_of(
    name, size, settings, seconds, memory, jax.local_device_count()
  )


def jax_step(
  name: str,
  images: UInt8[np.ndarray, "b H W 3"],
  labels: UInt8[np.ndarray, "b h w"],
  dtype: str,
) -> tuple[Callable[[], None], int]:
  """A call that takes one step and waits for it; MiB on each device."""
  model = models.create(
    name, {"semantic": network.CLASSES}, dtype=jnp.dtype(dtype)
  )
  schedule = optimizer.schedule("linear", 1e-3, 1000)
  tx = optimizer.create("sgd", schedule, weight_decay=5e-4, momentum=0.9)
  variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
  key = jax.random.key_data(jax.random.key(0))
  state = parallel.replicate(step.create_state(key, variables, tx, ema=0.0))
  run_step = parallel.pmap_step(
    step.make_train_step(model, tx, step.LossOptions(k=K), Preprocessing())
  )
  batch = {"image": images, "semantic": labels}
  batch = parallel.split_batch(batch, jax.local_device_count())
  program = run_step.lower(state, batch).compile()

  def call():
    nonlocal state
    state, _ = program(state, batch)
    jax.block_until_ready(state)

  return call, network.jax_memory(program)


def _torch_step(side, name, images, labels, settings):
  import torch
  from torch.nn import functional as F

  from experiments.benchmarks import torch_fcrn

  device = "cuda" if settings["gpu"] else "cpu"
  torch.backends.cudnn.benchmark = True
  torch.set_float32_matmul_precision("high")
  net = torch_fcrn.network(name, network.CLASSES, device)
  forward = net
  if side == "compile":
    forward = torch.compile(net, mode=settings["compile_mode"])
  sgd = torch.optim.SGD(
    net.parameters(), lr=1e-3, momentum=0.9, weight_decay=5e-4
  )
  host = torch.tensor(images), torch.tensor(labels)
  half = settings["dtype"] == "bfloat16"
  to_preprocess = Preprocessing()
  mean, scale = (
    torch.tensor(values, device=device).view(1, 3, 1, 1)
    for values in (to_preprocess.mean, to_preprocess.scale)
  )

  def call():
    pixels, target = (x.to(device, non_blocking=True) for x in host)
    x = (pixels.permute(0, 3, 1, 2).float() - mean) * scale
    with torch.autocast(device, torch.bfloat16, enabled=half):
      scores = forward(x)
    losses = F.cross_entropy(scores.float(), target.long(), reduction="none")
    losses = losses.flatten(1)
    loss = losses.topk(min(K, losses.shape[1]), dim=1).values.mean()
    sgd.zero_grad(set_to_none=True)
    loss.backward()
    sgd.step()
    if settings["gpu"]:
      torch.cuda.synchronize()

  return call
