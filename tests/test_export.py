"""Exported files: equal to the live model, alone in a process, described."""

import json
import shutil
import subprocess
import sys
import zipfile
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import optax
import pytest
import safetensors.numpy

from configs import default
from fcrn_jax import checkpoint, export, files, inference, instances, models
from fcrn_jax.models import pretrained
from fcrn_jax.predictor import Predictor, artefact
from fcrn_jax.predictor.loading import create_model
from fcrn_jax.training import step
from tests.networks import random_variables

BGR = {"mean": (1.0, 2.0, 3.0), "scale": (0.02, 0.02, 0.02)}


def write_workdir(folder, heads=("semantic", "boxes"), seed=0):
  """A workdir of a network with random weights, as training leaves it."""
  config = default.get_config().unlock()
  config.categories = ("ant", "bee", "cat")
  config.model.name = "fcrn_tiny"
  config.model.heads = heads
  config.model.box_unit = 16.0
  config.preprocessing = {**BGR, "channel_order": "bgr"}
  config.instances.min_extent = 0.0  # what random weights find has none
  config.background = "sky"
  config.data.name = "shapes"
  config.inference.tile = 128
  config.inference.tile_overlap = 32
  model = create_model(config)
  variables = random_variables(model, seed)
  state = step.create_state(
    jax.random.key_data(jax.random.key(1)), variables, optax.sgd(0.1), 0.0
  )
  checkpointer = checkpoint.Checkpointer(folder)
  checkpointer.save(7, state, {})
  checkpointer.close()
  checkpoint.write_config(folder, config)
  for name, at, oracle, value in (
    ("val", 7, "", 0.5), ("test", 6, "", 0.6), ("val_oracle_both", 7, "both", 1)
  ):  # fmt: skip
    scores = {"mean_iou": value, "checkpoint_step": at, "oracle": oracle}
    files.write_json(folder / f"eval_{name}.json", scores)
  files.write_json(
    folder / "thresholds.json", {"instances": {"iou_threshold": 0.4}}
  )
  return folder


def write(predictor, path):
  """predictor.save without shape checks, which choke on symbolic sizes."""
  jaxtyping.config.update("jaxtyping_disable", True)
  try:
    predictor.save(path)
  finally:
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  return write_workdir(tmp_path_factory.mktemp("workdir"))


@pytest.fixture(scope="module")
def live(workdir):
  return Predictor.load(workdir)


@pytest.fixture(scope="module")
def file(live, tmp_path_factory):
  path = tmp_path_factory.mktemp("export") / "model.fcrn"
  write(live, path)
  return path


