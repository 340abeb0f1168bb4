"""Timing of rivals in turns, so that a busy machine hits all of them alike."""

import re
import statistics
import time
from collections.abc import Callable

# Dense bfloat16 TFLOP/s of the data sheets, by words of jax's device_kind.
_PEAK_BF16 = (
  ("H100 PCIe", 756), ("H100", 989), ("H200", 989), ("GH200", 989),
  ("B200", 2250), ("A100", 312), ("L40S", 362), ("L4", 121), ("A10", 125),
  ("RTX 4090", 165), ("TPU v5 lite", 197), ("TPU v4", 275), ("TPU v5p", 459),
)  # fmt: skip


def in_turns(
  calls: dict[str, Callable[[], None]], repeats: int
) -> dict[str, float]:
  """Median seconds of each call; every call waits for its own result.

  One call of each, unmeasured, goes first. Each measured call follows an
  unmeasured one of its own, which lets thread pools and caches change hands.
  """
  seconds = {name: [] for name in calls}
  for call in calls.values():
    call()
  for _ in range(repeats):
    for name, call in calls.items():
      call()
      start = time.perf_counter()
      call()
      seconds[name].append(time.perf_counter() - start)
  return {name: statistics.median(values) for name, values in seconds.items()}


def peak_flops(device_kind: str) -> float | None:
  """The accelerator's bfloat16 peak in FLOP/s, None if unknown."""
  for part, teraflops in _PEAK_BF16:
    if re.search(rf"\b{part}\b", device_kind):  # an L40 is no L4
      return teraflops * 1e12
  return None
