import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from fcrn_jax import data
from fcrn_jax.data import check, check_report, folder, pictures
from fcrn_jax.data.builders import coco, shards, voc2012_sbd
from fcrn_jax.types import palette
from tests import damage
from tests.builder_fixtures import (
  IDS,
  OBJECTS,
  SHAPE,
  photo,
  write_cityscapes,
  write_coco,
  write_lines,
  write_palette,
  write_voc2012,
)

COMMAND = (sys.executable, "-m", "experiments.check_data")


def examine(name, path, **options):
  return check.examine(*check.open_splits(name, path, options=options))


def findings(report, severity=None):
  return {
    (p.kind, p.key)
    for p in report.problems
    if severity is None or check.KINDS[p.kind][0] == severity
  }


@pytest.fixture(scope="module")
def damaged(tmp_path_factory, real_data):
  root = tmp_path_factory.mktemp("damaged") / "nuclei"
  damage.copy(real_data / "nuclei", root, {"train": 30, "val": 6})
  clean = examine("folder", root)
  return root, clean, damage.damage(root)


def test_sound_data_have_no_findings(damaged):
  _, clean, _ = damaged
  assert not findings(clean) and clean.num_errors == 0
  assert "No errors." in check_report.text(clean)


def test_every_planted_defect_is_found_and_nothing_else(damaged):
  root, _, planted = damaged
  assert len(planted) == 24
  report = examine("folder", root)
  assert findings(report) == set(planted)
  kinds = {kind for kind, _ in planted}
  assert kinds == set(check.KINDS) - {
    "overlap", "absent", "lossy", "no_list", "categories",
  }  # fmt: skip
  text = check_report.text(report)
  for kind in kinds:
    assert check.KINDS[kind][1] in text
  warnings = sum(check.KINDS[kind][0] == "warning" for kind, _ in planted)
  assert f"{report.num_errors} errors, {warnings} warnings." in text
  assert "turned into gray" in text and "stray values of a brush" in text
  # Each finding names the file or the image.
  for problem in report.problems:
    assert problem.key in problem.message


def test_the_command_writes_its_report_and_exits_with_1(damaged, tmp_path):
  root, _, planted = damaged
  out = tmp_path / "out"
  done = subprocess.run(
    [*COMMAND, f"--data={root}", f"--output={out}", "--partial"],
    capture_output=True, text=True,
  )  # fmt: skip
  assert done.returncode == 1, done.stderr
  assert "Traceback" not in done.stderr
  values = json.loads((out / "report.json").read_text())
  assert {(p["kind"], p["key"]) for p in values["problems"]} == set(planted)
  for name in ("histograms.png", "worst.png"):
    assert np.asarray(Image.open(out / name)).std() > 10
  done = subprocess.run(
    [*COMMAND, f"--data={tmp_path / 'nothing'}"], capture_output=True, text=True
  )
  assert done.returncode == 1 and "error: " in done.stderr


# The likely cause.


@pytest.mark.parametrize(
  ("labels", "num_categories", "words"),
  [
    ([1, 2, 3], 2, "1-based ids"),
    ([1, 3, 255], 2, "1-based ids"),
    ([0, 1, 2, 3], 2, "is 0 void"),
    ([-1, 0, 1], 1, "below 0, such as -1"),
    ([0, 255], 1, "Masks saved as 0 and 255"),
    ([0, 80, 160], 2, "multiples of 80"),
    ([0, 38], 1, "palette read as RGB and turned into gray"),
    ([0, 38, 75, 113], 3, "palette read as RGB and turned into gray"),
    ([0, 24000, 26001], 19, "category \\* 1000"),
    ([0, 3, 7, 41], 3, "label list of other data"),
  ],
)
def test_the_likely_cause_of_wrong_ids(labels, num_categories, words):
  with pytest.raises(AssertionError, match=words):
    raise AssertionError(check_report.likely_cause(set(labels), num_categories))


