import collections
import json
import subprocess
import sys
import tarfile
import zipfile

import numpy as np
import pytest
from PIL import Image

from fcrn_jax import data
from fcrn_jax.data import check
from fcrn_jax.data.builders import (
  archives,
  cityscapes,
  coco,
  pascal_context,
  voc2012_sbd,
)
from tests.builder_fixtures import (
  CLASSES,
  IDS,
  OBJECTS,
  SHAPE,
  paint,
  photo,
  write_cityscapes,
  write_coco,
  write_context,
  write_lines,
  write_sbd,
  write_voc2012,
)

PARTIAL = {"partial": True}


def totals(dataset):
  """Instances, and pixels of each label, over a data set."""
  instances, pixels = 0, collections.Counter()
  for k in range(len(dataset)):
    example = dataset[k]
    instances += len(example.get("classes", ()))
    labels, counts = np.unique(example["semantic"], return_counts=True)
    pixels.update(dict(zip(labels.tolist(), counts.tolist(), strict=True)))
  return instances, dict(sorted(pixels.items()))


# VOC 2012 and SBD.


def test_sbd_files_give_categories_instances_and_their_categories(tmp_path):
  # Instances 1 and 3 of three; 2 has no pixel left, so 3 becomes 2.
  objects = np.array([[0, 1, 1], [3, 3, 0]], np.uint8)
  write_sbd(tmp_path, "x", objects, (9, 4, 20))
  found = voc2012_sbd.read_sbd(tmp_path / "cls/x.mat", tmp_path / "inst/x.mat")
  np.testing.assert_array_equal(found["semantic"], [[0, 9, 9], [20, 20, 0]])
  np.testing.assert_array_equal(found["instances"], [[0, 1, 1], [2, 2, 0]])
  assert found["classes"].tolist() == [9, 20]


def test_broken_sbd_files_are_named(tmp_path):
  write_sbd(tmp_path, "x", OBJECTS, CLASSES)
  cls, inst = tmp_path / "cls/x.mat", tmp_path / "inst/x.mat"
  with pytest.raises(ValueError, match=r"GTinst .*inst/y\.mat .*No such file"):
    voc2012_sbd.read_sbd(cls, tmp_path / "inst/y.mat")
  with pytest.raises(ValueError, match=r"GTcls cannot be read from .*inst/x"):
    voc2012_sbd.read_sbd(inst, inst)
  write_sbd(tmp_path / "few", "x", OBJECTS, CLASSES[:2])
  with pytest.raises(ValueError, match="up to 3 and 2 categories"):
    voc2012_sbd.read_sbd(cls, tmp_path / "few" / "inst/x.mat")
  cls.write_bytes(cls.read_bytes()[:200])
  with pytest.raises(ValueError, match=r"from .*cls/x\.mat .*benchmark\.tgz"):
    voc2012_sbd.read_sbd(cls, inst)


def test_membership_and_where_labels_come_from(tmp_path):
  write_voc2012(tmp_path)
  expected = {
    "seg_train": [IDS[0]],
    "seg_val": [IDS[1]],
    # (SBD's three - seg val) + seg train
    "train_aug": [IDS[0], IDS[2], IDS[3]],
    "sbd_train": [IDS[2]],
    "sbd_val": [IDS[1], IDS[3]],
  }
  for split, ids in expected.items():
    dataset = data.load("voc2012_sbd", split, tmp_path, PARTIAL)
    assert dataset.ids == ids
  # The same image: VOC's annotation has a void border, SBD's has not, and
  # SBD's third object is a bird where VOC's is a dog.
  voc = data.load("voc2012_sbd", "seg_val", tmp_path, PARTIAL)[0]
  sbd = data.load("voc2012_sbd", "sbd_val", tmp_path, PARTIAL)[0]
  assert voc["id"] == sbd["id"] == IDS[1]
  assert voc["membership"] == {
    "seg_train": False, "seg_val": True, "sbd_train": False, "sbd_val": True,
  }  # fmt: skip
  border = np.zeros(SHAPE, bool)
  border[7] = True
  np.testing.assert_array_equal(voc["semantic"] == 255, border)
  np.testing.assert_array_equal(voc["instances"], OBJECTS)
  assert voc["classes"].tolist() == [15, 15, 12]
  np.testing.assert_array_equal(sbd["semantic"], paint(OBJECTS, (1, 2, 3)))
  np.testing.assert_array_equal(sbd["instances"], OBJECTS)
  assert sbd["classes"].tolist() == [1, 2, 3]
  assert voc["instances"].dtype == sbd["instances"].dtype == np.int32
  assert voc["semantic"].dtype == sbd["classes"].dtype == np.uint8


