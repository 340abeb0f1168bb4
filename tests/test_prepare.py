import json
import multiprocessing
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from fcrn_jax import data
from fcrn_jax.data import check, pipeline
from fcrn_jax.data.builders import records, shards
from tests.builder_fixtures import (
  OBJECTS,
  photo,
  write_coco,
  write_lines,
  write_palette,
  write_voc2012,
)

COMMAND = (sys.executable, "-m", "experiments.prepare_data")


def write_folder(root, number, split="train"):
  """A folder in VOC layout whose images differ in kind."""
  (root / "JPEGImages").mkdir(parents=True, exist_ok=True)
  names = [f"{split}{k}" for k in range(number)]
  for k, name in enumerate(names):
    Image.fromarray(photo(k)).save(root / "JPEGImages" / f"{name}.jpg")
    write_palette(
      root / "SegmentationClass" / f"{name}.png", OBJECTS.clip(0, 2)
    )
    write_palette(root / "SegmentationObject" / f"{name}.png", OBJECTS)
  write_lines(root / "labels.txt", ["background", "cat", "dog"])
  write_lines(root / "ImageSets" / "Segmentation" / f"{split}.txt", names)
  return root


def load(root, split="train"):
  return data.load("folder", split, root)


def assert_same(found, expected):
  assert len(found) == len(expected) and found.ids == expected.ids
  for attribute in ("name", "split", "categories", "background"):
    assert getattr(found, attribute) == getattr(expected, attribute)
  assert found.has_instances == expected.has_instances
  for index in range(len(expected)):
    one, other = found[index], expected[index]
    assert one.keys() == other.keys()
    for key, value in other.items():
      np.testing.assert_array_equal(one[key], value, err_msg=key)
      assert key == "id" or one[key].dtype == value.dtype, key


def times(directory):
  return {f.name: f.stat().st_mtime_ns for f in directory.glob("*record-*")}


@pytest.fixture
def small_shards(monkeypatch):
  monkeypatch.setattr(shards, "_PER_SHARD", 2)


def test_instance_ids_as_colours():
  ids = np.array([[0, 1, 255], [256, 65535, 65536 * 3 + 256 * 2 + 1]], np.int32)
  colours = records.to_rgb(ids)
  assert colours[1, 2].tolist() == [1, 2, 3]
  assert colours[0, 2].tolist() == [255, 0, 0]
  np.testing.assert_array_equal(records.from_rgb(colours), ids)


def test_prepared_data_equal_the_folder(tmp_path, small_shards):
  root, out = write_folder(tmp_path / "in", 5), tmp_path / "out"
  shards.prepare({"train": load(root)}, out)
  assert sorted(times(out)) == [
    f"folder-train.array_record-{k:05d}-of-00003" for k in range(3)
  ]
  assert_same(load(out), load(root))
  # The name in the config may stay as it was, and nothing is lost with -1.
  assert load(out)[-1]["id"] == "train4"
  with pytest.raises(ValueError, match=r"no split 'val'; expected .*train"):
    load(out, "val")
  with pytest.raises(IndexError):
    load(out)[5]


