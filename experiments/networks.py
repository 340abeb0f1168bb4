"""The flags that say which networks a command looks with, and how."""

from absl import flags

_WORKDIR = flags.DEFINE_string(
  "workdir", None, "A joint network's workdir; to predict, also an exported"
  " file.",
)  # fmt: skip
_SEMANTIC = flags.DEFINE_string(
  "semantic", None, "Workdir of the network that gives the scores."
)
_LOCALIZATION = flags.DEFINE_string(
  "localization", None, "Workdir of the network that gives the boxes."
)
_STEP = flags.DEFINE_integer("step", None, "Checkpoint; default the newest.")
_TTA = flags.DEFINE_bool(
  "tta",
  True,
  "Test-time augmentation: all views of the config; --notta: one, which is"
  " several times as fast.",
)


def load():
  """The flags' predictor."""
  from fcrn_jax.predictor import Predictor

  if bool(_WORKDIR.value) == bool(_SEMANTIC.value or _LOCALIZATION.value):
    raise ValueError(
      "pass --workdir of a joint network, or --semantic and --localization."
    )
  if _LOCALIZATION.value and not _SEMANTIC.value:
    raise ValueError(
      "--localization gives boxes alone; pass --semantic=WORKDIR too."
    )
  predictor = Predictor.load(
    _WORKDIR.value,
    semantic=_SEMANTIC.value,
    localization=_LOCALIZATION.value,
    step=_STEP.value,
  )
  if not _TTA.value:
    predictor.views = predictor.views.one_view()
  return predictor


def joint() -> tuple[str, int | None]:
  """The joint network's workdir and the step; ValueError without one."""
  if not _WORKDIR.value:
    raise ValueError("this is of one joint network; pass --workdir.")
  return _WORKDIR.value, _STEP.value


def workdir() -> str | None:
  """The workdir whose settings count."""
  return _WORKDIR.value or _LOCALIZATION.value or _SEMANTIC.value


def suffix() -> str:
  """What tells scores of these flags from the full ones."""
  parts = [] if _STEP.value is None else [f"_step_{_STEP.value}"]
  return "".join(parts if _TTA.value else [*parts, "_one_view"])
