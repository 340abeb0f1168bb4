"""The commands as they are run: files in, files out, exit codes, help."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import tifffile
from PIL import Image
from pycocotools import mask as coco_mask

import fcrn_jax as fcrn
from experiments import tune
from fcrn_jax import data
from tests import QUICKLY, workdirs

ROOT = pathlib.Path(__file__).parent.parent
COMMANDS = sorted(
  path.stem
  for path in (ROOT / "experiments").glob("*.py")
  if path.stem not in ("__init__", "command", "common", "networks")
)


def run(*arguments, cache=None, code=0):
  environment = {**os.environ, "XLA_FLAGS": QUICKLY, "COLUMNS": "80"}
  if cache is not None:
    environment["JAX_COMPILATION_CACHE_DIR"] = str(cache)
  done = subprocess.run(
    [sys.executable, "-m", *map(str, arguments)],
    cwd=ROOT,
    env=environment,
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert done.returncode == code, done.stdout + done.stderr
  return done.stdout + done.stderr


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
  return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  return workdirs.make(
    tmp_path_factory.mktemp("workdir"),
    data__num_val=3,
    model__box_unit=16.0,
    inference__flip=True,
    instances__score_floor=0.0,  # lest an untrained network finds nothing
    instances__min_extent=0.0,
    instances__room=64,  # for all fragments: one program each
  )


@pytest.mark.parametrize("command", COMMANDS)
def test_help_fits_a_screen_and_shows_how(command):
  text = run(f"experiments.{command}", "--help", code=1)
  lines = text.splitlines()
  assert len(lines) <= 45 and max(map(len, lines)) <= 80, text
  assert f"python -m experiments.{command}" in text


def write_images(folder):
  """Files of every kind; their shapes (height, width) by stem."""
  folder.mkdir()
  rng = np.random.default_rng(0)
  rgb = rng.integers(0, 255, (50, 64, 3), np.uint8)
  Image.fromarray(rgb).save(folder / "rgb.png")
  Image.fromarray(rgb[..., 0]).save(folder / "gray.jpg")
  Image.fromarray(rgb).convert("RGBA").save(folder / "7.png")
  wide = Image.fromarray(rgb)
  exif = Image.Exif()
  exif[0x0112] = 6  # turn by a quarter to show
  wide.save(folder / "turned.jpg", exif=exif)
  deep = rng.integers(0, 65535, (40, 30), np.uint16)
  Image.fromarray(deep).save(folder / "deep.png")
  tifffile.imwrite(folder / "scan.TIF", rgb[:, :48])
  tifffile.imwrite(folder / "zip.tif", rgb[..., 1], compression="zlib")
  np.save(folder / "array.npy", rgb)
  np.save(folder / "deeper.npy", rgb * np.uint16(200))
  (folder / "notes.txt").write_text("no image")
  (folder / ".hidden.png").write_text("no image")
  return {
    "rgb": (50, 64), "gray": (50, 64), "7": (50, 64), "turned": (64, 50),
    "deep": (40, 30), "scan": (50, 48), "zip": (50, 64), "array": (50, 64),
    "deeper": (50, 64),
  }  # fmt: skip


def test_predict_a_folder(workdir, cache, tmp_path):
  shapes = write_images(tmp_path / "in")
  data = (tmp_path / "in" / "rgb.png").read_bytes()
  (tmp_path / "in" / "broken.png").write_bytes(data[: len(data) // 2])
  (tmp_path / "in" / "empty.npy").touch()
  (tmp_path / "in" / "short.tif").write_bytes(b"II*\0")
  out = tmp_path / "out"
  command = ("experiments.predict", f"--workdir={workdir}", f"--output={out}")
  text = run(*command, f"--images={tmp_path / 'in'}", "--explain",
             cache=cache, code=1)  # fmt: skip
  for name in ("broken.png", "empty.npy", "short.tif"):
    assert any("skipped" in t and name in t for t in text.splitlines())
  assert "look at *_overlay.png" in text
  assert "9 of 12 images predicted" in text and "3 files failed" in text
  assert "Traceback" not in text and "orbax" not in text
  kinds = ("semantic", "instances", "overlay", "explain")
  names = {f"{stem}_{kind}.png" for stem in shapes for kind in kinds}
  assert {p.name for p in out.iterdir()} == names | {"predictions.json"}
  rows = json.loads((out / "predictions.json").read_text())
  assert {row["image_id"] for row in rows} <= {*shapes, 7} - {"7"}
  assert len(rows) > len(shapes)
  for stem, (height, width) in shapes.items():
    with Image.open(out / f"{stem}_semantic.png") as semantic:
      assert semantic.mode == "P" and semantic.size == (width, height)
      assert np.array(semantic).max() <= 4
    with Image.open(out / f"{stem}_instances.png") as image:
      labels = np.array(image)
    mine = [r for r in rows if str(r["image_id"]) == stem]
    assert labels.shape == (height, width) and len(mine) == labels.max()
    for k, row in enumerate(mine, 1):
      mask = coco_mask.decode(row["segmentation"]).astype(bool)
      assert mask.shape == (height, width)
      assert mask[labels == k].all()
  assert any(cache.iterdir())  # compiled once for all


def test_predict_a_glob_and_nothing(workdir, cache, tmp_path):
  write_images(tmp_path / "in")
  out = tmp_path / "out"
  command = ("experiments.predict", f"--workdir={workdir}", f"--output={out}")
  text = run(*command, f"--images={tmp_path}/in/r*.png", cache=cache)
  assert "1 of 1 images predicted" in text
  assert len(list(out.iterdir())) == 4
  text = run(*command, f"--images={tmp_path}/in/x*.png", code=1, cache=cache)
  assert "error: no images at" in text and "Traceback" not in text


def test_a_network_without_boxes_has_no_instance_files(cache, tmp_path):
  workdir = workdirs.make(tmp_path / "w", ("semantic",))
  (tmp_path / "in").mkdir()
  for name in ("a", "b"):
    image = Image.fromarray(np.zeros((40, 50), np.uint8))
    image.save(tmp_path / "in" / f"{name}.png")
  out = tmp_path / "out"
  command = ("experiments.predict", f"--workdir={workdir}",
             f"--images={tmp_path / 'in'}", f"--output={out}")  # fmt: skip
  text = run(*command, cache=cache)
  assert text.count("the network has no boxes") == 1
  assert text.count("compiling for an image of up to") == 1
  assert sorted(p.name for p in out.iterdir()) == [
    "a_overlay.png", "a_semantic.png", "b_overlay.png", "b_semantic.png"
  ]  # fmt: skip
  text = run(*command, "--explain", cache=cache, code=1)
  assert text.count("leave out --explain") == 1


def test_a_run_that_reads_nothing_keeps_earlier_predictions(tmp_path):
  # In a process of its own: experiments.predict defines flags.
  code = f"""
