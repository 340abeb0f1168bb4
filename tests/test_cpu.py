"""XLA's flags and the allocator."""

import os
import subprocess
import sys

import jax
import pytest

from fcrn_jax import cpu

pytestmark = pytest.mark.usefixtures("_unprepared_afterwards")
FLAG = "--xla_cpu_experimental_ynn_fusion_type="


@pytest.fixture
def _unprepared_afterwards(monkeypatch):
  monkeypatch.setattr(cpu, "prepared", False)


@pytest.mark.parametrize(
  ("before", "after"),
  [("", FLAG), ("--a=1", f"--a=1 {FLAG}"), (f"{FLAG}X", f"{FLAG}X")],
)
def test_what_xla_flags_says_is_kept(monkeypatch, before, after):
  monkeypatch.setenv("XLA_FLAGS", before)
  monkeypatch.setattr(cpu.sys, "platform", "none")
  cpu.prepare()
  assert os.environ["XLA_FLAGS"] == after


def test_an_unknown_version_of_jax_gets_no_flag(monkeypatch):
  monkeypatch.setenv("XLA_FLAGS", "")
  monkeypatch.setattr(cpu.sys, "platform", "none")
  monkeypatch.setattr(jax, "__version_info__", (1, 0, 0))
  cpu.prepare()
  assert os.environ["XLA_FLAGS"] == ""


@pytest.mark.parametrize("plugins", [[], ["jax_cuda"]])
def test_the_allocator_is_left_alone_beside_an_accelerator(
  monkeypatch, plugins
):
  calls = []

  class Libc:
    mallopt = staticmethod(lambda *arguments: calls.append(arguments))

  monkeypatch.setenv("XLA_FLAGS", FLAG)
  monkeypatch.setattr(cpu.sys, "platform", "linux")
  monkeypatch.setattr(cpu.ctypes, "CDLL", lambda _: Libc)
  monkeypatch.setattr(cpu.importlib.util, "find_spec", lambda _: None)
  monkeypatch.setattr(
    cpu.importlib.metadata, "entry_points", lambda group: plugins
  )
  cpu.prepare()
  assert len(calls) == (0 if plugins else 3)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_memory_is_kept_between_calls():
  # Page faults of making and freeing 64 MiB, ten times over.
  code = """
import resource
import numpy as np
from fcrn_jax import cpu
cpu.prepare()
np.ones(2**24, np.float32)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
  np.ones(2**24, np.float32)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
  run = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, check=True
  )
  assert int(run.stdout) < 1000  # of 16 384 a time
