"""The training loop, to be read from top to bottom."""

import contextlib
import os
import pathlib
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from clu import parameter_overview
from ml_collections import ConfigDict
from tqdm import tqdm

from fcrn_jax import checkpoint, data, evaluation, metrics, models, visualize
from fcrn_jax.data import check, pipeline
from fcrn_jax.predictor import Predictor, loading
from fcrn_jax.training import (
  interrupts,
  optimizer,
  parallel,
  settings,
  step,
  writers,
)

_NUM_SAMPLES = 8


def train_and_evaluate(
  config: ConfigDict,
  workdir: str | os.PathLike,
  train_data: Any = None,
  val_data: Any = None,
) -> dict:
  """Trains, continuing a workdir that has a checkpoint, then evaluates.

  Args:
    config: see configs/default.py.
    workdir: gets config.json, checkpoints/, metrics.jsonl, curves.png,
      eval_<split>.json and samples/.
    train_data, val_data: data sets (see data.load) in place of the config's,
      such as data.Functions; both or neither.

  Returns:
    The scores of eval_<split>.json; nothing where there are none: boxes alone,
    or a run that was told to stop early.

  Raises:
    ValueError: bad settings or data, or a workdir of another network.
    FloatingPointError: the loss is no longer finite.
  """
  workdir, config = pathlib.Path(workdir), config.copy_and_resolve_references()
  metrics.InstanceEvaluator(2, config.protocol)  # refuses an unknown one
  scored = "semantic" in config.model.heads
  if (train_data is None) != (val_data is None):
    raise ValueError("train_data and val_data go together; pass both.")
  if train_data is None:
    train_data = load_split(config, "train")
    val_data = load_split(config, "val") if scored else None
  else:
    with config.unlocked():  # what the workdir says it was trained on
      config.data.name = train_data.name
      config.data.path = str(train_data.path or "")
      config.data.train_split = train_data.split
      config.data.val_split = val_data.split
  if scored:
    # What the evaluation would refuse; of the images, the first is tried.
    check.refuse_leak(train_data, val_data, config.allow_leak)
    evaluation.refuse_other_categories(train_data.categories, val_data)
    evaluation.read(val_data, 0, config.data.on_error)
  state, scores = _train(config, workdir, train_data, val_data)
  if int(state.step) < config.num_steps:
    logging.info("stopped at step %d; the same command goes on", state.step)
    return {}
  if not scored:
    print(
      "a network of boxes is evaluated with one of categories: python -m"
      f" experiments.evaluate --semantic=WORKDIR --localization={workdir}"
    )
    return {}
  predictor = Predictor.load(workdir)
  if scores is None:
    scores = _evaluate(config, predictor, train_data, val_data, workdir)
  if jax.process_index() == 0:
    examples = [
      example
      for index in range(min(_NUM_SAMPLES, len(val_data)))
      if (example := evaluation.read(val_data, index, config.data.on_error))
    ]
    evaluation.draw(predictor, examples, workdir / "samples")
    print(evaluation.table(scores))
    print(f"pictures: {workdir / 'samples'}, curves: {workdir / 'curves.png'}")
  return scores


def load_split(config: ConfigDict, which: str):
  """The data set's `train` or `val` split as the config names it."""
  return data.load(**loading.dataset_arguments(config.data, which))


def train(
  config: ConfigDict,
  workdir: str | os.PathLike,
  train_data: Any = None,
  val_data: Any = None,
) -> step.TrainState:
  """Trains to config.num_steps and returns the last state.

  train_data, val_data: as of train_and_evaluate, but config.data is kept as it
    is; the latter is only looked at where config.eval_every asks for scores on
    the way.
  """
  return _train(config, workdir, train_data, val_data)[0]