def test_an_incomplete_official_set_is_refused(tmp_path, caplog):
  write_voc2012(tmp_path)
  with pytest.raises(ValueError, match="3 images; the official list 10,582"):
    data.load("voc2012_sbd", "train_aug", tmp_path)
  data.load("voc2012_sbd", "train_aug", tmp_path, PARTIAL)
  assert "PARTIAL DATA" in caplog.text
  with pytest.raises(ValueError, match="no split 'train'"):
    data.load("voc2012_sbd", "train", tmp_path)
  with pytest.raises(ValueError, match=r"benchmark\.tgz.*1\.42 GB.*berkeley"):
    archive = tmp_path / "benchmark_RELEASE"
    archive.rename(tmp_path / "elsewhere")
    data.load("voc2012_sbd", "sbd_val", tmp_path)


def test_official_lists_follow_from_the_rule(real_data):
  lists = real_data / "lists"

  def read(name):
    return frozenset((lists / name).read_text().split())

  members = {
    "seg_train": read("voc2012/train.txt"),
    "seg_val": read("voc2012/val.txt"),
    "sbd_train": read("sbd_instances/train.txt"),
    "sbd_val": read("sbd_instances/val.txt"),
  }
  for split, official in voc2012_sbd.SPLITS.items():
    assert len(voc2012_sbd.split_ids(split, members)) == official
  augmented = voc2012_sbd.split_ids("train_aug", members)
  assert augmented == read("voc2012/train_aug.txt")


def test_archives_are_checked_and_extracted_once(tmp_path, monkeypatch):
  source, manual = tmp_path / "source", tmp_path / "manual"
  manual.mkdir()
  write_voc2012(source)
  with tarfile.open(manual / voc2012_sbd.VOC.file, "w") as tar:
    tar.add(source / "VOCdevkit", "VOCdevkit")
  with tarfile.open(manual / voc2012_sbd.SBD.file, "w:gz") as tar:
    tar.add(source / "benchmark_RELEASE", "benchmark_RELEASE")
  with pytest.raises(ValueError, match="the official archive 1,999,639,040"):
    data.load("voc2012_sbd", "sbd_val", manual, PARTIAL)
  for name in ("VOC", "SBD"):
    archive = getattr(voc2012_sbd, name)._replace(size=None)
    monkeypatch.setattr(voc2012_sbd, name, archive)
  with pytest.raises(ValueError, match=r"has md5 .* the official archive 6cd6"):
    data.load("voc2012_sbd", "sbd_val", manual, PARTIAL)
  for name in ("VOC", "SBD"):
    archive = getattr(voc2012_sbd, name)._replace(md5=None)
    monkeypatch.setattr(voc2012_sbd, name, archive)
  first = data.load("voc2012_sbd", "sbd_val", manual, PARTIAL)
  assert first[0]["classes"].tolist() == [1, 2, 3]
  for file in manual.glob("*.t*"):
    file.write_bytes(b"")  # not read again
  again = data.load("voc2012_sbd", "sbd_val", manual, PARTIAL)
  np.testing.assert_array_equal(first[1]["image"], again[1]["image"])
  assert not list((manual / "extracted").glob(".tmp*"))


