"""How a command begins and ends; imports no JAX, so that --help is quick."""

import sys
from collections.abc import Callable

from absl import app, flags, logging

# What bad input raises: said in a line, not as a traceback.
_MISTAKES = (ValueError, OSError, FloatingPointError)


def run(main: Callable[[], int | None]) -> None:
  """Runs main() after absl has read the flags; exits with what it returns.

  A mistake of the caller's ends in one line and exit code 1; --verbosity=1
  shows where it was found.
  """

  def checked(arguments):
    if len(arguments) > 1:
      raise app.UsageError(
        f"unexpected arguments: {arguments[1:]}; quote a glob: '*.png'."
      )
    try:
      return main()
    except _MISTAKES as error:
      logging.debug("traceback", exc_info=True)
      sys.exit(f"error: {error}")

  app.run(checked, flags_parser=_parse)


def _parse(arguments):
  """Reads the flags; a config file is run here, and may refuse them."""
  try:
    return flags.FLAGS(arguments)
  except (AttributeError, KeyError) as error:  # a misspelt setting
    text = error
    while isinstance(text, AttributeError | KeyError) and text.args:
      text = text.args[0]  # one within the other, whose own text is quoted
    text = f"there is no setting {text}"
  except (flags.Error, *_MISTAKES) as error:
    # Of what a config file raises absl quotes the traceback.
    text = str(error).rpartition("\nValueError: ")[2]
  text = str(text)
  if "Traceback" not in text:
    text = " ".join(text.split())
  sys.exit(f"error: {text}")