def test_every_kind_of_image_comes_back_pixel_for_pixel(tmp_path):
  rgb, gray = photo(0), photo(1)[..., 0]
  rgba = np.dstack([rgb, gray])
  deep = gray.astype(np.uint16) * 200
  turned = Image.Exif()
  turned[0x0112] = 6
  root = tmp_path / "in"
  images = {
    "jpeg.jpg": (Image.fromarray(rgb), {}),
    "gray.jpg": (Image.fromarray(gray), {}),
    "rgb.png": (Image.fromarray(rgb), {}),
    "gray8.png": (Image.fromarray(gray), {}),
    "rgba.png": (Image.fromarray(rgba), {}),
    "palette.png": (Image.fromarray(rgb).quantize(16), {}),
    "clear.png": (Image.fromarray(gray), {"transparency": 3}),
    "deep.png": (Image.fromarray(deep), {}),
    "tiff.tif": (Image.fromarray(deep), {}),
    "cmyk.jpg": (Image.fromarray(rgb).convert("CMYK"), {}),
    "exif.jpg": (Image.fromarray(rgb), {"exif": turned}),
  }
  (root / "JPEGImages").mkdir(parents=True)
  for name, (image, options) in images.items():
    image.save(root / "JPEGImages" / name, **options)
    labels = np.rot90(OBJECTS, -1) if name == "exif.jpg" else OBJECTS
    write_palette(root / "SegmentationClass" / f"{name[:-4]}.png", labels)
  write_lines(root / "labels.txt", ["background", "a", "b", "c"])
  ids = [name[:-4] for name in images]
  write_lines(root / "ImageSets" / "Segmentation" / "train.txt", ids)
  out = tmp_path / "out"
  shards.prepare({"train": load(root)}, out)
  assert_same(load(out), load(root))
  found = {k: load(out).image_file(i) for i, k in enumerate(ids)}
  kept = {
    name[:-4]
    for name in images
    if (root / "JPEGImages" / name).read_bytes() == found[name[:-4]]
  }
  assert kept == {"jpeg", "gray", "rgb", "gray8"}
  # tfds's own decoding agrees.
  import tensorflow_datasets as tfds

  source = tfds.builder_from_directory(out).as_data_source("train")
  for index in range(len(ids)):
    np.testing.assert_array_equal(
      source[index]["image"], load(root)[index]["image"], err_msg=ids[index]
    )


def test_a_run_that_was_cut_off_goes_on(tmp_path, small_shards, monkeypatch):
  root, out = write_folder(tmp_path / "in", 6), tmp_path / "out"
  encode = records.encode

  def cut(dataset, index):
    if index == 3:
      raise KeyboardInterrupt
    return encode(dataset, index)

  with monkeypatch.context() as patch:
    patch.setattr(records, "encode", cut)
    with pytest.raises(KeyboardInterrupt):
      shards.prepare({"train": load(root)}, out)
  before = times(out)
  assert list(before) == ["folder-train.array_record-00000-of-00003"]
  assert not list(out.glob(".tmp*")), "a half-written shard is left"
  with pytest.raises(ValueError, match="unfinished"):
    load(out)  # not taken for prepared data
  # As if a process had been killed with SIGKILL in the middle.
  (out / ".tmp-1-folder-train.array_record-00001-of-00003").write_bytes(b"x")
  shards.prepare({"train": load(root)}, out)
  assert times(out).items() >= before.items()
  assert not list(out.glob(".tmp*"))
  assert_same(load(out), load(root))


def test_a_finished_run_is_not_repeated_and_splits_add_up(tmp_path):
  root, out = write_folder(tmp_path / "in", 3), tmp_path / "out"
  write_folder(root, 2, "val")
  shards.prepare({"train": load(root)}, out)
  before = times(out)
  shards.prepare({"train": load(root)}, out)
  assert times(out) == before
  shards.prepare({"val": load(root, "val")}, out)
  assert times(out).items() > before.items()
  for split in ("train", "val"):
    assert_same(load(out, split), load(root, split))


def test_other_data_are_refused_unless_overwritten(tmp_path):
  root, out = write_folder(tmp_path / "in", 3), tmp_path / "out"
  shards.prepare({"train": load(root)}, out)
  other = write_folder(tmp_path / "other", 4)
  with pytest.raises(ValueError, match="other data of split 'train'"):
    shards.prepare({"train": load(other)}, out)
  assert_same(load(out), load(root))
  write_folder(root, 2, "more-train")
  shards.prepare({"more-train": load(root, "more-train")}, out)
  shards.prepare({"train": load(other)}, out, overwrite=True)
  assert_same(load(out), load(other))
  assert_same(load(out, "more-train"), load(root, "more-train"))
  write_lines(other / "labels.txt", ["background", "cat", "cow"])
  with pytest.raises(ValueError, match=r"other categories \(\['cat', 'dog'\]"):
    shards.prepare({"val": load(other)}, out)
  both = {"train": load(other), "more-train": load(other)}
  shards.prepare(both, out, overwrite=True)
  assert load(out).categories == ("cat", "cow")


def test_processes_write_the_same(tmp_path, small_shards):
  root = write_folder(tmp_path / "in", 5)
  for number in (1, 2):
    out = tmp_path / str(number)
    shards.prepare({"train": load(root)}, out, processes=number)
    assert_same(load(out), load(root))
    assert len(times(out)) == 3