def _train(config, workdir, train_data, val_data):
  """The last state, and the last step's scores if all images were scored."""
  workdir, config = pathlib.Path(workdir), config.copy_and_resolve_references()
  main_process = jax.process_index() == 0
  if train_data is None:
    train_data = load_split(config, "train")
  with config.unlocked():
    config.categories = tuple(train_data.categories)
    config.category_ids = tuple(getattr(train_data, "category_ids", ()))
    config.background = train_data.background
  model = loading.create_model(config)
  settings.check(config, model, train_data)
  if config.eval_every and val_data is None:
    val_data = load_split(config, "val")
  learning_rate = optimizer.schedule(
    config.optim.schedule,
    config.optim.lr,
    config.num_steps,
    config.optim.warmup_steps,
  )
  tx = optimizer.create(
    config.optim.name,
    learning_rate,
    weight_decay=config.optim.weight_decay,
    momentum=config.optim.momentum,
    clip_norm=config.optim.clip_norm,
  )
  checkpointer = checkpoint.Checkpointer(workdir)
  continued = checkpointer.latest_step is not None
  if config.model.batch_norm == "frozen" and not (config.weights or continued):
    logging.warning(
      "config.model.batch_norm is 'frozen' without config.weights: its"
      " statistics stay 0 and 1 and the network hardly learns; pass"
      " --config.weights=FILE, or --config.model.batch_norm=synced"
    )
  state = _first_state(config, model, tx, "" if continued else config.weights)
  batches = iter(
    pipeline.train_batches(
      train_data,
      settings.pipeline_options(config, model.stride),
      seed=config.seed,
      process_index=jax.process_index(),
      process_count=jax.process_count(),
    )
  )

  if continued:
    state, position = checkpointer.restore(state)
    checkpoint.refuse_other_config(workdir, config)
    for line in checkpoint.changes(workdir, config):
      logging.info("changed since the run was started: %s", line)
    batches.set_state(position)
    logging.info("continuing %s at step %d", workdir, int(state.step))
  start = int(state.step)

  def train_step_of(factor):
    return parallel.pmap_step(
      step.make_train_step(
        model.coarser(factor),
        tx,
        settings.loss_options(config),
        loading.preprocessing(config),
        config.ema,
        factor,
        parts=config.accumulate,
      )
    )

  num_coarse = round(config.coarse * config.num_steps)
  train_step = train_step_of(2 if start < num_coarse else 1)
  if main_process:
    checkpoint.write_config(workdir, config)
    overview = parameter_overview.get_parameter_overview(state.params)
    (workdir / "parameters.txt").write_text(overview + "\n")
    logging.info("network %s, %s", config.model.name, overview.split("\n")[-1])
  state = parallel.replicate(state)
  writer = writers.MetricsWriter(workdir, start, main_process)
  # The devices of one CPU share threads: two steps under way at once can each
  # hold those that the other's collectives wait for.
  wait_each_step = jax.default_backend() == "cpu"
  sums, counted = {}, start
  scores = best = None
  if config.eval_every:
    main_score = _main_score(config, val_data)
    best = writers.best(workdir, f"val_{main_score}", checkpointer.steps)
    checkpointer.keep(best and best[1])
  progress = tqdm(
    total=config.num_steps,
    initial=start,
    desc="train",
    unit="step",
    # In a file, where a bar would be thousands of lines, these are the log's.
    disable=None if main_process else True,
    mininterval=1.0,
  )
  # Closing waits for a checkpoint that is being saved, also after an error.
  with (
    progress,
    contextlib.closing(checkpointer),
    interrupts.remembered(jax.process_count() == 1) as interrupted,
  ):
    for now in range(start + 1, config.num_steps + 1):
      finer = start < num_coarse == now - 1
      if finer:
        train_step = train_step_of(1)
        logging.info("step %d: the coarse steps are over", now)
      compiles = finer or now == start + 1
      if compiles:
        logging.info("compiling the step; the next start will be quicker")
      if now == start + 1:
        with interrupts.ignored():  # which the input's processes inherit
          batch = next(batches)
      else:
        batch = next(batches)
      batch = parallel.split_batch(batch, jax.local_device_count())
      state, measured = train_step(state, batch)
      if wait_each_step:
        jax.block_until_ready(state)
      sums = _add(sums, measured) if sums else measured
      if compiles:
        # Lest the time left and the speed count the compilation.
        progress.unpause()
        clock, timed = time.perf_counter(), now
      progress.update()
      last = now == config.num_steps or checkpointer.reached_preemption(now)
      last |= bool(interrupted)
      logs = _due(now, config.log_every) or last
      evaluates = config.eval_every > 0 and (
        _due(now, config.eval_every) or now == config.num_steps
      )
      saves = _due(now, config.checkpoint_every) or evaluates or last
      if logs or saves:
        scalars = step.scalars(sums, now - counted)
        _refuse_infinite(scalars, now, checkpointer.latest_step)
      pause = time.perf_counter()
      if logs:
        scalars["lr"] = float(learning_rate(now - 1))
        images = (now - timed) * config.batch_size  # none at the first step
        speed = images / (pause - clock) if images else np.nan
        scalars["images_per_second"] = speed
        sums, counted, clock, timed = {}, now, pause, now
        writer.write(now, scalars)
        if main_process:
          writers.say(_log_line(config, now, scalars))
        progress.set_postfix(loss=f"{scalars['loss']:.3f}", refresh=False)
      if saves:
        checkpointer.save(now, parallel.savable(state), batches.get_state())
      if evaluates:
        checkpointer.wait()
        scores = _evaluate(
          config,
          Predictor.load(workdir),  # not kept: its weights take memory
          train_data,
          val_data,
          workdir,
          config.eval_images,
        )
        writer.write(now, _numbers(scores, "val_"))
        if main_process:
          found = writers.summary(scores, visualize.curves.SCORES)
          writers.say(f"step {now}, {val_data.split}: {found}")
        if scores.get(main_score) is not None:
          best = max(best or (0.0, 0), (scores[main_score], now))
          checkpointer.keep(best[1])
      # Logging, saving and evaluating are not training's time.
      clock += time.perf_counter() - pause
      if last:
        break
  if main_process and (workdir / "metrics.jsonl").is_file():
    visualize.save_curves(
      workdir / "metrics.jsonl",
      workdir / "curves.png",
      (train_data.background, *train_data.categories),
    )
  if main_process and best:
    print(
      f"highest {main_score} of {val_data.split}: {best[0]:.4f} at step"
      f" {best[1]}, whose checkpoint is kept: --step={best[1]} of"
      " experiments.evaluate and predict takes it. It was picked on these"
      " images, so that its score there flatters."
    )
  if int(state.step) < config.num_steps or config.eval_images:
    scores = None
  return state, scores