def test_palette_is_vocs(real_data):
  file = real_data / "voc2012_sample/VOCdevkit/VOC2012/SegmentationClass"
  official = Image.open(next(file.iterdir())).getpalette()
  assert palette().ravel().tolist() == official
  assert palette()[[1, 15, 255]].tolist() == [
    [128, 0, 0], [192, 128, 128], [224, 224, 192],
  ]  # fmt: skip


def write_folder(root, maps, objects=None):
  (root / "JPEGImages").mkdir(parents=True)
  names = [f"im{k}" for k in range(len(maps))]
  for k, name in enumerate(names):
    Image.fromarray(photo(k)).save(root / "JPEGImages" / f"{name}.png")
    write_palette(root / "SegmentationClass" / f"{name}.png", maps[k])
    if objects is not None:
      write_palette(root / "SegmentationObject" / f"{name}.png", objects)
  write_lines(root / "labels.txt", ["background", "cat", "dog"])
  write_lines(root / "ImageSets" / "Segmentation" / "train.txt", names)
  return root


def test_binary_masks_of_255_are_explained(tmp_path):
  masks = [np.where(OBJECTS > 0, 255, 0)] * 2
  report = examine("folder", write_folder(tmp_path / "in", masks))
  assert ("range", "all") in findings(report, "error")
  assert "Masks saved as 0 and 255?" in check_report.text(report)


def test_a_transposed_map_and_exif(tmp_path):
  root = write_folder(tmp_path / "in", [OBJECTS.clip(max=2)] * 2)
  write_palette(root / "SegmentationClass/im1.png", OBJECTS.T.clip(max=2))
  report = examine("folder", root)
  (problem,) = [p for p in report.problems if p.kind != "no_list"]
  assert (problem.kind, problem.key) == ("size", "im1")
  assert "EXIF" in problem.message and "16 x 12" in problem.message


def test_shares_and_counts(tmp_path):
  # 16 + 12 + 15 pixels of objects 1, 2, 3 in categories 1, 2, 2.
  semantic = OBJECTS.clip(max=2)
  root = write_folder(tmp_path / "in", [semantic, semantic], OBJECTS)
  report = examine("folder", root)
  counts = np.bincount(OBJECTS.ravel())
  values = check_report.values(report)["splits"]["train"]
  assert values["images"] == 2 and values["instances"] == 6
  assert values["instances_by_label"] == {1: 2, 2: 4}
  assert values["pixels_by_label"] == {
    0: 2 * counts[0], 1: 2 * counts[1], 2: 2 * (counts[2] + counts[3]),
  }  # fmt: skip
  assert values["sizes"] == [SHAPE, SHAPE]
  text = check_report.text(report)
  assert f"{counts[1] / OBJECTS.size:.3%}" in text


def test_training_images_as_validation_are_an_error(tmp_path):
  root = write_folder(tmp_path / "in", [OBJECTS.clip(max=2)] * 2)
  write_lines(root / "ImageSets" / "Segmentation" / "val.txt", ["im0", "im1"])
  found = findings(examine("folder", root))
  assert found == {("leak", "im0"), ("leak", "im1")}


def test_splits_within_each_other_are_no_error(tmp_path):
  semantic = OBJECTS.clip(max=2)
  root = write_folder(tmp_path / "in", [semantic] * 4)
  lists = root / "ImageSets" / "Segmentation"
  write_lines(lists / "small.txt", ["im0", "im1"])
  write_lines(lists / "val.txt", ["im3"])
  write_lines(lists / "train.txt", ["im0", "im1", "im2"])
  report = examine("folder", root)
  assert findings(report) == {("overlap", "im0")}
  write_lines(lists / "val.txt", ["im2", "im3"])
  report = examine("folder", root)
  assert findings(report, "error") == {("leak", "im2")}