import pathlib, types
from experiments import predict
folder = pathlib.Path({str(tmp_path)!r})
(folder / "a.png").write_text("no picture")
(folder / "predictions.json").write_text("[7]")
failed = predict.predict_files(
  types.SimpleNamespace(batch_size=1, predict_batch=list),
  {{"a": folder / "a.png"}}, folder
)
assert len(failed) == 1
assert (folder / "predictions.json").read_text() == "[7]"
"""
  done = subprocess.run(
    [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr


def test_equal_stems_get_their_suffix(workdir, cache, tmp_path):
  image = Image.fromarray(np.zeros((32, 32), np.uint8))
  for name in ("a.png", "a.jpg", "b.png"):
    image.save(tmp_path / name)
  out = tmp_path / "out"
  run("experiments.predict", f"--workdir={workdir}", f"--output={out}",
      f"--images={tmp_path}", "--notta", cache=cache)  # fmt: skip
  assert {p.name for p in out.glob("*_semantic.png")} == {
    "a_png_semantic.png", "a_jpg_semantic.png", "b_semantic.png"
  }  # fmt: skip


def test_evaluate_and_tune(workdir, cache):
  evaluate = ("experiments.evaluate", f"--workdir={workdir}")
  text = run(*evaluate, cache=cache)
  assert "matching_0.5" in text and "3 images of shapes" in text
  before = json.loads((workdir / "eval_val.json").read_text())
  assert before["checkpoint_step"] == 7 and before["num_images"] == 3
  assert "flip=True" in before["views"]
  run(*evaluate, "--oracle=both", "--protocol=mnc", "--notta", "--worst=1",
      cache=cache)  # fmt: skip
  (worst,) = (workdir / "worst_val_oracle_both_one_view").iterdir()
  assert worst.name.startswith("00_")
  oracle = workdir / "eval_val_oracle_both_one_view.json"
  oracle = json.loads(oracle.read_text())
  assert oracle["protocol"] == "mnc" and oracle["ap_r_0.5"] > 0.5
  assert "flip=False" in oracle["views"]
  text = run(*evaluate, "--split=train", "--max_images=2", code=1, cache=cache)
  assert "was trained on" in text and "Traceback" not in text
  # Less than all, in less than all views: a file of its own.
  run(*evaluate, "--max_images=2", "--notta", cache=cache)
  part = json.loads((workdir / "eval_val_one_view_first_2.json").read_text())
  assert part["num_images"] == 2 and "flip=False" in part["views"]
  assert json.loads((workdir / "eval_val.json").read_text()) == before

  tune = ("experiments.tune", f"--workdir={workdir}", "--max_images=2")
  run(*tune, "--metric=matching_0.5", cache=cache)
  found = json.loads((workdir / "thresholds.json").read_text())
  assert found["after"] >= found["before"]
  assert found["after"] == found["matching_0.5_after"]
  assert found["before"] == found["matching_0.5_before"]
  assert found["num_images"] == 2 and found["split"] == "val"
  assert found["leaked_images"] == 0
  assert "iou_threshold" in found["instances"]
  assert "flip=True" in found["views"]
  text = run(*evaluate, "--max_images=2", cache=cache)
  assert "TUNED ON IMAGES OF THESE" in text
  part = json.loads((workdir / "eval_val_first_2.json").read_text())
  assert part["matching_0.5"] == pytest.approx(found["after"])
  assert part["tuned_on_these_images"] is True
  assert part["split_hash"] == found["split_hash"]
  text = run(*tune, "--metric=ap_rvol", code=1, cache=cache)
  assert "no score 'ap_rvol'" in text and "ap_r_vol" in text
  assert "matching" not in text
  assert "network:" not in text  # refused before the network's hour


def test_benchmark_of_prediction_finds_what_it_drew():
  from experiments.benchmarks import predict

  options = {"name": "fcrn_tiny", "sizes": "96+160", "tile": "128",
             "overlap": "32", "repeats": "1"}  # fmt: skip
  rows = predict.run({**predict.OPTIONS, **options})
  assert [row["found"] for row in rows] == [9, 16]
  assert [row["tiled"] for row in rows] == [False, True]
  assert all(row["grouping_s"] > 0 and row["peak_gib"] > 0 for row in rows)


def test_benchmarks_leave_out_peers_that_are_not_installed(monkeypatch, capsys):
  from experiments.benchmarks import network, peers

  for name in ("keras", "torchvision"):
    monkeypatch.setitem(sys.modules, name, None)
  monkeypatch.setattr(peers.data, "load", lambda *_: [])
  options = {**peers.OPTIONS, "peers": "stardist", "data": "x"}
  assert peers.run(options) == []
  settings = network.parse({**network.OPTIONS, "sides": "jax", "peers": "1"})
  assert not settings["peers"]
  text = capsys.readouterr().out
  assert "stardist is left out" in text and "torchvision's networks" in text


def test_network_benchmark_compares_alike_alone(monkeypatch, capsys):
  from experiments.benchmarks import network, timing

  # Of float16, torch's side would have been in float32.
  with pytest.raises(ValueError, match="dtype is 'float16'; expected"):
    network.parse({**network.OPTIONS, "sides": "jax", "dtype": "float16"})
  monkeypatch.setattr(timing, "in_turns", lambda calls, _: calls)
  settings = {"sides": [], "peers": True, "batch": 1, "gpu": False,
              "repeats": 1, "dtype": "float32"}  # fmt: skip
  assert network._compare("fcrn152_s8_k5_d12", 64, settings) == []
  assert "no FCN-ResNet of fcrn152" in capsys.readouterr().out


def test_shares_of_the_peak_are_of_all_devices(monkeypatch):
  from experiments.benchmarks import network, timing, train

  peaks = {"NVIDIA L40": None, "NVIDIA L4": 121, "NVIDIA A100-SXM4-40GB": 312,
           "NVIDIA H100 PCIe": 756, "NVIDIA H100 80GB HBM3": 989,
           "NVIDIA A10G": None, "NVIDIA GeForce RTX 4090": 165}  # fmt: skip
  for kind, teraflops in peaks.items():
    assert timing.peak_flops(kind) == (teraflops and teraflops * 1e12)
  settings = {"sides": ["jax", "torch"], "batch": 2, "dtype": "float32",
              "repeats": 1, "gpu": False}  # fmt: skip
  peak = 2 * network.common.network_cost("fcrn_tiny", 64)[1]
  monkeypatch.setattr(timing, "peak_flops", lambda _: peak)
  monkeypatch.setattr(
    timing, "in_turns", lambda calls, _: dict.fromkeys(calls, 3)
  )
  monkeypatch.setattr(train, "jax_step", lambda *_: (None, 0))
  monkeypatch.setattr(train, "_torch_step", lambda *_: None)
  monkeypatch.setattr(train.jax, "local_device_count", lambda: 4)
  rows = train._compare("fcrn_tiny", 64, settings)
  assert [row["share_of_peak"] for row in rows] == [1 / 4, 1]


def test_large_tiffs_are_mapped(workdir, cache, tmp_path):
  # In a process of its own: experiments.predict defines flags.
  code = f"""