def _main_score(config, val_data):
  """What says which checkpoint is the best."""
  instances = "boxes" in config.model.heads and val_data.has_instances
  return metrics.MAIN_SCORE[config.protocol] if instances else "mean_iou"


def _log_line(config, now, scalars):
  names = ("loss", "semantic_loss", "box_loss", "box_iou", "lr")
  line = f"step {now}/{config.num_steps}: {writers.summary(scalars, names)}"
  speed = scalars["images_per_second"]
  if np.isfinite(speed):
    left = (config.num_steps - now) * config.batch_size / speed
    line += f", {speed:.3g} images/s, {tqdm.format_interval(left)} left"
  return line


def _due(now, every):
  return every > 0 and now % every == 0


def _refuse_infinite(scalars, now, latest_step):
  """FloatingPointError if a loss or gradient since the last log is none."""
  for name in ("loss", "gradient_norm"):
    if not np.isfinite(scalars[name]):
      raise FloatingPointError(
        f"the {name} is {scalars[name]} near step {now}; lower config.optim.lr"
        " or set config.optim.clip_norm, and run experiments.check_data on the"
        f" data. The last checkpoint is of step {latest_step}."
      )


def _first_state(config, model, tx, weights):
  height, width = config.data.crop
  key_params, key_steps = jax.random.split(jax.random.key(config.seed))
  variables = jax.jit(model.init, static_argnames="train")(
    key_params, jnp.zeros((1, height, width, 3)), train=False
  )
  if weights:
    variables = models.load_pretrained(
      weights, model, variables, preprocessing=loading.preprocessing(config)
    )
  # Raw key data: a checkpoint holds plain arrays.
  key_steps = jax.random.key_data(key_steps)
  return step.create_state(key_steps, variables, tx, config.ema)


@jax.jit
def _add(a, b):
  """On the device, so that no step waits for the host."""
  return jax.tree.map(jnp.add, a, b)


def _numbers(scores, prefix):
  """Those of the scores that are one, for metrics.jsonl."""
  return {
    f"{prefix}{name}": value
    for name, value in scores.items()
    if isinstance(value, float)
  }


def _evaluate(config, predictor, train_data, val_data, workdir, max_images=0):
  """evaluation.evaluate as the config says; a part has a file of its own."""
  return evaluation.evaluate(
    predictor,
    val_data,
    protocol=config.protocol,
    workdir=workdir,
    max_images=max_images,
    allow_leak=config.allow_leak,
    train_sets=[train_data],
    on_error=config.data.on_error,
    suffix=evaluation.part_suffix(val_data, max_images),
    progress=sys.stderr.isatty(),
  )
