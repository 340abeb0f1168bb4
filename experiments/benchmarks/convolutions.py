"""3 x 3 convolutions by dilation, as they are and on spaced cells.

  python -m experiments.benchmark --what=convolutions

Options: batch, side (of the maps, cells), channels and dilations (joined by
"+", one dilation for each), dtype, repeats. Each convolution is timed as it
is, and without dilation on the maps of its cells that lie `dilation` apart
(models.gradients), which are the same products; moving the cells is not
timed. pass: the output, or the gradient of the input or of the kernel.
"""

import functools

import jax

from experiments.benchmarks import timing
from fcrn_jax.models import gradients

OPTIONS = {
  "batch": "", "side": "", "channels": "256+512+512", "dilations": "2+4+8",
  "dtype": "", "repeats": "20",
}  # fmt: skip


def run(options: dict[str, str]) -> list[dict]:
  """One row per convolution, form and pass."""
  gpu = jax.default_backend() == "gpu"
  batch = int(options["batch"] or (16 if gpu else 1))
  side = int(options["side"] or (64 if gpu else 32))
  dtype = options["dtype"] or ("bfloat16" if gpu else "float32")
  channels = options["channels"].split("+")
  dilations = options["dilations"].split("+")
  rows = []
  for width, dilation in zip(channels, dilations, strict=True):
    shape = batch, side, side, int(width)
    rows += _compare(shape, int(dilation), dtype, int(options["repeats"]))
  return rows


def _compare(shape, dilation, dtype, repeats):
  keys = jax.random.split(jax.random.key(0), 3)
  channels = shape[-1]
  x, dy = (jax.random.normal(key, shape, dtype) for key in keys[:2])
  kernel = jax.random.normal(keys[2], (3, 3, channels, channels), dtype)
  spaced = [gradients.spaced_cells(z, dilation) for z in (x, dy)]
  forms = {"dilated": (x, dy, dilation), "spaced cells": (*spaced, 1)}
  calls = {}
  for form, (x, dy, spacing) in forms.items():
    conv = functools.partial(gradients.plain_conv, dilation=spacing)
    passes = {
      "output": (conv, (x, kernel)),
      "input gradient": (_gradient(conv, 0), (x, kernel, dy)),
      "kernel gradient": (_gradient(conv, 1), (x, kernel, dy)),
    }
    for name, (function, arguments) in passes.items():
      program = jax.jit(function).lower(*arguments).compile()
      calls[form, name] = functools.partial(_wait, program, *arguments)
  seconds = timing.in_turns(calls, repeats)
  batch, height, width, _ = shape
  flops = 2 * batch * height * width * 9 * channels**2
  return [
    {
      "maps": f"{batch} x {height} x {width} x {channels}", "dtype": dtype,
      "dilation": dilation, "form": form, "pass": name,
      "us": 1e6 * value, "tflops": flops / value / 1e12,
    }
    for (form, name), value in seconds.items()
  ]  # fmt: skip


def _wait(program, *arguments):
  jax.block_until_ready(program(*arguments))


def _gradient(conv, argument):
  """The gradient of conv(x, kernel) by one of the two."""

  def gradient(x, kernel, dy):
    return jax.vjp(conv, x, kernel)[1](dy)[argument]

  return gradient
