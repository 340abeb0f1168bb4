"""What a workdir holds: config, state, data position, thresholds.

A checkpoint has three items: `variables` (what inference needs: the averaged
weights where the run keeps an average, and batch_stats), `training` (the rest
of the state) and `data` (the position in the input). The only module that
knows orbax.
"""

import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from ml_collections import ConfigDict

from fcrn_jax.files import read_json, write_json
from fcrn_jax.types import listed

PathLike = str | os.PathLike


def write_config(workdir: PathLike, config: ConfigDict) -> None:
  """Saves workdir/config.json."""
  write_json(pathlib.Path(workdir) / "config.json", config.to_dict())


def read_config(workdir: PathLike) -> ConfigDict:
  """The config that the workdir was trained with; lists become tuples."""
  path = pathlib.Path(workdir) / "config.json"
  if not path.is_file():
    raise ValueError(
      f"{workdir} has no config.json, so it is no workdir of a training run;"
      " pass the --workdir that experiments.train wrote."
    )
  return ConfigDict(_tuples(read_json(path))).lock()


# What gives the same parameters another meaning; the rest may change.
_NETWORK = (
  "model.name", "model.stride_in_1x1", "model.caffe_pool", "model.box_unit",
  "preprocessing", "categories", "data.input_scale", "data.normalize",
)  # fmt: skip


def refuse_other_config(workdir: PathLike, config: ConfigDict) -> None:
  """ValueError if the workdir was trained with another network's config."""
  for name, (old, new) in _changed(workdir, config).items():
    # A setting that is newer than the workdir was off.
    if name.startswith(_NETWORK) and (old is not None or new):
      raise ValueError(
        f"{workdir} was trained with config.{name}={old}, and the config now"
        f" has {new}; use a new --workdir, or the config that the workdir was"
        " started with."
      )


def changes(workdir: PathLike, config: ConfigDict) -> list[str]:
  """One line for each setting that the workdir's config has otherwise."""
  return [
    f"config.{name} {old} -> {new}"
    for name, (old, new) in _changed(workdir, config).items()
  ]


def _changed(workdir, config):
  """(before, now) by dotted name of the settings that differ."""
  before = _flat(read_config(workdir).to_dict())
  now = _flat(_tuples(config.to_dict()))
  return {
    name: (before.get(name), now.get(name))
    for name in sorted(before.keys() | now.keys())
    if before.get(name) != now.get(name)
  }


def _flat(values, prefix=""):
  flat = {}
  for name, value in values.items():
    if isinstance(value, dict):
      flat |= _flat(value, f"{prefix}{name}.")
    else:
      flat[prefix + name] = value
  return flat


def _tuples(value):
  if isinstance(value, dict):
    return {key: _tuples(item) for key, item in value.items()}
  if isinstance(value, list):
    return tuple(_tuples(item) for item in value)
  return value


class _Kept:
  """Orbax's preservation policy: the newest checkpoints, and that of `step`."""

  def __init__(self, number: int):
    self.number, self.step = number, None

  def should_preserve(self, checkpoints, *, context):
    del context
    newest = [saved.step for saved in checkpoints][-self.number :]
    return [saved.step in (*newest, self.step) for saved in checkpoints]