def test_prepared_and_official_data_are_checked_too(tmp_path):
  root = write_folder(tmp_path / "in", [OBJECTS.clip(max=2)] * 3)
  dataset = data.load("folder", "train", root)
  shards.prepare({"train": dataset}, tmp_path / "out")
  assert check.guess_name(tmp_path / "out") == "folder"
  report = examine("folder", tmp_path / "out")
  assert not report.problems and len(report.images["train"]) == 3
  shard = next((tmp_path / "out").glob("*record-*"))
  shard.write_bytes(shard.read_bytes()[:100])
  report = examine("folder", tmp_path / "out")
  assert findings(report) == {("unreadable", f"im{k}") for k in range(3)}
  city = tmp_path / "city"
  name = write_cityscapes(city, np.full(SHAPE, 26), np.full(SHAPE, 26001))
  assert check.guess_name(city) == "cityscapes"
  report = examine("cityscapes", city, partial=True)
  assert findings(report) == {("absent", "val")}
  (city / f"gtFine/train/aachen/{name}_gtFine_labelIds.png").write_bytes(b"")
  report = examine("cityscapes", city, partial=True)
  assert ("unreadable", name) in findings(report, "error")


def test_a_sample_may_lack_splits_but_not_all_and_none_that_is_named(tmp_path):
  write_cityscapes(tmp_path / "city", np.full(SHAPE, 26), np.full(SHAPE, 26001))

  def kinds(name, path, splits=()):
    found = check.open_splits(name, path, splits, {"partial": True})
    return {(p.kind, p.key) for p in check.examine(*found).problems}

  assert ("absent", "val") in kinds("cityscapes", tmp_path / "city")
  assert ("missing", "val") in kinds("cityscapes", tmp_path / "city", ["val"])
  (tmp_path / "none").mkdir()
  nothing = kinds("cityscapes", tmp_path / "none")
  assert nothing >= {("missing", "train"), ("missing", "val")}
  write_coco(tmp_path / "coco", [])
  (tmp_path / "coco/annotations/instances_train2017.json").write_text("{")
  assert ("unreadable", "train2017") in kinds("coco", tmp_path / "coco")


def test_splits_of_voc_and_sbd_are_told_apart(tmp_path):
  # The same image has VOC's categories in seg_val and SBD's in sbd_val; that
  # official splits overlap is no error.
  write_voc2012(tmp_path)
  report = examine("voc2012_sbd", tmp_path, partial=True)
  splits = check_report.values(report)["splits"]
  assert splits["seg_val"]["instances_by_label"] == {12: 1, 15: 2}
  assert splits["sbd_val"]["instances_by_label"] == {1: 2, 2: 2, 3: 2}
  assert report.num_errors == 0
  shared = [p.message for p in report.problems if p.kind == "overlap"]
  assert any("in train_aug and in sbd_val" in message for message in shared)


def test_two_functions_are_checked_too():
  labels = {"semantic": OBJECTS, "instances": OBJECTS, "classes": [1, 2, 3]}
  dataset = data.Functions(
    ["a", "b"], lambda key: photo(ord(key)), lambda key: labels, (*"xyz",)
  )
  report = check.examine({"train": dataset})
  assert not report.problems
  labels["classes"] = [1, 2]
  report = check.examine({"train": dataset})
  assert findings(report) == {("unreadable", "a"), ("unreadable", "b")}


def test_real_samples_are_sound(real_data):
  expected = {
    "voc2012_sample/VOCdevkit/VOC2012": (24, 67),
    "coco_sample": (150, 1432),
  }
  for path, counts in expected.items():
    path = real_data / path
    report = examine(check.guess_name(path), path)
    assert report.num_errors == 0
    (totals,) = check_report.values(report)["splits"].values()
    assert (totals["images"], totals["instances"]) == counts


# Leaks.


class Listed:
  """A data set as far as refuse_leak looks at it."""

  def __init__(self, ids, split, name="voc2012_sbd", path="a"):
    self.ids, self.split, self.name, self.path = list(ids), split, name, path


