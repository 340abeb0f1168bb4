"""Our networks beside the same ones in torch: forward, forward + backward.

  python -m experiments.benchmark --what=network
  python -m experiments.benchmark --what=network \
      --set=names=fcrn101_s8_k5_d12,sizes=504,batch=16,dtype=bfloat16

Options, several values joined by "+": names, sizes (pixels), batch, dtype,
repeats, sides (jax+torch, on a GPU also compile = torch.compile), compile_mode
(torch.compile's), peers=1 (torchvision's FCN-ResNets too). Defaults are 328
pixels, batch 2, float32 on a CPU; 504, batch 16, bfloat16 on a GPU.

torch runs in channels_last; bfloat16 there is autocast around float32
parameters, as here. BatchNorm uses frozen statistics on all sides. `ratio` is
the speed relative to the fastest torch side. `share_of_peak` counts the
convolutions' operations (3 times the forward's for forward + backward).
"""

import os
from collections.abc import Callable

# JAX and torch share the GPU's memory; must be set before JAX starts.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax
import jax.numpy as jnp
import numpy as np

from experiments import common
from experiments.benchmarks import timing
from fcrn_jax import models

CLASSES = 21
MIB = 2**20

OPTIONS = {
  "names": "fcrn50_s8_k5_d12+fcrn101_s8_k5_d12", "sizes": "", "batch": "",
  "dtype": "", "repeats": "", "sides": "", "compile_mode": "default",
  "peers": "0",
}  # fmt: skip


def run(options: dict[str, str]) -> list[dict]:
  """One row per network, size, side and pass."""
  settings = parse(options)
  return [
    row
    for name in settings["names"]
    for size in settings["sizes"]
    for row in _compare(name, size, settings)
  ]


def parse(options: dict[str, str]) -> dict:
  """The options, what is empty as suits this device."""
  gpu = jax.default_backend() == "gpu"
  sizes = (options["sizes"] or ("504" if gpu else "328")).split("+")
  sides = options["sides"] or ("jax+torch+compile" if gpu else "jax+torch")
  sides = sides.split("+")
  if "torch" in sides or "compile" in sides:
    try:
      import torch  # noqa: F401
    except ImportError:
      print("torch is not installed: its sides are left out")
      sides = ["jax"]
  dtype = options["dtype"] or ("bfloat16" if gpu else "float32")
  if dtype not in ("float32", "bfloat16"):
    raise ValueError(f"dtype is {dtype!r}; expected 'float32' or 'bfloat16'.")
  peers = options["peers"] == "1"
  if peers:
    try:
      import torchvision  # noqa: F401
    except ImportError as error:
      print(f"torchvision's networks are left out: {error}")
      peers = False
  return {
    "names": options["names"].split("+"),
    "sizes": [int(size) for size in sizes],
    "batch": int(options["batch"] or (16 if gpu else 2)),
    "dtype": dtype,
    "repeats": int(options["repeats"] or (20 if gpu else 5)),
    "sides": sides,
    "compile_mode": options["compile_mode"],
    "peers": peers,
    "gpu": gpu,
  }


def _compare(name, size, settings):
  images = np.random.default_rng(0).normal(
    size=(settings["batch"], size, size, 3)
  )
  images = images.astype(np.float32)
  calls, memory = {}, {}
  if "jax" in settings["sides"]:
    calls |= _jax_calls(name, images, settings["dtype"], memory)
  for side in settings["sides"]:
    if side != "jax":
      calls |= _torch_calls(side, name, images, settings)
  if settings["peers"] and models.spec(name).depth not in (50, 101):
    print(f"torchvision has no FCN-ResNet of {name}'s depth: it is left out")
  elif settings["peers"]:
    calls |= _torch_calls("torchvision", name, images, settings)
  seconds = timing.in_turns(calls, settings["repeats"])
  if settings["gpu"]:
    memory |= torch_memory(calls)
  return rows_of(name, size, settings, seconds, memory)