def test_bad_images_stop_the_run_or_are_left_out(
  tmp_path, small_shards, caplog
):
  root, out = write_folder(tmp_path / "in", 5), tmp_path / "out"
  files = [root / "JPEGImages" / f"train{k}.jpg" for k in range(5)]
  whole = files[0].read_bytes()
  for k in (0, 3):
    files[k].write_bytes(files[k].read_bytes()[:300])
  with pytest.raises(ValueError, match=r"train0\.jpg cannot be read"):
    shards.prepare({"train": load(root)}, out)
  # The first shard would hold train0 alone, the others hold two each.
  shards.prepare({"train": load(root)}, out, on_error="skip")
  expected = ["train1", "train2", "train4"]
  assert load(out).ids == expected
  assert [load(out)[k]["id"] for k in range(3)] == expected
  files[0].write_bytes(whole)
  shutil.rmtree(out)
  expected = ["train0", "train1", "train2", "train4"]
  shards.prepare({"train": load(root)}, out, on_error="skip")
  assert "skipped 1 of 5 images" in caplog.text
  assert load(out).ids == expected
  assert [load(out)[k]["id"] for k in range(4)] == expected
  # Resuming reads the ids of what is there.
  os.remove(out / "folder-train.array_record-00000-of-00003")
  shards.prepare({"train": load(root)}, out, on_error="skip")
  assert load(out).ids == expected
  with pytest.raises(ValueError, match="expected 'raise' or 'skip'"):
    shards.prepare({"train": load(root)}, out, on_error="ignore")


def test_what_was_left_out_is_not_taken_for_whole(tmp_path):
  root, out = write_folder(tmp_path / "in", 3), tmp_path / "out"
  file = root / "JPEGImages" / "train1.jpg"
  whole = file.read_bytes()
  file.write_bytes(whole[:300])
  shards.prepare({"train": load(root)}, out, on_error="skip")
  file.write_bytes(whole)
  with pytest.raises(ValueError, match="'skip' left out"):
    shards.prepare({"train": load(root)}, out)
  shards.prepare({"train": load(root)}, out, on_error="skip")
  shards.prepare({"train": load(root)}, out, overwrite=True)
  assert_same(load(out), load(root))


def test_shards_that_do_not_say_of_what_are_refused(tmp_path):
  root, out = write_folder(tmp_path / "in", 3), tmp_path / "out"
  shards.prepare({"train": load(root)}, out)
  (out / ".folder-train.array_record.json").unlink()
  with pytest.raises(ValueError, match="shards of split 'train' without"):
    shards.prepare({"train": load(root)}, out)
  shards.prepare({"train": load(root)}, out, overwrite=True)
  assert_same(load(out), load(root))


def killed(key):
  if key == "b1" and multiprocessing.parent_process():  # never the tests
    os.kill(os.getpid(), signal.SIGKILL)
  return photo(0)


def labels(key):
  return {"semantic": OBJECTS.clip(max=1)}


def functions(**options):
  ids = ["a0", "a1", "b0", "b1", "c0", "c1"]
  return data.Functions(
    ids, killed, labels, ("x",), has_instances=False, **options
  )


def test_a_killed_worker_ends_the_run(tmp_path, small_shards):
  dataset = functions(path=tmp_path)
  with pytest.raises(ValueError, match="Take fewer processes"):
    shards.prepare({"train": dataset}, tmp_path / "out", processes=2)


def test_data_of_no_known_source_are_refused(tmp_path):
  with pytest.raises(ValueError, match="neither path nor source"):
    shards.prepare({"train": functions()}, tmp_path / "out")
  assert records.metadata({"train": functions()})["source"] == {"train": None}


def test_prepared_data_of_voc_are_prepared_again(tmp_path):
  write_voc2012(tmp_path / "in")
  options = {"partial": True}
  raw = data.load("voc2012_sbd", "seg_val", tmp_path / "in", options)
  shards.prepare({"seg_val": raw}, tmp_path / "one")
  once = data.load("voc2012_sbd", "seg_val", tmp_path / "one")
  shards.prepare({"seg_val": once}, tmp_path / "two")
  twice = data.load("voc2012_sbd", "seg_val", tmp_path / "two")
  assert twice[0]["membership"] == raw[0]["membership"]