def test_a_truncated_archive_leaves_nothing_that_looks_complete(tmp_path):
  source = tmp_path / "source"
  write_voc2012(source)
  archive = voc2012_sbd.VOC._replace(size=None, md5=None)
  file = tmp_path / archive.file
  with tarfile.open(file, "w") as tar:
    tar.add(source / "VOCdevkit", "VOCdevkit")
  file.write_bytes(file.read_bytes()[: file.stat().st_size // 3])
  with pytest.raises(ValueError, match="could not be extracted"):
    archives.find(tmp_path, archive, "")
  assert not any((tmp_path / "extracted").iterdir())


def test_the_voc_sample(real_data):
  dataset = data.load(
    "voc2012_sbd", "seg_train", real_data / "voc2012_sample", PARTIAL
  )
  instances, pixels = totals(dataset)
  assert (len(dataset), instances) == (24, 67)
  assert pixels == {
    0: 2965463, 1: 100910, 2: 2267, 3: 94393, 4: 43697, 5: 7477, 6: 148446,
    7: 2527, 8: 219547, 9: 78930, 10: 3623, 11: 70225, 12: 35122, 13: 8967,
    14: 57103, 15: 197759, 20: 114524, 255: 169270,
  }  # fmt: skip
  # Counted straight from the files.
  voc = real_data / "voc2012_sample/VOCdevkit/VOC2012"
  assert instances == sum(
    len(set(np.unique(Image.open(file)).tolist()) - {0, 255})
    for file in (voc / "SegmentationObject").glob("*.png")
  )
  assert pixels[15] == sum(
    int((np.asarray(Image.open(file)) == 15).sum())
    for file in (voc / "SegmentationClass").glob("*.png")
  )


# PASCAL-Context.


def test_context_keeps_59_of_459_categories(tmp_path, real_data):
  lists = real_data / "lists" / "pascal_context"

  def read(name):
    lines = (lists / name).read_text().splitlines()
    return [line.split(":")[1].strip() for line in lines]

  everything, common = read("classes-400.txt"), read("classes-59.txt")
  # All 459 numbers, and 0, in one map.
  numbers = np.arange(460, dtype=np.uint16).reshape(20, 23)
  write_context(tmp_path, numbers)
  dataset = data.load("pascal_context", "train", tmp_path, PARTIAL)
  assert dataset.categories == tuple(common[1:])
  assert not dataset.has_instances
  found = pascal_context.read_context(tmp_path / f"trainval/{IDS[1]}.mat")
  aliases = {
    "table": "diningtable",
    "bedclothes": "bedcloth",
    "cloth": "clothes",
  }
  assert found.dtype == np.uint8 and found[0, 0] == 0
  for number, name in enumerate(everything, 1):
    name = aliases.get(name, name)
    expected = common.index(name) if name in common else 0
    assert found.ravel()[number] == expected, name
  assert len(np.unique(found)) == 60


def test_context_splits_sizes_and_numbering(tmp_path):
  numbers = np.full(SHAPE, 2, np.uint16)
  write_context(tmp_path, numbers)
  with pytest.raises(ValueError, match="1 images; the official list 5,105"):
    data.load("pascal_context", "val", tmp_path)
  example = data.load("pascal_context", "val", tmp_path, PARTIAL)[0]
  assert example["id"] == IDS[2] and (example["semantic"] == 1).all()
  assert set(example) == {"id", "image", "semantic"}
  write_lines(tmp_path / "labels.txt", ["1: accordion", "2: air conditioner"])
  with pytest.raises(ValueError, match="'aeroplane' the number None"):
    data.load("pascal_context", "val", tmp_path, PARTIAL)
  (tmp_path / "labels.txt").unlink()
  (tmp_path / "trainval" / f"{IDS[2]}.mat").write_bytes(b"not matlab")
  with pytest.raises(ValueError, match="LabelMap cannot be read from"):
    data.load("pascal_context", "val", tmp_path, PARTIAL)[0]


# Cityscapes.


def test_cityscapes_ids(tmp_path):
  labels = np.array(
    [
      [7, 7, 24, 24, 26],
      [0, 3, 24, 25, 26],
      [23, 11, 24, 29, 33],
    ]
  )
  # Two people, a person group (24 alone), a car, a caravan (29, no train id),
  # a bicycle.
  instances = np.array(
    [
      [7, 7, 24000, 24001, 26000],
      [0, 3, 24000, 25, 26000],
      [23, 11, 24, 29000, 33007],
    ]
  )
  write_cityscapes(tmp_path, labels, instances)
  dataset = data.load("cityscapes", "train", tmp_path, PARTIAL)
  example = dataset[0]
  np.testing.assert_array_equal(
    example["semantic"],
    [[0, 0, 11, 11, 13], [255, 255, 11, 12, 13], [10, 2, 11, 255, 18]],
  )
  np.testing.assert_array_equal(
    example["instances"], [[0, 0, 1, 2, 3], [0, 0, 1, 0, 3], [0, 0, 0, 0, 4]]
  )
  assert example["classes"].tolist() == [11, 11, 13, 18]
  assert (dataset.background, *dataset.categories) == (
    "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light",
    "traffic sign", "vegetation", "terrain", "sky", "person", "rider", "car",
    "truck", "bus", "train", "motorcycle", "bicycle",
  )  # fmt: skip


def test_cityscapes_refuses_wrong_counts_and_maps_that_disagree(tmp_path):
  labels = np.full((3, 4), 26)
  write_cityscapes(tmp_path, labels, np.full((3, 4), 24001))
  with pytest.raises(ValueError, match="1 images; the official list 2,975"):
    data.load("cityscapes", "train", tmp_path)
  with pytest.raises(ValueError, match=r"instanceIds\.png has instances on"):
    data.load("cityscapes", "train", tmp_path, PARTIAL)[0]


def test_the_cityscapes_sample(real_data):
  dataset = data.load(
    "cityscapes", "train", real_data / "cityscapes_sample", PARTIAL
  )
  instances, pixels = totals(dataset)
  assert (len(dataset), instances) == (5, 72)
  assert pixels == {
    0: 4024140, 1: 431191, 2: 2876520, 3: 26032, 4: 60055, 5: 83391, 6: 14763,
    7: 71291, 8: 1085434, 9: 291711, 10: 411070, 11: 17603, 12: 2270,
    13: 418173, 17: 1099, 18: 3983, 255: 667034,
  }  # fmt: skip
  fine = real_data / "cityscapes_sample/gtFine/train/aachen"
  things = (24, 25, 26, 27, 28, 31, 32, 33)
  assert instances == sum(
    sum(k // 1000 in things for k in np.unique(Image.open(file)).tolist())
    for file in fine.glob("*_instanceIds.png")
  )


# COCO.


def annotation(category, segmentation, crowd=0, image=1):
  return {
    "id": category, "image_id": image, "category_id": category,
    "segmentation": segmentation, "iscrowd": crowd,
  }  # fmt: skip


def test_coco_masks_order_and_crowd(tmp_path):
  height, width = SHAPE
  big = [[1, 1, 9, 1, 9, 9, 1, 9]]  # rows and columns 1 ... 8, a dog
  # The column x = 3, rows 3 ... 6, a bottle: uncompressed runs, down columns.
  small = {"size": [height, width], "counts": [39, 4, height * width - 43]}
  # Everything from column 6 on is a crowd of people: 72 zeros, 120 ones.
  # 72 = 8 + 32 * 2 -> X2, 120 = 24 + 32 * 3 -> h3: the second number.
  crowd = {"size": [height, width], "counts": "X2h3"}
  write_coco(
    tmp_path,
    [annotation(44, small), annotation(18, big), annotation(1, crowd, 1)],
  )
  dataset = data.load("coco", "val", tmp_path, PARTIAL)
  assert dataset.categories == ("person", "dog", "bottle")
  assert dataset.category_ids == (1, 18, 44)
  example = dataset[0]
  semantic = np.zeros(SHAPE, np.uint8)
  semantic[:, 6:] = 255
  semantic[1:9, 1:9] = 2
  semantic[3:7, 3] = 3
  np.testing.assert_array_equal(example["semantic"], semantic)
  # The dog is larger, so it is painted first: instance 1.
  np.testing.assert_array_equal(
    example["instances"], np.select([semantic == 2, semantic == 3], [1, 2])
  )
  assert example["classes"].tolist() == [2, 3]


def test_coco_hidden_instances_images_without_any_and_order(tmp_path):
  square = [[2, 2, 5, 2, 5, 5, 2, 5]]
  # Two equal squares: the second covers the first.
  write_coco(
    tmp_path, [annotation(1, square), annotation(18, square)], num_images=2
  )
  dataset = data.load("coco", "val2017", tmp_path, PARTIAL)
  assert dataset.ids == ["000000000001", "000000000002"]
  assert dataset[0]["classes"].tolist() == [2]
  assert dataset[0]["instances"].max() == 1
  assert not dataset[1]["semantic"].any() and not dataset[1]["classes"].size


def test_coco_errors_name_the_file_and_the_fix(tmp_path):
  file = write_coco(tmp_path, [annotation(1, [[0, 0, 1, 1, 2]])])
  with pytest.raises(ValueError, match="1 images; the official list 5,000"):
    data.load("coco", "val", tmp_path)
  with pytest.raises(ValueError, match="annotation of 000000000001 is broken"):
    data.load("coco", "val", tmp_path, PARTIAL)[0]
  with pytest.raises(ValueError, match="expected 'all' or 'voc'"):
    data.load("coco", "val", tmp_path, {"categories": "20"})
  with pytest.raises(ValueError, match=r"lacks .*'aeroplane'"):
    data.load("coco", "val", tmp_path, {"categories": "voc", **PARTIAL})
  with pytest.raises(ValueError, match=r"annotations_trainval2017\.zip"):
    data.load("coco", "train", tmp_path)
  with pytest.raises(ValueError, match="no json file of split 'mine'"):
    data.load("coco", "mine", tmp_path)
  content = json.loads(file.read_text())
  content["annotations"][0]["category_id"] = 7
  file.write_text(json.dumps(content))
  with pytest.raises(ValueError, match="category 7, which the file does not"):
    data.load("coco", "val", tmp_path, PARTIAL)
  content["annotations"][0] |= {"category_id": 1, "image_id": 7}
  file.write_text(json.dumps(content))
  with pytest.raises(ValueError, match="image 7, which the file does not list"):
    data.load("coco", "val", tmp_path, PARTIAL)
  del content["annotations"][0]["segmentation"]
  file.write_text(json.dumps(content))
  with pytest.raises(
    ValueError, match=r"an entry of annotations \(id 1\) lacks"
  ):
    data.load("coco", "val", tmp_path, PARTIAL)
  file.write_text("{}")
  with pytest.raises(ValueError, match=r"has no \['annotations'"):
    data.load("coco", "val", tmp_path, PARTIAL)
  file.write_text('{"images": [')
  with pytest.raises(ValueError, match="is no readable json"):
    data.load("coco", "val", tmp_path, PARTIAL)


@pytest.mark.parametrize(
  ("part", "change", "words"),
  [
    ("images", lambda e: e * 2, r"several images of one id \(\[1\]\)"),
    ("categories", lambda e: [*e, e[1]], r"categories of one id \(\[18\]\)"),
    ("images", lambda e: None, "images is None; expected a list"),
    ("images", lambda e: [1], "images has an entry 1; expected an object"),
    ("images", lambda e: [e[0] | {"height": None}], r"height .*\(None\)"),
    ("images", lambda e: [e[0] | {"id": [1]}], r"id .*\(\[1\]\)"),
    ("categories", lambda e: [*e, {"id": 9, "name": "background"}],
     "named 'background'"),
    ("categories", lambda e: [*e, {"id": "9", "name": "x"}],
     r"several kinds: .*, '9'\]"),
    ("annotations", lambda e: [e[0] | {"segmentation": []}] * 2,
     "boxes alone: .* all 2 annotations is empty"),
  ],
)  # fmt: skip
def test_a_wrong_coco_json_is_named(tmp_path, part, change, words):
  file = write_coco(tmp_path, [annotation(1, [[1, 1, 9, 1, 9, 9]])])
  content = json.loads(file.read_text())
  content[part] = change(content[part])
  file.write_text(json.dumps(content))
  with pytest.raises(ValueError, match=words) as error:
    data.load("coco", "val", tmp_path, PARTIAL)
  assert str(file) in str(error.value)


def test_coco_polygons_of_two_points_cover_nothing(tmp_path):
  square = [2, 2, 5, 2, 5, 5, 2, 5]
  line = [[0, 0, 9, 9]]
  write_coco(tmp_path, [annotation(1, [square, *line]), annotation(18, line)])
  example = data.load("coco", "val", tmp_path, PARTIAL)[0]
  assert example["classes"].tolist() == [1]
  assert (example["instances"] == 1).sum() == 9


def test_a_split_and_the_year_that_its_file_adds(tmp_path):
  write_coco(tmp_path, [], split="minitrain2017")
  assert len(data.load("coco", "minitrain", tmp_path)) == 1


def test_coco_splits_of_equal_names_in_folders_of_their_own(tmp_path):
  """As Roboflow writes them: the json lies beside the split's images."""
  for split, category in (("train", 1), ("valid", 18)):
    square = [[2, 2, 5, 2, 5, 5, 2, 5]]
    file = write_coco(tmp_path / split, [annotation(category, square)])
    file.rename(tmp_path / split / coco.ROBOFLOW)
    for image in (tmp_path / split / "images").iterdir():
      image.rename(tmp_path / split / image.name)
  assert check.guess_name(tmp_path) == "coco"
  splits, problems = check.open_splits("coco", tmp_path)
  assert list(splits) == ["train", "valid"] and not problems
  classes = [dataset[0]["classes"].tolist() for dataset in splits.values()]
  assert classes == [[1], [2]]
  # One name for two images: neither a leak nor looked at only once.
  assert splits["train"].ids == splits["valid"].ids
  stamp = check.refuse_leak(splits["train"], splits["valid"])
  assert stamp["leaked_images"] == 0
  report = check.examine(splits)
  assert [set(report.images[s][0].pixels) for s in splits] == [{0, 1}, {0, 2}]
  # Their pixels are the same, though.
  (problem,) = report.problems
  assert (problem.kind, problem.key) == ("leak", "000000000001")


def test_coco_from_archives(tmp_path, monkeypatch):
  source, manual = tmp_path / "source", tmp_path / "manual"
  write_coco(source, [annotation(18, [[1, 1, 9, 1, 9, 9]])])
  manual.mkdir()
  for name, folder in (
    ("annotations_trainval2017", "annotations"), ("val2017", "images"),
  ):  # fmt: skip
    archive = coco.ARCHIVES[name]._replace(size=None, sha256=None)
    monkeypatch.setitem(coco.ARCHIVES, name, archive)
    with zipfile.ZipFile(manual / archive.file, "w") as stream:
      for file in (source / folder).iterdir():
        stream.write(file, f"{archive.folder}/{file.name}")
  for _ in range(2):  # extracts, then finds what is extracted
    dataset = data.load("coco", "val", manual, PARTIAL)
    assert dataset[0]["classes"].tolist() == [2]


def test_own_coco_json_by_its_path(tmp_path):
  file = write_coco(tmp_path, [annotation(44, [[1, 1, 9, 1, 9, 9]])])
  file = file.rename(tmp_path / "mine.json")
  assert data.load("coco", "any", file)[0]["classes"].tolist() == [3]
  (tmp_path / "images").rename(tmp_path / "photos")
  with pytest.raises(ValueError, match="name their folder"):
    data.load("coco", "any", file)
  dataset = data.load("coco", "any", file, {"images": "photos"})
  assert dataset[0]["classes"].tolist() == [3]


def test_the_coco_sample(real_data):
  oracle = pytest.importorskip("pycocotools.mask")
  path = real_data / "coco_sample"
  dataset = data.load("coco", "sample", path)
  instances, pixels = totals(dataset)
  assert (len(dataset), instances, len(dataset.categories)) == (150, 1432, 80)
  stated = {0: 28038202, 1: 2718918, 3: 284474, 17: 228009, 61: 1871575}
  assert {k: pixels[k] for k in stated} == stated
  assert pixels[255] == 326999
  # Crowds and instances drawn by pycocotools give the same maps.
  content = json.loads((path / "annotations/instances_sample.json").read_text())
  order = sorted(c["id"] for c in content["categories"])
  for k in range(0, 150, 10):
    example = dataset[k]
    size = example["semantic"].shape
    crowds, drawn = np.zeros(size, bool), np.zeros(size, bool)
    for one in content["annotations"]:
      if one["image_id"] != int(example["id"]):
        continue
      runs = oracle.frPyObjects(one["segmentation"], *size)
      runs = oracle.merge(runs) if isinstance(runs, list) else runs
      mask = oracle.decode(runs).astype(bool)
      if one["iscrowd"]:
        crowds |= mask
        continue
      drawn |= mask
      category = order.index(one["category_id"]) + 1
      here = example["instances"][mask]
      assert (
        category in example["classes"][here[here > 0] - 1]
      ) or not here.any()
    np.testing.assert_array_equal(example["instances"] > 0, drawn)
    np.testing.assert_array_equal(example["semantic"] == 255, crowds & ~drawn)


def test_coco_with_the_categories_of_voc(real_data):
  dataset = data.load(
    "coco", "sample", real_data / "coco_sample", {"categories": "voc"}
  )
  assert dataset.categories == voc2012_sbd.CATEGORIES
  instances, pixels = totals(dataset)
  assert instances == 792
  stated = {15: 2766466, 18: 311626, 20: 347606, 255: 264223}
  assert {k: pixels[k] for k in stated} == stated


# Two functions.


def test_own_data_as_two_functions(tmp_path):
  Image.fromarray(photo(1)).save(tmp_path / "b.png")
  images = {
    "a": np.full(SHAPE, 7, np.uint8),  # gray
    "b": tmp_path / "b.png",
    "c": (tmp_path / "b.png").read_bytes(),
  }

  def labels(key):
    return {
      "semantic": OBJECTS.clip(max=1), "instances": OBJECTS, "classes": [1] * 3
    }  # fmt: skip

  dataset = data.Functions(list(images), images.__getitem__, labels, ("thing",))
  assert len(dataset) == 3 and dataset.has_instances
  assert (dataset[0]["image"] == 7).all()
  assert dataset[0]["image"].shape == (*SHAPE, 3)
  for index in (1, 2):
    np.testing.assert_array_equal(dataset[index]["image"], photo(1))
  assert dataset[0]["classes"].dtype == np.uint8
  assert dataset[0]["instances"].dtype == np.int32


@pytest.mark.parametrize(
  ("change", "words"),
  [
    ({"semantic": np.full(SHAPE, 3)}, r"labels \[3\]; expected 0 \.\.\. 2"),
    ({"semantic": np.full(SHAPE, -1)}, r"labels \[-1\]"),
    ({"semantic": np.zeros((3, 4), int)}, r"shape \(3, 4\), the image"),
    ({"semantic": np.zeros(SHAPE)}, "expected integers"),
    ({"instances": np.full(SHAPE, 4)}, "categories for 3"),
    ({"classes": [1, 2, 0]}, r"categories \[0, 1, 2\]"),
    ({"classes": [1, 2, 3]}, r"expected 1 \.\.\. 2"),
    ({"image": np.zeros(SHAPE)}, "the image is float64"),
  ],
)
def test_what_two_functions_may_not_give(change, words):
  good = {
    "image": photo(0), "semantic": OBJECTS.clip(max=2), "instances": OBJECTS,
    "classes": [1, 2, 2],
  }  # fmt: skip
  found = good | change
  dataset = data.Functions(
    ["a"], lambda key: found["image"], lambda key: found, ("x", "y")
  )
  with pytest.raises(ValueError, match=words):
    dataset[0]
  with pytest.raises(ValueError, match="no images in split"):
    data.Functions([], lambda key: None, lambda key: {}, ("x",))
  for number in (0, 255):
    with pytest.raises(ValueError, match=f"has {number} categories"):
      data.Functions(["a"], photo, lambda key: {}, ("x",) * number)


def test_two_functions_that_find_no_file_name_the_image(tmp_path):
  (tmp_path / "b").write_text("no picture")
  dataset = data.Functions(
    ["a", "b"],
    lambda key: np.asarray(Image.open(tmp_path / key)),
    lambda key: {"semantic": OBJECTS.clip(max=1)},
    ("x",),
    has_instances=False,
  )
  for index, words in enumerate(("No such file", "cannot identify")):
    key = dataset.ids[index]
    with pytest.raises(
      ValueError, match=f"train {key} cannot be read.*{words}"
    ):
      dataset[index]


def test_ids_are_different_texts():
  dataset = data.Functions(["a"], photo, lambda key: {}, ("x",))
  for ids, words in (([1, 2], "no text, such as 1"), (["a", "a"], "twice")):
    dataset.ids[:] = ids  # the tests' type checker would stop a number before
    with pytest.raises(ValueError, match=words):
      dataset.__post_init__()


def test_functions_of_categories_alone_say_so():
  labels = {"semantic": OBJECTS.clip(max=1)}
  functions = ["a"], lambda key: photo(0), lambda key: labels, ("x",)
  with pytest.raises(ValueError, match=r"no 'instances'.*has_instances=False"):
    data.Functions(*functions)[0]
  assert "instances" not in data.Functions(*functions, has_instances=False)[0]


# As tfds builders.


def test_readers_and_builders_need_no_tensorflow():
  code = (
    "import sys\n"
    "import fcrn_jax.data.builders.tfds_builders\n"
    "import fcrn_jax.data.check_report\n"
    "for name in ('tensorflow', 'jax', 'pycocotools'):\n"
    "  assert name not in sys.modules, name\n"
  )
  subprocess.run([sys.executable, "-c", code], check=True)


def fixture(kind, root):
  """A tiny data set of a kind; its builder's name and its splits."""
  if kind == "voc2012_sbd":
    write_voc2012(root)
    return "Voc2012Sbd", tuple(voc2012_sbd.SPLITS)
  if kind == "pascal_context":
    write_context(root, np.full(SHAPE, 2, np.uint16))
    return "PascalContext", ("train", "val")
  if kind == "cityscapes":
    labels = np.where(OBJECTS > 0, 26, 7)
    for split in ("train", "val"):
      ids = np.where(OBJECTS > 0, 26000 + OBJECTS.astype(int), 7)
      write_cityscapes(root, labels, ids, split)
    return "Cityscapes", tuple(cityscapes.SPLITS)
  some = [annotation(18, [[1, 1, 9, 1, 9, 9]])]
  write_coco(root, some)
  write_coco(root, some, split="train2017")
  return "Coco", ("train", "val")


@pytest.mark.parametrize(
  "kind", ["voc2012_sbd", "pascal_context", "cityscapes", "coco"]
)
def test_builders_give_what_the_readers_give(kind, tmp_path, monkeypatch):
  import tensorflow_datasets as tfds
  from tensorflow_datasets.core import shuffle
  from tensorflow_datasets.core.features import image_feature

  from fcrn_jax.data.builders import records, tfds_builders

  # As if a split were larger than the memory that tfds allows it: its own
  # writer then imports TensorFlow.
  monkeypatch.setattr(shuffle, "MAX_MEM_BUFFER_SIZE", 100)
  name, splits = fixture(kind, tmp_path / "manual")
  manual = tfds.download.DownloadConfig(manual_dir=str(tmp_path / "manual"))
  cls = getattr(tfds_builders, name)
  assert cls.name == kind
  with pytest.raises(ValueError, match="official list"):
    cls(data_dir=tmp_path / "full").download_and_prepare(download_config=manual)
  builder = cls(data_dir=tmp_path / "tfds", config="partial")
  builder.download_and_prepare(download_config=manual)
  assert set(builder.info.splits) == set(splits)
  source_pil = tfds.builder_from_directory(builder.data_dir)
  for split in splits:
    dataset = data.load(kind, split, tmp_path / "manual", PARTIAL)
    prepared = data.load(kind, split, builder.data_dir)
    source = builder.as_data_source(split)
    assert len(source) == len(prepared) == len(dataset)
    assert prepared.ids == dataset.ids
    assert prepared.categories == dataset.categories
    assert prepared.background == dataset.background
    for index in range(len(dataset)):
      same(prepared[index], dataset[index])
      expected, found = dataset[index], source[index]
      assert found["id"].decode() == expected["id"]
      np.testing.assert_array_equal(found["image"], expected["image"])
      np.testing.assert_array_equal(
        found["semantic"][..., 0], expected["semantic"]
      )
      if dataset.has_instances:
        ids = records.from_rgb(found["instances"])
        np.testing.assert_array_equal(ids, expected["instances"])
        np.testing.assert_array_equal(found["classes"], expected["classes"])
      assert found.get("membership") == expected.get("membership")
      with monkeypatch.context() as patch:  # without OpenCV, tfds uses PIL
        patch.setattr(image_feature, "cv2", None)
        other = source_pil.as_data_source(split)[index]
        for key in ("semantic", "instances"):
          if key in found:
            np.testing.assert_array_equal(other[key], found[key])
  assert "tensorflow" not in sys.modules


def same(found, expected):
  assert found.keys() == expected.keys()
  for key, value in expected.items():
    np.testing.assert_array_equal(found[key], value, err_msg=key)
    if isinstance(value, np.ndarray):
      assert found[key].dtype == value.dtype, key


def test_tfds_own_writer_gives_the_same_records(tmp_path):
  import tensorflow_datasets as tfds

  from fcrn_jax.data.builders import tfds_builders

  class Plain(tfds_builders.Voc2012Sbd, skip_registration=True):
    name = "plain"
    _generate_splits = tfds.core.GeneratorBasedBuilder._generate_splits

  write_voc2012(tmp_path / "manual")
  manual = tfds.download.DownloadConfig(manual_dir=str(tmp_path / "manual"))
  sources = []
  for cls in (tfds_builders.Voc2012Sbd, Plain):
    builder = cls(data_dir=tmp_path / "tfds", config="partial")
    builder.download_and_prepare(download_config=manual)
    sources.append(builder.as_data_source("train_aug").data_source)
  ours, theirs = ([source[k] for k in range(3)] for source in sources)
  assert ours == theirs


def test_a_builder_that_was_cut_off_goes_on(tmp_path, monkeypatch):
  import tensorflow_datasets as tfds

  from fcrn_jax.data.builders import records, tfds_builders

  write_voc2012(tmp_path / "manual")
  manual = tfds.download.DownloadConfig(manual_dir=str(tmp_path / "manual"))
  encode, calls = records.encode, []

  def cut(dataset, index):
    calls.append((dataset.split, index))
    if dataset.split == "train_aug" and not resumed:
      raise KeyboardInterrupt
    return encode(dataset, index)

  monkeypatch.setattr(records, "encode", cut)
  resumed = False
  with pytest.raises(KeyboardInterrupt):
    builder = tfds_builders.Voc2012Sbd(data_dir=tmp_path, config="partial")
    builder.download_and_prepare(download_config=manual)
  assert calls == [("seg_train", 0), ("seg_val", 0), ("train_aug", 0)]
  resumed = True
  calls.clear()
  builder = tfds_builders.Voc2012Sbd(data_dir=tmp_path, config="partial")
  builder.download_and_prepare(download_config=manual)
  assert calls[0] == ("train_aug", 0)
  assert len(calls) == 3 + 1 + 2  # none of seg_train and seg_val
  assert len(builder.as_data_source("seg_train")) == 1
  assert not list(tmp_path.rglob("unfinished*"))