class Checkpointer:
  """Saves and restores a training run's checkpoints under a workdir."""

  def __init__(self, workdir: PathLike, max_to_keep: int = 2):
    directory = pathlib.Path(workdir).absolute() / "checkpoints"
    self._kept = _Kept(max_to_keep)
    options = ocp.CheckpointManagerOptions(preservation_policy=self._kept)
    self._manager = _open(directory, options)

  @property
  def latest_step(self) -> int | None:
    """Step of the newest whole checkpoint, None without one."""
    return self._manager.latest_step()

  @property
  def steps(self) -> list[int]:
    """Steps of all whole checkpoints."""
    return sorted(self._manager.all_steps())

  def keep(self, step: int | None) -> None:
    """Keeps the checkpoint of `step` beside the newest, until the next call."""
    self._kept.step = step

  def save(self, step: int, state: Any, data: Mapping) -> None:
    """Starts saving in the background."""
    variables, training = _parts(state)
    self._manager.save(
      step,
      args=ocp.args.Composite(
        variables=ocp.args.StandardSave(variables),
        training=ocp.args.StandardSave(training),
        data=ocp.args.JsonSave(dict(data)),
      ),
      force=True,
    )

  def restore(self, state: Any, step: int | None = None) -> tuple[Any, dict]:
    """(state, data position) of `step` or the newest; `state` is the pattern.

    Raises ValueError that lists the differences where the checkpoint is of
    another network or optimizer.
    """
    step = self.latest_step if step is None else step
    variables, training = _parts(state)
    verify(self._manager, step, "variables", variables)
    verify(self._manager, step, "training", training)
    restored = self._manager.restore(
      step,
      args=ocp.args.Composite(
        variables=ocp.args.StandardRestore(variables),
        training=ocp.args.StandardRestore(training),
        data=ocp.args.JsonRestore(),
      ),
    )
    return _state(state, restored.variables, restored.training), restored.data

  def reached_preemption(self, step: int) -> bool:
    """Whether the machine is about to be taken away."""
    return self._manager.reached_preemption(step)

  def wait(self) -> None:
    """Waits for what is being saved."""
    self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits for what is being saved and frees the manager."""
    self.wait()
    self._manager.close()


def restore_for_inference(
  workdir: PathLike, step: int | None = None
) -> tuple[ConfigDict, dict, int]:
  """(config, variables, step) of a workdir, on the default device.

  The variables are the averaged weights where the run kept an average.
  """
  config = read_config(workdir)
  directory = pathlib.Path(workdir).absolute() / "checkpoints"
  steps = []
  if directory.is_dir():
    # Without read_only=True, which logs warnings about itself.
    options = ocp.CheckpointManagerOptions(create=False)
    manager = _open(directory, options)
    steps = sorted(manager.all_steps())
  if not steps or (step is not None and step not in steps):
    wanted = "checkpoint" if step is None else f"checkpoint of step {step}"
    raise ValueError(
      f"{workdir} has no {wanted} (found: {steps}); train further, or name"
      " another workdir or step."
    )
  step = steps[-1] if step is None else step
  saved = _item_metadata(manager, step, "variables")
  device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  pattern = jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device),
    saved,
  )
  restored = manager.restore(
    step, args=ocp.args.Composite(variables=ocp.args.StandardRestore(pattern))
  )
  manager.close()
  return config, dict(restored.variables), step


def _open(directory, options):
  """The manager; told its handlers, it can read shapes before restoring."""
  return ocp.CheckpointManager(
    directory,
    options=options,
    item_handlers={
      "variables": ocp.StandardCheckpointHandler(),
      "training": ocp.StandardCheckpointHandler(),
      "data": ocp.JsonCheckpointHandler(),
    },
  )


def verify(
  manager: ocp.CheckpointManager, step: int, item: str, expected: Any
) -> None:
  """Compares names and shapes of a saved item with those expected."""
  saved = _shapes(_item_metadata(manager, step, item))
  wanted = _shapes(expected)
  differences = [
    f"{name}: {saved.get(name, 'absent')} in the checkpoint,"
    f" {wanted.get(name, 'absent')} in the run"
    for name in sorted(saved.keys() | wanted.keys())
    if saved.get(name) != wanted.get(name)
  ]
  if differences:
    indent = "\n  "
    raise ValueError(
      f"checkpoint {step} in {manager.directory} is of another network or"
      " optimizer than the config; use a new --workdir, or the config that"
      f" the workdir was started with:\n  {listed(differences, 10, indent)}"
    )


def _item_metadata(manager, step, item):
  return manager.item_metadata(step)[item].tree


def _shapes(tree):
  leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
    for path, leaf in leaves
  }


def _parts(state):
  """The state as (variables, training); see the module."""
  averaged = state.ema is not None
  variables = {
    "params": state.ema if averaged else state.params,
    "batch_stats": state.batch_stats,
  }
  training = {
    "step": state.step,
    "opt_state": state.opt_state,
    "key": state.key,
  }
  if averaged:
    training["params"] = state.params
  return variables, training


def _state(pattern, variables, training):
  averaged = pattern.ema is not None
  return pattern.replace(
    step=training["step"],
    params=training["params"] if averaged else variables["params"],
    batch_stats=variables["batch_stats"],
    opt_state=training["opt_state"],
    ema=variables["params"] if averaged else None,
    key=training["key"],
  )