def test_the_10582_images_may_not_be_tested_on_sbd_val(real_data):
  def listed(name, split):
    return Listed((real_data / "lists" / name).read_text().split(), split)

  train = listed("voc2012/train_aug.txt", "train_aug")
  val = listed("sbd_instances/val.txt", "sbd_val")
  with pytest.raises(ValueError, match="4,629 of the 5,732 images"):
    check.refuse_leak(train, val)
  assert check.refuse_leak(train, val, allow=True) == {
    "train_split": "train_aug", "leaked_images": 4629, "test_images": 5732,
    "leak_allowed": True,
  }  # fmt: skip
  # What the paper does: SBD train against SBD val, 10,582 against VOC val.
  clean = listed("sbd_instances/train.txt", "sbd_train")
  seg_val = listed("voc2012/val.txt", "seg_val")
  for one, other in ((clean, val), (train, seg_val)):
    stamp = check.refuse_leak(one, other)
    assert stamp["leaked_images"] == 0 and not stamp["leak_allowed"]


def test_ids_are_compared_where_they_mean_the_same():
  def shared(train, test):
    return check.refuse_leak(train, test, allow=True)["leaked_images"]

  ids = ["2008_000001"]
  voc = Listed(ids, "train")
  assert shared(voc, Listed(ids, "val", "pascal_context", "b")) == 1
  one = Listed(ids, "train", "folder", "a")
  assert shared(one, Listed(ids, "val", "folder", "a")) == 1
  assert shared(one, Listed(ids, "val", "folder", "b")) == 0
  assert shared(one, Listed(ids, "val", "coco", "a")) == 0


def test_the_command_refuses_a_leak(tmp_path):
  write_voc2012(tmp_path)
  command = [
    *COMMAND, f"--data={tmp_path}", "--name=voc2012_sbd", "--partial",
    "--train_split=train_aug", "--test_split=sbd_val",
  ]  # fmt: skip
  done = subprocess.run(command, capture_output=True, text=True)
  assert done.returncode == 1
  assert "1 of the 2 images of voc2012_sbd 'sbd_val'" in done.stderr
  assert IDS[3] in done.stderr
  done = subprocess.run(
    [*command, "--allow_leak"], capture_output=True, text=True
  )
  assert done.returncode == 0
  assert json.loads(done.stdout)["leak_allowed"] is True


def test_names_are_guessed_or_asked_for(tmp_path):
  with pytest.raises(ValueError, match="name the data set"):
    check.guess_name(tmp_path)
  assert check.guess_name(tmp_path / "x.json") == "coco"
  (tmp_path / "annotations").mkdir()
  assert check.guess_name(tmp_path) == "coco"
  (tmp_path / "ImageSets").mkdir()
  assert check.guess_name(tmp_path) == "folder"
  for name in (check.guess_name, lambda path: check.splits_of("folder", path)):
    with pytest.raises(ValueError, match="none does not exist"):
      name(tmp_path / "none")
  assert check.splits_of("voc2012_sbd", tmp_path) == list(voc2012_sbd.SPLITS)
  assert folder.VOC_LABELS[1:] == voc2012_sbd.CATEGORIES
  assert set(coco.VOC_NAMES.values()) <= set(folder.VOC_LABELS)


def test_labels_and_ids_of_any_size_are_told(tmp_path):
  write_folder(tmp_path, [OBJECTS.clip(max=2)] * 3, OBJECTS)
  for name, part, value in (
    ("im0", "SegmentationClass", -1), ("im1", "SegmentationClass", 70000),
    ("im2", "SegmentationObject", 70000),
  ):  # fmt: skip
    file = tmp_path / part / f"{name}.png"
    labels = pictures.load_map(file).astype(np.int32)
    labels[labels > 1] = value
    file.unlink()
    Image.fromarray(labels).save(file.with_suffix(".tif"))
  report = examine("folder", tmp_path)
  assert findings(report, "error") == {("range", f"im{k}") for k in range(3)}
  check_report.plot(report, tmp_path / "plot.png")
  assert "70000" in check_report.text(report)