def test_broken_descriptions_are_named(tmp_path):
  shards.prepare({"train": load(write_folder(tmp_path / "in", 1))}, tmp_path)
  (tmp_path / "metadata.json").write_text("{")
  with pytest.raises(ValueError, match=r"metadata\.json is not valid JSON"):
    load(tmp_path)


def test_missing_and_broken_shards_are_named(tmp_path, small_shards):
  root, out = write_folder(tmp_path / "in", 4), tmp_path / "out"
  shards.prepare({"train": load(root)}, out)
  file = out / "folder-train.array_record-00001-of-00002"
  content = file.read_bytes()
  file.write_bytes(content[: len(content) // 2])
  dataset = load(out)
  assert dataset[1]["id"] == "train1"
  with pytest.raises(ValueError, match=r"record 2 \(train2\) of .*prepare the"):
    dataset[2]
  file.unlink()
  with pytest.raises(ValueError, match="00001-of-00002 is missing"):
    load(out)


def test_training_reads_either(tmp_path):
  root, out = write_folder(tmp_path / "in", 6), tmp_path / "out"
  shards.prepare({"train": load(root)}, out)
  options = pipeline.PipelineOptions(crop=(16, 16), batch_size=2, stride=4)
  streams = [
    pipeline.train_batches(load(path), options, seed=3) for path in (root, out)
  ]
  for _ in range(4):
    one, other = (next(stream) for stream in streams)
    for key in one:
      np.testing.assert_array_equal(one[key], other[key])
  for stream in streams:
    stream.close()


def test_the_command_prepares_a_folder_and_a_coco_json(tmp_path):
  folder = write_folder(tmp_path / "in", 3)
  write_folder(folder, 2, "val")
  some = {
    "id": 1, "image_id": 1, "category_id": 18, "iscrowd": 0,
    "segmentation": [[1, 1, 9, 1, 9, 9]],
  }  # fmt: skip
  file = write_coco(tmp_path / "coco", [some], split="mine")
  for arguments, name, splits in (
    ([f"--data={folder}"], "folder", ("train", "val")),
    (
      [f"--data={file}", f"--images={tmp_path / 'coco/images'}"],
      "coco", ("mine",),
    ),
  ):  # fmt: skip
    out = tmp_path / "out" / name
    done = subprocess.run(
      [*COMMAND, *arguments, f"--output={out}"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    path = file if name == "coco" else folder
    for split in splits:
      assert_same(data.load(name, split, out), data.load(name, split, path))
      if name == "coco":
        assert data.load(name, split, out).category_ids == (1, 18, 44)
      assert f"{split}: " in done.stdout
  assert json.loads((out / "metadata.json").read_text())["ids"] == {
    "mine": ["000000000001"]
  }


def test_the_command_says_what_is_missing(tmp_path):
  arguments = [f"--data={tmp_path}", f"--output={tmp_path / 'out'}"]
  done = subprocess.run(
    [*COMMAND, *arguments, "--name=voc2012_sbd"], capture_output=True, text=True
  )
  assert done.returncode == 1
  assert "VOCtrainval_11-May-2012.tar" in done.stderr
  assert "minutes" in done.stderr and "Traceback" not in done.stderr


def test_prepared_nuclei(tmp_path, real_data):
  dataset = data.load("folder", "val", real_data / "nuclei")
  number = 8
  some = data.Functions(
    dataset.ids[:number],
    lambda key: dataset.image_file(dataset.ids.index(key)),
    lambda key: dataset[dataset.ids.index(key)],
    dataset.categories,
    name="folder",
    split="val",
    path=dataset.path,
  )
  shards.prepare({"val": some}, tmp_path / "out")
  assert_same(load(tmp_path / "out", "val"), some)
  assert max(some[k]["instances"].max() for k in range(number)) > 50


def test_overwriting_that_was_cut_off_leaves_no_stale_lists(
  tmp_path, monkeypatch
):
  root, out = write_folder(tmp_path / "in", 3), tmp_path / "out"
  write_folder(root, 2, "val")
  shards.prepare({s: load(root, s) for s in ("train", "val")}, out)

  def cut(dataset, index):
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(records, "encode", cut)
    with pytest.raises(KeyboardInterrupt):
      shards.prepare({"val": load(root, "val")}, out, overwrite=True)
    assert_same(load(out), load(root))
    with pytest.raises(ValueError, match="no split 'val'"):
      load(out, "val")
    with pytest.raises(KeyboardInterrupt):
      shards.prepare({"train": load(root)}, out, overwrite=True)
    with pytest.raises(ValueError, match="unfinished"):
      load(out)


def test_prepared_data_are_of_one_name(tmp_path):
  root, out = write_folder(tmp_path / "in", 1), tmp_path / "out"
  shards.prepare({"train": load(root)}, out)
  with pytest.raises(ValueError, match="holds 'folder', prepared, and not"):
    data.load("cityscapes", "train", out)


def test_nothing_that_can_be_read_is_an_error(tmp_path):
  root = write_folder(tmp_path / "in", 2)
  for file in (root / "JPEGImages").iterdir():
    file.write_bytes(b"")
  with pytest.raises(ValueError, match=r"none of the 2 images of .* can be"):
    shards.prepare({"train": load(root)}, tmp_path / "out", on_error="skip")


def test_prepared_data_know_their_categories(tmp_path):
  write_coco(tmp_path / "in", [])
  dataset = data.load("coco", "val", tmp_path / "in", {"partial": True})
  shards.prepare({"val": dataset}, tmp_path / "out")
  assert len(data.load("coco", "val", tmp_path / "out")) == 1
  with pytest.raises(ValueError, match="other categories than VOC's"):
    data.load("coco", "val", tmp_path / "out", {"categories": "voc"})
  with pytest.raises(ValueError, match=r"leave num_images .*num_train"):
    data.load("coco", "val", tmp_path / "out", {"num_images": 1})


@pytest.mark.parametrize("overwrite", [False, True])
def test_splits_prepared_beside_each_other_add_up(tmp_path, overwrite):
  root, out = write_folder(tmp_path / "in", 2), tmp_path / "out"
  train, val = load(root), load(write_folder(root, 1, "val"), "val")

  class Slow:
    def __getattr__(self, name):
      return getattr(val, name)

    def __len__(self):
      return len(val)

    def __getitem__(self, index):  # meanwhile, another run
      shards.prepare({"train": train}, out)
      return val[index]

  shards.prepare({"val": Slow()}, out, overwrite=overwrite)
  assert_same(load(out), train)
  assert_same(load(out, "val"), val)


def test_what_is_read_is_not_overwritten(tmp_path):
  root, out = write_folder(tmp_path / "in", 2), tmp_path / "out"
  shards.prepare({"train": load(root)}, out)
  with pytest.raises(ValueError, match=r"is read from, .* prepared from .*in"):
    shards.prepare({"train": load(out)}, out, overwrite=True)
  assert_same(load(out), load(root))


def test_splits_of_other_categories_are_not_prepared_as_one(tmp_path):
  root = write_folder(tmp_path / "train", 1)
  other = write_folder(tmp_path / "val", 1, "val")
  both = {"train": load(root), "val": load(other, "val")}
  shards.prepare(both, tmp_path / "same")
  write_lines(other / "labels.txt", ["background", "dog", "cat"])
  both["val"] = load(other, "val")
  with pytest.raises(ValueError, match=r"differ in their categories .*'dog'"):
    shards.prepare(both, tmp_path / "out")
  assert not (tmp_path / "out").exists()


def test_prepared_data_know_their_source_from_anywhere(tmp_path, monkeypatch):
  write_folder(tmp_path / "in", 2)
  monkeypatch.chdir(tmp_path)
  shards.prepare({"train": load(pathlib.Path("in"))}, tmp_path / "out")
  monkeypatch.chdir("/")
  with pytest.raises(ValueError, match="2 of the 2 images"):
    check.refuse_leak(load(tmp_path / "out"), load(tmp_path / "in"))
  shards.prepare({"train": load(tmp_path / "in")}, tmp_path / "out")