def picture(height, width, seed=0):
  rng = np.random.default_rng(seed)
  coarse = rng.integers(0, 256, (-(-height // 8), -(-width // 8), 3))
  image = np.kron(coarse, np.ones((8, 8, 1)))[:height, :width]
  return image.astype(np.uint8)


def assert_same(a, b):
  assert len(a) == len(b) > 3
  np.testing.assert_array_equal(a.classes, b.classes)
  np.testing.assert_allclose(a.scores, b.scores, rtol=1e-5)
  np.testing.assert_allclose(a.boxes, b.boxes, rtol=1e-5, atol=1e-4)
  # Rounding may turn a pixel that is all but a tie.
  assert np.mean(a.semantic != b.semantic) < 1e-3
  assert np.mean(a.layers != b.layers) < 1e-3
  np.testing.assert_allclose(a.confidence, b.confidence, atol=1e-3)
  assert a.categories == b.categories == ("ant", "bee", "cat")


def test_predictor_of_the_file_equals_the_live_one(live, file):
  """Alone, several at once, and in tiles."""
  loaded = Predictor.load(file)
  assert_same(loaded(picture(33, 50)), live(picture(33, 50)))
  images = [picture(33, 50, seed) for seed in (1, 2)]
  both = zip(
    loaded.predict_batch(images), live.predict_batch(images), strict=True
  )
  for a, b in both:
    assert_same(a, b)
  assert_same(loaded(picture(90, 150)), live(picture(90, 150)))


def test_settings_travel(live, file):
  loaded = Predictor.load(file)
  assert loaded.views == live.views
  assert loaded.options == live.options
  assert loaded.options.iou_threshold == 0.4
  assert (loaded.step, loaded.stride) == (7, 4)
  assert loaded.background == "sky" and loaded.has_boxes
  assert list(loaded.trained_on) == list(live.trained_on)
  # Views are the caller's choice, of a file too.
  both = [p.views for p in (loaded, live)]
  loaded.views = live.views = inference.Options(flip=True)
  try:
    assert_same(loaded(picture(33, 50)), live(picture(33, 50)))
  finally:
    loaded.views, live.views = both


def test_the_program_alone_gives_the_same(live, file):
  image = picture(33, 50)
  out = export.load(file).call(image[None])
  result = live(image)
  np.testing.assert_array_equal(out["semantic"][0], result.semantic)
  labels = np.asarray(out["labels"][0])
  valid = [k for k in np.flatnonzero(out["valid"][0]) if (labels == k).any()]
  assert len(valid) == len(result) > 3
  for index, k in enumerate(valid):
    np.testing.assert_array_equal((labels == k).any(axis=0), result.mask(index))
    assert out["classes"][0, k] == result.classes[index]
    np.testing.assert_allclose(
      out["boxes"][0, k], result.boxes[index], rtol=1e-5, atol=1e-4
    )


def test_cells_of_padding_repeat_the_last_of_the_image():
  """Whose labels near the edge would otherwise mix with the padding's."""
  rng = np.random.default_rng(0)
  outputs = {"semantic": rng.normal(size=(1, 4, 4, 3)).astype(np.float32)}
  padded = {"semantic": outputs["semantic"].copy()}
  padded["semantic"][:, 2:] = padded["semantic"][:, :, 3:] = 50 * np.eye(3)[1]
  sizes, options = np.int32([[7, 12]]), instances.Options()
  first, second = (
    artefact.segment(out, sizes, options, 4)["semantic"][0, :7, :12]
    for out in (outputs, padded)
  )
  np.testing.assert_array_equal(first, second)


def test_min_area_is_of_the_image_whatever_the_network_sees(
  workdir, tmp_path, monkeypatch
):
  kept = {}
  monkeypatch.setattr(export, "save", lambda *a: kept.update(segment=a[2]))
  monkeypatch.setattr(
    artefact, "segment", lambda out, sizes, options, stride: options.min_area
  )
  predictor = Predictor.load(workdir)
  predictor.input_scale = 0.5
  predictor.options = instances.Options(min_area=80.0)
  predictor.save(tmp_path / "x.fcrn")
  assert kept["segment"](None, None) == 20


def test_a_fresh_process_needs_no_model_code(file, live, tmp_path):
  image = picture(33, 50)
  np.save(tmp_path / "image.npy", image)
  code = f"""
import sys
class Refuse:
  def find_spec(self, name, path=None, target=None):
    if name.split(".")[0] == "flax" or name.startswith("fcrn_jax.models"):
      raise ImportError(name)
sys.meta_path.insert(0, Refuse())
import numpy as np, fcrn_jax as fcrn
image = np.load({str(tmp_path / "image.npy")!r})
result = fcrn.Predictor.load({str(file)!r})(image)
np.savez({str(tmp_path / "out.npz")!r}, layers=result.layers,
  scores=result.scores)
"""
  subprocess.run([sys.executable, "-c", code], check=True)
  result = live(image)
  with np.load(tmp_path / "out.npz") as out:
    np.testing.assert_array_equal(out["layers"], result.layers)
    np.testing.assert_allclose(out["scores"], result.scores, rtol=1e-5)


def test_jax_and_safetensors_are_enough(file, live, tmp_path):
  """The recipe of BUILD.md, in a process that cannot import this library."""
  image = picture(64, 64)
  np.save(tmp_path / "image.npy", image)
  code = f"""
import sys
sys.modules["fcrn_jax"] = None
import json, zipfile
import jax, numpy as np
import jax.export
from safetensors.numpy import load
with zipfile.ZipFile({str(file)!r}) as archive:
  metadata = json.loads(archive.read("metadata.json"))
  weights = load(archive.read("weights.safetensors"))
  program = jax.export.deserialize(archive.read("segment.jaxexport"))
images = np.load({str(tmp_path / "image.npy")!r})[None]
sizes = np.int32([images.shape[1:3]])
out = jax.jit(program.call)(weights, images, sizes)
np.save({str(tmp_path / "out.npy")!r}, out["semantic"][0])
assert metadata["categories"] == ["ant", "bee", "cat"]
"""
  subprocess.run([sys.executable, "-c", code], check=True)
  np.testing.assert_array_equal(
    np.load(tmp_path / "out.npy"), live(image).semantic
  )


def test_two_networks_in_one_file(tmp_path):
  scores = write_workdir(tmp_path / "s", ("semantic",), seed=1)
  boxes = write_workdir(tmp_path / "l", ("boxes",), seed=2)
  live = Predictor.load(semantic=scores, localization=boxes)
  write(live, tmp_path / "both.fcrn")
  loaded = Predictor.load(tmp_path / "both.fcrn")
  assert_same(loaded(picture(33, 50)), live(picture(33, 50)))


def test_a_network_of_scores_alone(tmp_path):
  scores = write_workdir(tmp_path / "s", ("semantic",))
  live = Predictor.load(semantic=scores)
  write(live, tmp_path / "scores.fcrn")
  assert not Predictor.load(tmp_path / "scores.fcrn").has_boxes
  out = export.load(tmp_path / "scores.fcrn").call(picture(33, 50)[None])
  assert set(out) == {"semantic", "confidence"}
  np.testing.assert_array_equal(
    out["semantic"][0], live(picture(33, 50)).semantic
  )


def test_networks_of_two_strides_are_refused(tmp_path):
  networks = {
    head: SimpleNamespace(model=SimpleNamespace(stride=stride))
    for head, stride in (("semantic", 4), ("boxes", 8))
  }
  with pytest.raises(ValueError, match=r"strides \[4, 8\]"):
    artefact.save(tmp_path / "x", None, networks)


def test_own_networks_are_told_what_to_do(tmp_path):
  predictor = Predictor(lambda images: {}, 4, ("a",))
  with pytest.raises(ValueError, match=r"fcrn_jax\.export\.save"):
    predictor.save(tmp_path / "x")


def test_broken_files_are_named(file, tmp_path):
  data = file.read_bytes()
  for size in (0, 100, len(data) // 2, len(data) - 3):
    (tmp_path / "cut.fcrn").write_bytes(data[:size])
    with pytest.raises(ValueError, match=r"cut\.fcrn"):
      Predictor.load(tmp_path / "cut.fcrn")
  with zipfile.ZipFile(file) as archive:
    entries = {name: archive.read(name) for name in archive.namelist()}

  def rewrite(**changes):
    with zipfile.ZipFile(tmp_path / "odd.fcrn", "w") as archive:
      for name, value in {**entries, **changes}.items():
        archive.writestr(name, value)

  metadata = json.loads(entries["metadata.json"])
  rewrite(**{"metadata.json": json.dumps({**metadata, "format": 99})})
  with pytest.raises(ValueError, match="format 99"):
    export.load(tmp_path / "odd.fcrn")
  rewrite(**{"segment.jaxexport": b"nonsense"})
  with pytest.raises(ValueError, match="Export it again"):
    export.load(tmp_path / "odd.fcrn")
  with pytest.raises(ValueError, match="expected uint8"):
    export.load(file).call(np.zeros((8, 8, 3), np.uint8))


def test_command_writes_both(workdir, tmp_path, live):
  def run(output):
    return subprocess.run(
      [sys.executable, "-m", "experiments.export", f"--workdir={workdir}",
       f"--output={tmp_path / output}"], capture_output=True, text=True,
    )  # fmt: skip

  done = run("model.fcrn")
  assert done.returncode == 0 and "MiB" in done.stdout, done.stderr
  loaded = Predictor.load(tmp_path / "model.fcrn")
  assert_same(loaded(picture(33, 50)), live(picture(33, 50)))
  done = run("weights.safetensors")
  assert done.returncode == 0, done.stderr
  card = json.loads((tmp_path / "weights.json").read_text())
  assert card["name"] == "fcrn_tiny" and card["step"] == 7
  assert card["categories"] == ["ant", "bee", "cat"]
  assert list(card["scores"]) == ["eval_val"]
  assert card["scores"]["eval_val"]["mean_iou"] == 0.5
  assert card["config"]["model"]["box_unit"] == 16.0
  assert card["preprocessing"]["channel_order"] == "bgr"
  with safetensors.safe_open(tmp_path / "weights.safetensors", "numpy") as f:
    assert json.loads(f.metadata()["card"]) == card


def test_saved_weights_load_into_a_model(workdir, tmp_path):
  path, copy = tmp_path / "w.safetensors", tmp_path / "copy"
  shutil.copytree(workdir, copy)
  config = checkpoint.read_config(copy).unlock()
  config.data.normalize, config.data.input_scale = True, 2.0
  checkpoint.write_config(copy, config)
  artefact.save_weights(path, copy)
  found = pretrained.read(path).conventions
  assert found.preprocessing == (BGR["mean"], BGR["scale"], "bgr")
  assert found.normalize and found.input_scale == 2
  _, variables, _ = checkpoint.restore_for_inference(workdir)
  model = models.create("fcrn_tiny", {"semantic": 4, "boxes": 3}, box_unit=16.0)
  zeros = jax.tree.map(jnp.zeros_like, variables)
  loaded = models.load_pretrained(path, model, zeros)
  jax.tree.map(np.testing.assert_array_equal, loaded, variables)