import pathlib, numpy as np, tifffile
from experiments import predict
folder = pathlib.Path({str(tmp_path)!r})
image = np.arange(40 * 50 * 3, dtype=np.uint8).reshape(40, 50, 3)
tifffile.imwrite(folder / "plain.tif", image)
tifffile.imwrite(folder / "zip.tif", image, compression="zlib")
tifffile.imwrite(folder / "turned.tif", image, extratags=[(274, 3, 1, 6, 1)])
tifffile.imwrite(folder / "deep.tif", image[..., 0].astype(np.uint16))
assert predict._map_tiff(folder / "plain.tif") is None  # small
predict._LARGE = 1000
mapped = predict.read(folder / "plain.tif")
assert isinstance(mapped, np.memmap) and (mapped == image).all()
assert (predict.read(folder / "zip.tif") == image).all()
assert predict.read(folder / "turned.tif").shape == (50, 40, 3)
assert predict.read(folder / "deep.tif").shape == (40, 50, 3)
white = 255 - image[..., 0]
tifffile.imwrite(folder / "white.tif", white, photometric="miniswhite")
assert (predict.read(folder / "white.tif")[..., 0] == 255 - white).all()
(folder / "scan [1].png").touch()
assert list(predict.find_images(str(folder / "scan [1].png"))) == ["scan [1]"]
(folder / "no.tif").write_text("no picture")
try:
  predict.read(folder / "no.tif")
