"""Two processes with one device each train as one does."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import pytest

from fcrn_jax import Predictor, files
from tests import QUICKLY

ROOT = pathlib.Path(__file__).parent.parent


def train(workdir, cache, num_processes, num_steps):
  """Runs the command in each process; output of the first."""
  with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    address = f"127.0.0.1:{probe.getsockname()[1]}"
  settings = {
    "model.width": 64, "data.crop": "(32, 32)", "data.num_train": 12,
    "data.num_val": 3, "batch_size": 4, "num_steps": num_steps, "log_every": 1,
    "checkpoint_every": 2, "eval_every": 2, "inference.scales": "(1.0,)",
  }  # fmt: skip
  command = [
    sys.executable, "-m", "experiments.train", f"--workdir={workdir}",
    "--config=configs/shapes.py",
    *(f"--config.{name}={value}" for name, value in settings.items()),
  ]  # fmt: skip
  environment = {
    **os.environ,
    "XLA_FLAGS": QUICKLY,
    "JAX_PLATFORMS": "cpu",
    "JAX_COMPILATION_CACHE_DIR": str(cache),
    "JAX_COORDINATOR_ADDRESS": address,
    "JAX_NUM_PROCESSES": str(num_processes),
  }
  processes = [
    subprocess.Popen(
      [*command, "--distributed"] if num_processes > 1 else command,
      cwd=ROOT,
      env={**environment, "JAX_PROCESS_ID": str(i)},
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )
    for i in range(num_processes)
  ]
  outputs = [process.communicate(timeout=400)[0] for process in processes]
  assert [process.returncode for process in processes] == [0] * num_processes, (
    "\n".join(outputs)
  )
  return outputs[0]


def test_two_hosts_train_save_continue_and_score_as_one(tmp_path):
  cache = tmp_path / "cache"
  train(tmp_path / "two", cache, 2, num_steps=2)
  assert "mean_iou" in train(tmp_path / "two", cache, 2, num_steps=4)
  train(tmp_path / "one", cache, 1, num_steps=4)
  rows = {
    name: files.read_lines(tmp_path / name / "metrics.jsonl")
    for name in ("one", "two")
  }
  assert [row["step"] for row in rows["two"]] == [1, 2, 2, 3, 4, 4]
  for one, two in zip(rows["one"], rows["two"], strict=True):
    assert one.keys() == two.keys()
    for name in {"loss", "gradient_norm", "val_mean_iou"} & one.keys():
      assert two[name] == pytest.approx(one[name], rel=2e-3), (one, name)
  scores = json.loads((tmp_path / "two/eval_val.json").read_text())
  assert scores["checkpoint_step"] == 4
  assert Predictor.load(tmp_path / "two").step == 4