def test_of_thousands_of_wrong_labels_a_few_are_listed(tmp_path):
  write_folder(tmp_path, [OBJECTS.clip(max=2)])
  file = next((tmp_path / "SegmentationClass").iterdir())
  labels = 1000 + np.arange(OBJECTS.size, dtype=np.uint16)
  Image.fromarray(labels.reshape(OBJECTS.shape)).save(file)
  report = examine("folder", tmp_path)
  text = check_report.text(report)
  assert len(text.splitlines()) < 60
  assert f"and {OBJECTS.size - 20:,} labels more" in text
  pixels = check_report.values(report)["splits"]["train"]["pixels_by_label"]
  assert len(pixels) == OBJECTS.size


def test_only_images_that_no_list_has_are_unlisted(tmp_path):
  write_folder(tmp_path, [OBJECTS.clip(max=2)] * 3)
  lists = tmp_path / "ImageSets" / "Segmentation"
  write_lines(lists / "train.txt", ["im0"])
  write_lines(lists / "val.txt", ["im1"])
  report = check.examine(*check.open_splits("folder", tmp_path, ["train"]))
  (found,) = [p for p in report.problems if p.kind == "unlisted"]
  assert found.key == "im2" and found.message == "1: im2."


def test_splits_are_the_lists_that_the_reader_finds(tmp_path):
  write_folder(tmp_path, [OBJECTS.clip(max=2)])
  lists = tmp_path / "ImageSets" / "Segmentation"
  (lists / "._train.txt").write_bytes(b"\xff")  # of macOS
  write_lines(lists / "VAL.TXT", ["im0"])
  assert check.splits_of("folder", tmp_path) == ["VAL", "train"]
  check.examine(*check.open_splits("folder", tmp_path))
  write_coco(tmp_path / "coco", [])
  (tmp_path / "coco/annotations/._instances_val2017.json").write_bytes(b"\xff")
  assert check.splits_of("coco", tmp_path / "coco") == ["val2017"]


def test_splits_of_different_categories_are_an_error(tmp_path):
  pixels = np.zeros((8, 8, 3), np.uint8)
  sets = {}
  for k, (split, names) in enumerate({"train": "abc", "val": "ac"}.items()):
    image, labels = pixels + k, {"semantic": np.full((8, 8), len(names))}
    sets[split] = data.Functions(
      [split], lambda _, x=image: x, lambda _, x=labels: x, tuple(names),
      split=split, path=tmp_path, has_instances=False,
    )  # fmt: skip
  report = check.examine(sets)
  assert findings(report) == {("categories", "val")}
  assert "'a', 'c'), train (" in check_report.text(report)
  assert not findings(check.examine({"train": sets["train"]}))


def test_data_without_a_split_are_refused(tmp_path):
  write_folder(tmp_path, [OBJECTS.clip(max=2)])
  (tmp_path / "ImageSets" / "Segmentation" / "train.txt").unlink()
  with pytest.raises(ValueError, match="has no split"):
    check.open_splits("folder", tmp_path)


def test_a_leak_is_seen_through_preparation(tmp_path):
  write_folder(tmp_path / "in", [OBJECTS.clip(max=2)])
  raw = data.load("folder", "train", tmp_path / "in")
  shards.prepare({"train": raw}, tmp_path / "out")
  prepared = data.load("folder", "train", tmp_path / "out")
  for one, other in ((raw, prepared), (prepared, raw)):
    with pytest.raises(ValueError, match="1 of the 1 images"):
      check.refuse_leak(one, other)


def test_functions_of_equal_ids_are_told_how_to_differ():
  def numbered(**source):
    return data.Functions(["0", "1"], photo, dict, ("x",), **source)

  with pytest.raises(ValueError, match=r"a source of its own \(data\.Funct"):
    check.refuse_leak(numbered(), numbered())
  stamp = check.refuse_leak(numbered(source="a"), numbered(source="b"))
  assert not stamp["leaked_images"]


def test_a_list_that_training_asks_for_and_is_not_there_is_told(tmp_path):
  root = write_folder(tmp_path, [OBJECTS.clip(max=2)] * 2, OBJECTS)
  report = examine("folder", root)
  assert findings(report, "warning") == {("no_list", "val")}
  text = check_report.text(report)
  assert "No val.txt, but train." in text and "--config.data.val_split" in text
  assert text.endswith("No errors, 1 warning.")
  report = check.examine(*check.open_splits("folder", root, ["train"]))
  assert not report.problems