except ValueError as error:
  assert "no.tif" in str(error)
else:
  raise AssertionError("read what is no picture")
"""
  done = subprocess.run(
    [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr


def test_a_missing_workdir_is_named(tmp_path):
  for command in ("evaluate", "tune"):
    text = run(f"experiments.{command}", f"--workdir={tmp_path}", code=1)
    assert "config.json" in text and "Traceback" not in text
  weights = tmp_path / "weights.safetensors"
  weights.write_text("{}")
  text = run("experiments.evaluate", f"--workdir={weights}", code=1)
  assert "weights alone" in text and "Traceback" not in text
  text = run("experiments.evaluate", code=1)
  assert "pass --workdir" in text and "Traceback" not in text
  text = run("experiments.evaluate", f"--localization={tmp_path}", code=1)
  assert "pass --semantic=WORKDIR too" in text


def test_data_that_were_moved_are_asked_for(tmp_path):
  moved = workdirs.make(tmp_path, data__name="folder", data__path="/moved/away")
  text = run("experiments.evaluate", f"--workdir={moved}", code=1)
  assert "the data /moved/away, which the network was trained on" in text
  assert "pass --data=DIR" in text and "Traceback" not in text


def test_data_of_a_program_are_not_looked_for(tmp_path):
  own = workdirs.make(tmp_path, data__name="functions")
  text = run("experiments.evaluate", f"--workdir={own}", code=1)
  assert "in that program fcrn_jax.evaluation.evaluate or" in text


def test_nothing_is_tuned_for_a_network_without_boxes(tmp_path):
  alone = workdirs.make(tmp_path, heads=("semantic",))
  text = run("experiments.tune", f"--workdir={alone}", code=1)
  assert "without boxes, which groups nothing" in text


def test_a_program_tunes_on_its_own_data(workdir, monkeypatch):
  monkeypatch.setattr(tune, "GRID", {"num_masks": (1, 2)})
  tried, group = [], tune.group

  def counted(*arguments):
    tried.append(arguments)
    return group(*arguments)

  monkeypatch.setattr(tune, "group", counted)

  def functions(keys):
    shapes = data.load("shapes", "train")
    return data.Functions(
      keys,
      lambda key: shapes[int(key)]["image"],
      lambda key: shapes[int(key)],
      shapes.categories,
    )

  predictor = fcrn.Predictor.load(workdir)
  predictor.trained_on = ({"name": "functions", "split": "train", "path": ""},)
  train, seen = functions(["0"]), functions(["0", "1"])
  for sets, leaked, check in (
    ([train], 1, "done"),
    (None, 0, "not done: they are a program's own"),
  ):
    found = tune.search(predictor, seen, "matching_0.5", 1, train_sets=sets)
    assert found["leaked_images"] == leaked
    assert found["leak_check"].startswith(check)
    assert found["num_images"] == 1 and found["data"] == "functions"
    assert found["after"] >= found["before"]
  # As configured, and the other; nothing is left to try around the better.
  assert len(tried) == 2 * 2


def test_mistakes_end_in_one_line(workdir, tmp_path):
  train = "experiments.train", f"--workdir={tmp_path}"
  (tmp_path / "file").write_text("no folder")
  for arguments, named in (
    ([*train, "--config=configs/none.py"], "configs/none.py"),
    ([*train, "--config=configs/shapes.py", "--config.optim.lrr=1"],
     'Did you mean "lr"'),
    ([*train, "--config=configs/shapes.py", "--config.optm.lr=1"],
     'Did you mean "optim"'),
    ([*train, "--config=configs/shapes.py", "--config.xyzzy.lr=1"],
     "error: there is no setting 'xyzzy'"),
    ([*train, "--config=configs/folder.py:gpuu"],
     "error: no row 'gpuu'; expected one of cpu, gpu."),
    ([*train, "--confg=configs/shapes.py"], "Did you mean: config"),
    (["experiments.benchmark", "--what=grouping"], "workdir"),
    (["experiments.benchmark", "--what=voting", "--set=case=voc"],
     "cases, repeats"),
    (["experiments.benchmark", "--what=voting", "--set=cases=vox"], "vox"),
    (["experiments.check_data", f"--data={tmp_path}", "--name=folder",
      "--train_split=train"], "--test_split"),
    (["experiments.tables", "--what=results", f"--results={tmp_path}"],
     "no JSON files"),
    (["experiments.export", f"--workdir={workdir}",
      f"--output={tmp_path / 'file' / 'x.fcrn'}"], "x.fcrn"),
  ):  # fmt: skip
    text = run(*arguments, code=1)
    assert "error: " in text, text
    assert named in text and "Traceback" not in text, text


def test_pictures_are_not_taken_for_images(workdir, cache, tmp_path):
  Image.fromarray(np.zeros((32, 32), np.uint8)).save(tmp_path / "a.png")
  text = run("experiments.predict", f"--workdir={workdir}",
             f"--output={tmp_path}", f"--images={tmp_path}",
             cache=cache, code=1)  # fmt: skip
  assert "error: --output=" in text
  assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_image_ids_are_numbers_where_these_differ():
  code = """
from experiments.predict import image_ids
assert image_ids(["007", "7", "8", "x"]) == {
  "007": "007", "7": "7", "8": 8, "x": "x"}
"""
  done = subprocess.run([sys.executable, "-c", code], cwd=ROOT)
  assert done.returncode == 0
