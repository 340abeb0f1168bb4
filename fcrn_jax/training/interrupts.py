"""Ctrl-C as a wish to stop after the step at hand, with a checkpoint."""

import contextlib
import signal
import threading
from collections.abc import Iterator

from absl import logging


@contextlib.contextmanager
def remembered(enabled: bool = True) -> Iterator[list[int]]:
  """A list that has entries once Ctrl-C was pressed; a second one raises.

  Where there are several hosts, which must stop together, and outside of the
  main thread Ctrl-C does what it always does (enabled=False).
  """
  seen: list[int] = []

  def remember(number, _):
    if seen:
      raise KeyboardInterrupt
    seen.append(number)
    logging.info("stopping after this step; press Ctrl-C again to stop at once")

  with _handler(remember if enabled else None):
    yield seen


def ignored() -> contextlib.AbstractContextManager:
  """Ctrl-C does nothing, nor to processes that are started meanwhile."""
  return _handler(signal.SIG_IGN)


@contextlib.contextmanager
def _handler(handler):
  if handler is None or threading.current_thread() is not (
    threading.main_thread()
  ):
    yield
    return
  before = signal.signal(signal.SIGINT, handler)
  try:
    yield
  finally:
    signal.signal(signal.SIGINT, before)