def test_data_without_instances_are_told_to_be_for_categories(tmp_path):
  maps = [OBJECTS.clip(max=2)]
  words = "--config.model.heads='(\"semantic\",)'"
  report = examine("folder", write_folder(tmp_path / "a", maps))
  assert words in check_report.text(report)
  report = examine("folder", write_folder(tmp_path / "b", maps, OBJECTS))
  assert words not in check_report.text(report)


def test_label_maps_that_are_jpegs_are_an_error(tmp_path):
  root = write_folder(tmp_path, [OBJECTS.clip(max=2)] * 2)
  file = root / "SegmentationClass" / "im1.png"
  Image.fromarray(np.zeros(SHAPE, np.uint8)).save(file, format="JPEG")
  report = examine("folder", root)
  assert findings(report, "error") == {("lossy", "im1")}
  assert "save the ids as PNG" in check_report.text(report)
  with pytest.raises(ValueError, match=r"im1\.png is a JPEG"):
    data.load("folder", "train", root)[1]


def test_what_holds_for_all_is_said_once(tmp_path, caplog):
  root = write_folder(tmp_path, [OBJECTS.clip(max=2)] * 5)
  lists = root / "ImageSets" / "Segmentation"
  write_lines(lists / "train.txt", [f"im{k}.jpg" for k in range(5)])
  report = examine("folder", root)
  (error,) = [p for p in report.problems if p.kind == "missing"]
  assert "(im0.jpg, im1.jpg, im2.jpg, and 2 more)" in error.message
  assert error.message.endswith("without suffix: im0.")
  assert "1 error, 1 warning." in check_report.text(report)
  assert not report.readable
  write_lines(lists / "train.txt", ["im0", *"abcde"])
  examine("folder", root)
  (record,) = caplog.records
  assert "skipped 5 of 6 images" in record.getMessage()
  assert "and 2 more" in record.getMessage()
  (root / "labels.txt").unlink()
  write_lines(lists / "val.txt", ["im1"])
  text = check_report.text(examine("folder", root))
  assert text.count("labels.txt does not exist") == 1


def test_data_of_which_nothing_is_readable_have_no_pictures(tmp_path):
  root = write_folder(tmp_path / "in", [OBJECTS.clip(max=2)])
  (root / "labels.txt").unlink()
  (tmp_path / "out").mkdir()
  (tmp_path / "out" / "worst.png").touch()  # of an earlier check
  done = subprocess.run(
    [*COMMAND, f"--data={root}", f"--output={tmp_path / 'out'}"],
    capture_output=True, text=True,
  )  # fmt: skip
  assert done.returncode == 1 and "\nreport.json in" in done.stdout
  assert [p.name for p in (tmp_path / "out").iterdir()] == ["report.json"]


def test_the_folder_that_was_meant_is_named(tmp_path):
  write_folder(tmp_path / "VOC2012", [OBJECTS.clip(max=2)])
  with pytest.raises(ValueError, match=r"did you mean .*VOC2012\?"):
    check.guess_name(tmp_path)


def test_an_image_of_two_splits_is_judged_by_its_own_labels(tmp_path):
  # As in VOC 2012: one id, but labels of its own in each split.
  maps = {"a": OBJECTS.clip(max=2), "b": np.full(SHAPE, 7, np.uint8)}
  datasets = {}
  for name, labels in maps.items():
    root = write_folder(tmp_path / name, [labels])
    picture = Image.fromarray(photo(ord(name)))
    picture.save(root / "JPEGImages" / "im0.png")
    datasets[name] = data.load("folder", "train", root)
  for order in ("ab", "ba"):
    report = check.examine({name: datasets[name] for name in order})
    worst = check_report._worst(report)
    assert worst == [(datasets["b"], 0, ["range"])]
    assert check_report.likely_causes(report) == [
      check_report.likely_cause({7}, 2)
    ]