def rows_of(name, size, settings, seconds, memory, devices=1) -> list[dict]:
  """Rows from {(side, pass): seconds} and {(side, pass): MiB}.

  devices: how many JAX's side runs on; torch's runs on one.
  """
  flops = common.network_cost(name, size)[1] * settings["batch"]
  peak = timing.peak_flops(jax.devices()[0].device_kind)
  rows = []
  for (side, which), value in seconds.items():
    rivals = [
      t for (s, w), t in seconds.items()
      if w == which and s in ("torch", "compile")
    ]  # fmt: skip
    rate = flops * (1 if which == "forward" else 3) / value
    most = peak and peak * (devices if side == "jax" else 1)
    rows.append({
      "network": name, "size": size, "batch": settings["batch"],
      "dtype": settings["dtype"], "pass": which, "side": side,
      "seconds": value, "images_per_second": settings["batch"] / value,
      "ratio": min(rivals) / value if rivals else "",
      "tflops": rate / 1e12 if side != "torchvision" else "",
      "share_of_peak": rate / most if most and side != "torchvision" else "",
      "memory_mib": memory.get((side, which), ""),
    })  # fmt: skip
  return rows


def _jax_calls(name, images, dtype, memory):
  model = models.create(name, {"semantic": CLASSES}, dtype=jnp.dtype(dtype))
  images = jnp.asarray(images)
  variables = jax.jit(model.init)(jax.random.key(0), images)

  def forward(variables, images):
    return model.apply(variables, images)["semantic"]

  def both(variables, images):
    def loss(params):
      out = model.apply({**variables, "params": params}, images, train=True)
      return jnp.mean(out["semantic"] ** 2)

    return jax.value_and_grad(loss)(variables["params"])

  calls = {}
  for which, function in (("forward", forward), ("forward+backward", both)):
    program = jax.jit(function).lower(variables, images).compile()
    calls["jax", which] = lambda program=program: jax.block_until_ready(
      program(variables, images)
    )
    memory["jax", which] = jax_memory(program)
  return calls


def jax_memory(program: jax.stages.Compiled) -> int:
  """MiB that a compiled program holds on a device while it runs."""
  used = program.memory_analysis()
  return (
    used.temp_size_in_bytes
    + used.argument_size_in_bytes
    + used.output_size_in_bytes
    - used.alias_size_in_bytes
  ) // MIB


def _torch_calls(side, name, images, settings):
  import torch

  from experiments.benchmarks import torch_fcrn

  device = "cuda" if settings["gpu"] else "cpu"
  torch.backends.cudnn.benchmark = True
  torch.set_float32_matmul_precision("high")
  if side == "torchvision":
    network = torch_fcrn.torchvision_fcn(name, CLASSES, device)
  else:
    network = torch_fcrn.network(name, CLASSES, device)
  if side == "compile":
    network = torch.compile(network, mode=settings["compile_mode"])
  images = torch.tensor(images).to(device).permute(0, 3, 1, 2)
  images = images.contiguous(memory_format=torch.channels_last)
  half = settings["dtype"] == "bfloat16"

  def scores():
    with torch.autocast(device, torch.bfloat16, enabled=half):
      return network(images)

  def wait():
    if settings["gpu"]:
      torch.cuda.synchronize()

  def forward():
    with torch.inference_mode():
      scores()
    wait()

  def both():
    network.zero_grad(set_to_none=True)
    scores().float().square().mean().backward()
    wait()

  return {(side, "forward"): forward, (side, "forward+backward"): both}


def torch_memory(calls: dict[tuple[str, str], Callable[[], None]]) -> dict:
  """MiB of the GPU's memory at the peak of each call that is not JAX's."""
  rivals = {key: call for key, call in calls.items() if key[0] != "jax"}
  if not rivals:  # and perhaps no torch
    return {}
  import torch

  memory = {}
  for key, call in rivals.items():
    torch.cuda.reset_peak_memory_stats()
    call()
    memory[key] = torch.cuda.max_memory_allocated() // MIB
  return memory
