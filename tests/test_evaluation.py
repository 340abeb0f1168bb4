"""Scores of typed-out images, oracles, leaks, and two processes."""

import json
import os
import pathlib
import socket
import subprocess
import sys
import textwrap

import jaxtyping
import numpy as np
import pytest

from fcrn_jax import data, evaluation, inference, instances, oracle, scoring
from fcrn_jax.predictor import Predictor, Result
from fcrn_jax.types import IGNORE
from tests import QUICKLY


class Data:
  """Images given as (semantic, instances, classes)."""

  name, split, path, background = "own", "val", None, "background"
  categories = ("a", "b")

  def __init__(self, examples, has_instances=True):
    self._examples = examples
    self.has_instances = has_instances
    self.ids = [f"image{i}" for i in range(len(examples))]

  def __len__(self):
    return len(self._examples)

  def __getitem__(self, index):
    semantic, instance, classes = self._examples[index]
    semantic = np.asarray(semantic, np.uint8)
    return {
      "id": self.ids[index],
      "image": np.full((*semantic.shape, 3), index, np.uint8),
      "semantic": semantic,
      "instances": np.asarray(instance, np.int32),
      "classes": np.asarray(classes, np.uint8),
    }


class Recorded(Predictor):
  """Says what was written down for the image whose pixels are its index."""

  def __init__(self, results):
    super().__init__(None, 1, Data.categories, source="recorded", step=3)
    self._results = results

  def predict_batch(self, images):
    return [self._results[int(image[0, 0, 0])] for image in images]


def result_of(semantic, labels, classes, scores):
  semantic = np.asarray(semantic, np.uint8)
  return Result(
    semantic,
    np.full(semantic.shape, 0.5, np.float16),
    np.asarray(labels, np.uint16)[None],
    np.asarray(classes, np.int32),
    np.asarray(scores, np.float32),
    np.zeros((len(classes), 4), np.float32),
  )


# Two touching objects of category 1, one of category 2, a void column.
TRUTH = (
  [[1, 1, 1, 1, 0, 0, IGNORE], [1, 1, 1, 1, 0, 2, IGNORE]],
  [[1, 1, 2, 2, 0, 0, 0], [1, 1, 2, 2, 0, 3, 0]],
  [1, 1, 2],
)
# Finds both of category 1 (the second but for a pixel, called background),
# misses category 2, and has a wrong one of category 2 on void alone.
FOUND = result_of(
  [[1, 1, 1, 0, 0, 0, 2], [1, 1, 1, 1, 0, 0, 0]],
  [[1, 1, 2, 0, 0, 0, 3], [1, 1, 2, 2, 0, 0, 0]],
  [1, 1, 2],
  [0.9, 0.8, 0.7],
)
# One region of category 1: neither object is met with IoU above 0.5 by more
# than 4 / 7; that of category 2 is only on void.


def test_scores_of_a_typed_out_image(tmp_path):
  scores = evaluation.evaluate(
    Recorded([FOUND]), Data([TRUTH]), workdir=tmp_path, progress=False
  )
  # 12 pixels count: 7 of 8 of category 1, 3 of 3 of background, 0 of 1.
  assert scores["pixel_accuracy"] == pytest.approx(10 / 12)
  assert scores["mean_accuracy"] == pytest.approx((1 + 7 / 8 + 0) / 3)
  # Background is predicted on two pixels of objects: 3 / 5.
  assert scores["iou_background"] == pytest.approx(3 / 5)
  assert scores["iou_a"] == pytest.approx(7 / 8)
  assert scores["iou_b"] == 0
  assert scores["mean_iou"] == pytest.approx((3 / 5 + 7 / 8) / 3)
  # IoUs 1 and 3 / 4: both found at 0.5 and 0.7; category 2 not: mean 0.5.
  assert scores["ap_r_0.5"] == pytest.approx(0.5)
  assert scores["ap_r_0.7_a"] == pytest.approx(1)
  assert scores["ap_r_0.7_b"] == pytest.approx(0)
  # 2 found, 1 missed, the one on void forgiven.
  assert scores["matching_0.5"] == pytest.approx(2 / 3)
  assert scores["matching_0.8"] == pytest.approx(1 / 4)
  assert scores["touching_recall_0.75"] == 1
  assert scores["touching_recall_0.8"] == 0.5
  # One component of 7 pixels meets the first object with 4 / 7.
  assert scores["components_matching_0.5"] == pytest.approx(1 / 3)
  assert scores["components_ap_r_0.7"] == 0
  saved = json.loads((tmp_path / "eval_val.json").read_text())
  assert saved == scores
  nested = [k for k, v in saved.items() if isinstance(v, (dict, list))]
  assert nested == ["worst_images"]
  for name, value in {
    "protocol": "sds", "split": "val", "data": "own", "data_path": None,
    "num_images": 1, "checkpoint_step": 3, "source": "recorded",
    "oracle": "", "leaked_images": 0,
  }.items():  # fmt: skip
    assert saved[name] == value, name
  for name in ("split_hash", "version_jax", "date", "grouping", "views"):
    assert saved[name]
  text = evaluation.table(scores)
  assert "matching_0.5" in text and "0.6667" in text and "0.3333" in text


def test_a_checkout_that_is_not_installed_is_scored_too(monkeypatch):
  def version(name):
    if name == "fcrn_jax":
      raise evaluation.importlib.metadata.PackageNotFoundError(name)
    return "1.2"

  monkeypatch.setattr(evaluation.importlib.metadata, "version", version)
  nothing = result_of(np.zeros((2, 7)), np.zeros((2, 7)), [], [])
  scores = evaluation.evaluate(Recorded([nothing]), Data([TRUTH]))
  assert scores["version_fcrn_jax"] is None
  assert scores["version_jax"] == "1.2"


@pytest.mark.parametrize("has_instances", [True, False])
def test_the_worst_images_come_first(has_instances):
  nothing = result_of(np.zeros((2, 7)), np.zeros((2, 7)), [], [])
  # The last image has no score, for nothing is there.
  void = np.full((2, 7), IGNORE), np.zeros((2, 7)), []
  dataset = Data([TRUTH] * 3 + [void], has_instances=has_instances)
  scores = evaluation.evaluate(
    Recorded([FOUND, nothing, FOUND, nothing]), dataset, progress=False
  )
  assert scores["worst_images"] == [dataset[i]["id"] for i in (1, 0, 2)]


def test_void_of_sbd_is_no_excuse():
  dataset = Data([TRUTH])
  dataset.name, dataset.split = "voc2012_sbd", "seg_val"
  assert not scoring.counts_void(dataset)  # VOC's own borders are void
  dataset.split = "sbd_val"
  scores = evaluation.evaluate(Recorded([FOUND]), dataset, progress=False)
  assert scores["matching_0.5"] == pytest.approx(2 / 4)
  # VOC counts an absent class as 0 of 1, which here changes nothing.
  assert scores["semantic_protocol"].startswith("one_denominator")


def test_scores_that_do_not_exist_are_none(tmp_path):
  empty = ([[0, 0]], [[0, 0]], [])
  nothing = result_of([[0, 0]], [[0, 0]], [], [])
  scores = evaluation.evaluate(
    Recorded([nothing]), Data([empty]), workdir=tmp_path, progress=False
  )
  assert scores["ap_r_0.5"] is None and scores["matching_0.5"] is None
  assert scores["pixel_accuracy"] == 1
  json.loads((tmp_path / "eval_val.json").read_text())
  evaluation.table(scores)


def test_category_maps_alone():
  dataset = Data([TRUTH], has_instances=False)
  scores = evaluation.evaluate(Recorded([FOUND]), dataset, progress=False)
  assert scores["mean_iou"] == pytest.approx((3 / 5 + 7 / 8) / 3)
  assert "ap_r_0.5" not in scores and "matching_0.5" not in scores
  lines = evaluation.table(scores).splitlines()
  assert [line.split() for line in lines[2:6]] == [
    ["mean_iou", "0.4917"], ["iou_background", "0.6000"],
    ["iou_a", "0.8750"], ["iou_b", "0.0000"],
  ]  # fmt: skip
  assert "components" not in evaluation.table(scores)
  many = {f"iou_{k}": 0.5 for k in range(80)}
  assert len(evaluation.table({**scores, **many}).splitlines()) < 10


def test_a_network_without_boxes_has_no_scores_of_instances():
  """Its zeros would look like a failure; components of its map are scored."""
  predictor, dataset = Recorded([FOUND]), Data([TRUTH])
  predictor.has_boxes = False
  scores = evaluation.evaluate(predictor, dataset, progress=False)
  assert "matching_0.5" not in scores and "ap_r_0.5" not in scores
  both = evaluation.evaluate(Recorded([FOUND]), dataset, progress=False)
  components = {k: v for k, v in both.items() if k.startswith("components_")}
  assert components.items() <= scores.items()
  lines = evaluation.table(scores).splitlines()
  (line,) = [line for line in lines if line.startswith("matching_0.5")]
  assert len(line.split()) == 2
  assert line.index(line.split()[1]) == lines[0].index("components") + 4


@pytest.mark.parametrize(
  ("wrong", "words"),
  [
    ({"protocol": "voc"}, "protocol is 'voc'; expected 'sds'"),
    ({"oracle": "masks"}, "oracle is 'masks'; expected one of"),
    ({"max_images": -1}, "max_images is -1"),
  ],
)
def test_wrong_arguments_are_refused_before_any_image(wrong, words):
  dataset = Data([TRUTH], has_instances=False)
  jaxtyping.config.update("jaxtyping_disable", True)  # as callers have it
  try:
    with pytest.raises(ValueError, match=words):
      evaluation.evaluate(Recorded([]), dataset, **wrong)
  finally:
    jaxtyping.config.update("jaxtyping_disable", False)


def test_scores_of_images_that_were_tuned_on_are_marked():
  predictor, dataset = Recorded([FOUND] * 3), Data([TRUTH] * 3)
  predictor.tuned_on = {
    **evaluation.image_stamp(dataset, 2),
    "data_source": None,
    "ids": ["image0", "image1"],
  }

  def mark(**options):
    scores = evaluation.evaluate(predictor, dataset, progress=False, **options)
    marked = scores["tuned_on_these_images"]
    assert bool(marked) == ("TUNED ON" in evaluation.table(scores))
    return marked

  assert mark() is True and mark(max_images=2) is True
  dataset.path = "/moved"
  assert mark(max_images=2) is True and mark() is False
  dataset.path, dataset.ids = None, ["image2", "image3", "image1"]
  assert mark() is True and mark(max_images=2) is False
  predictor.tuned_on = None
  assert mark() is None


def test_overlapping_masks_are_scored_as_masks():
  # The second object's pixels, once as category 2 and once, rightly, as 1.
  found = result_of(TRUTH[0], TRUTH[1], [1, 2, 2], [0.9, 0.7, 0.8])
  layer = np.where(np.asarray(TRUTH[1]) == 2, 4, 0).astype(np.uint16)
  found.semantic[found.semantic == IGNORE] = 0
  found.layers = np.stack([found.layers[0], layer])
  found.classes = np.int32([1, 2, 2, 1])
  found.scores = np.float32([0.9, 0.7, 0.8, 0.6])
  scores = evaluation.evaluate(
    Recorded([found]), Data([TRUTH]), "coco", progress=False
  )
  assert scores["matching_0.5"] == pytest.approx(3 / 4)
  # Beside the protocol's own scores, those of sds.
  assert scores["ap"] == scores["ap_b"] == scores["ap_r_0.5"] == 1
  # The component of both objects meets one with IoU 4 / 8, so that one of two
  # is found: 51 of 101 recalls.
  assert scores["components_ap_0.5_a"] == pytest.approx(51 / 101)


def test_categories_must_be_those_of_the_network():
  dataset = Data([TRUTH])
  dataset.categories = ("b", "a")
  with pytest.raises(ValueError, match="the networks know the categories"):
    evaluation.evaluate(Recorded([FOUND]), dataset)


def shapes(number=4):
  return data.load("shapes", split="val", options={"num_images": number})


def oracle_predictor(stride, **options):
  return Predictor(
    None, stride, shapes().categories, options=instances.Options(**options)
  )


def test_with_everything_true_little_is_missing():
  scores = {
    stride: evaluation.evaluate(
      oracle_predictor(stride, min_fill=0.0),
      shapes(),
      oracle="both",
      progress=False,
    )
    for stride in (1, 4)
  }
  assert scores[1]["mean_iou"] == 1
  assert scores[1]["ap_r_0.5"] > 0.97 and scores[1]["matching_0.5"] > 0.97
  assert 0.6 < scores[4]["ap_r_0.5"] <= scores[1]["ap_r_0.5"]
  assert scores[1]["ap_r_0.7"] > scores[1]["components_ap_r_0.7"] + 0.1
  assert scores[1]["oracle"] == "both"
  assert "CATEGORIES AND BOXES ARE THE TRUE ONES" in evaluation.table(scores[1])


class Blind(Predictor):
  """Networks that know nothing: even scores, one box for all."""

  def maps(self, image, progress=False):
    cells = [-(-n // self.stride) for n in image.shape[:2]]
    boxes = np.zeros((*cells, len(self.categories), 4), np.float32)
    boxes[...] = [10, 10, 60, 60]
    probs = np.zeros((*cells, len(self.categories) + 1), np.float32)
    probs[..., 2] = 1
    return inference.Maps(probs, boxes)


def test_one_true_half_at_a_time():
  blind = Blind(None, 2, shapes().categories)
  scores = {
    oracle: evaluation.evaluate(blind, shapes(), oracle=oracle, progress=False)
    for oracle in ("categories", "boxes")
  }
  assert scores["categories"]["mean_iou"] > 0.85
  assert scores["categories"]["ap_r_0.5"] < 0.5
  assert scores["boxes"]["mean_iou"] < 0.2
  # Whatever is a rectangle, the only category known, is found.
  assert scores["boxes"]["ap_r_0.5_rectangle"] > 0.1


def test_true_boxes_for_a_network_of_categories_alone():
  class Categories(Blind):
    def maps(self, image, progress=False):
      return super().maps(image)._replace(boxes=None)

  blind = Categories(None, 2, shapes().categories)
  scores = evaluation.evaluate(blind, shapes(), oracle="boxes", progress=False)
  assert scores["ap_r_0.5_rectangle"] > 0.1


def test_an_oracle_where_the_input_scale_is_no_whole_ratio():
  # 96 pixels go in as 100, 70 for the network: 18 cells, and 96 would be 17.
  def apply_fn(images, sizes):
    cells = (len(images), images.shape[1] // 4, images.shape[2] // 4)
    return {
      "semantic": np.zeros((*cells, 5), np.float32),
      "boxes": np.zeros((*cells, 4, 4), np.float32),
    }

  predictor = Predictor(apply_fn, 4, shapes().categories, input_scale=0.7)
  scores = {
    oracle: evaluation.evaluate(
      predictor, shapes(2), oracle=oracle, progress=False
    )
    for oracle in ("categories", "boxes")
  }
  assert scores["categories"]["mean_iou"] > 0.7
  assert scores["boxes"]["mean_iou"] < 0.3


def test_pictures_of_ids_in_folders_and_without_instances(tmp_path):
  example = {**shapes(1)[0], "id": "train/0001"}
  evaluation.draw(Blind(None, 8, shapes().categories), [example], tmp_path)
  assert [p.name for p in tmp_path.iterdir()] == ["train_0001.png"]


def test_an_oracle_draws_what_it_found(tmp_path, monkeypatch):
  drawn = []
  monkeypatch.setattr(
    evaluation.visualize, "sample", lambda *given: drawn.append(given)
  )
  monkeypatch.setattr(
    evaluation.visualize, "save", lambda path, _: path.touch()
  )
  (tmp_path / "07_old.png").touch()
  example = Data([TRUTH])[0]
  predictor = Predictor(
    None, 1, Data.categories, options=instances.Options(min_fill=0.0),
    background="road",
  )  # fmt: skip
  evaluation.draw(predictor, [example], tmp_path, True, "both")
  assert [p.name for p in tmp_path.iterdir()] == ["00_image0.png"]
  ((_, result, _, maps, _),) = drawn
  assert sorted(result.classes.tolist()) == [1, 1, 2]
  assert result.categories == Data.categories
  assert result.background == "road"
  np.testing.assert_array_equal(
    maps.probs, oracle.true_maps(example, 1, 2).probs
  )


def test_an_image_that_two_processes_scored_is_refused():
  one, other = (scoring.Scores(3, False, "sds") for _ in range(2))
  one.by_image, other.by_image = {"a": 1.0, "b": 1.0}, {"b": 1.0}
  with pytest.raises(ValueError, match="1 images both, such as b"):
    one.merge(other)


def test_true_maps_of_a_typed_out_image():
  example = Data([TRUTH])[0]
  maps = oracle.true_maps(example, 1, 2)
  np.testing.assert_array_equal(
    maps.probs.argmax(-1), [[1, 1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 0, 2, 0]]
  )
  np.testing.assert_array_equal(maps.boxes[0, 3, 0], [0, 2, 2, 4])
  np.testing.assert_array_equal(maps.boxes[1, 5, 1], [1, 5, 2, 6])
  # No instance: the nearest one's box.
  np.testing.assert_array_equal(maps.boxes[0, 5, 1], [1, 5, 2, 6])
  # A cell of stride 2 looks at pixel (1, 1), (1, 3) ...; 7 columns are 4.
  coarse = oracle.true_maps(example, 2, 2)
  np.testing.assert_array_equal(coarse.probs.argmax(-1), [[1, 1, 2, 0]])
  # A category without an instance has no box: background, beside boxes alone.
  example["instances"][0, 0] = 0
  assert oracle.true_maps(example, 1, 2).probs[0, 0].tolist() == [1, 0, 0]
  alone = oracle.true_maps(example, 1, 2, with_boxes=False)
  assert alone.probs[0, 0].tolist() == [0, 1, 0] and alone.boxes is None
  blind = Blind(None, 1, Data.categories)
  mixed = oracle.oracle_maps(blind, example, "categories")
  np.testing.assert_array_equal(mixed.probs, alone.probs)


def test_images_of_the_training_set_are_refused():
  predictor = oracle_predictor(1)
  predictor.trained_on = ({"name": "shapes", "split": "val", "path": None},)
  with pytest.raises(ValueError, match="was trained on"):
    evaluation.evaluate(predictor, shapes(), oracle="both")
  scores = evaluation.evaluate(
    predictor, shapes(1), oracle="both", allow_leak=True, progress=False
  )
  assert scores["leaked_images"] == 1
  predictor.trained_on = ({"name": "shapes", "split": "train", "path": None},)
  scores = evaluation.evaluate(
    predictor, shapes(1), oracle="both", progress=False
  )
  assert scores["leaked_images"] == 0 and scores["leak_check"] == "done"
  predictor.trained_on = (
    {"name": "folder", "split": "train", "path": "/nowhere"},
  )
  scores = evaluation.evaluate(
    predictor, shapes(1), oracle="both", progress=False
  )
  with pytest.raises(
    ValueError, match="the data /nowhere do not exist"
  ) as error:
    data.load(**predictor.trained_on[0])
  assert scores["leak_check"] == f"not done: {error.value}"
  predictor.trained_on = ({"name": "functions", "split": "train", "path": ""},)
  scores = evaluation.evaluate(
    predictor, shapes(1), oracle="both", progress=False
  )
  assert "a program's own (data.Functions)" in scores["leak_check"]


_WORKER = """
import json, os, sys
import jax
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
from fcrn_jax import evaluation
from tests.test_evaluation import FOUND, TRUTH, Data, Recorded
evaluator = Recorded([FOUND] * 3)
scores = evaluation.evaluate(evaluator, Data([TRUTH] * 3), workdir=sys.argv[3])
json.dump(scores, open(f"{sys.argv[3]}/{sys.argv[2]}.json", "w"))
"""


def test_two_processes_score_as_one(tmp_path):
  with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    address = f"127.0.0.1:{probe.getsockname()[1]}"
  root = pathlib.Path(__file__).parent.parent
  environment = {**os.environ, "XLA_FLAGS": QUICKLY, "PYTHONPATH": str(root)}
  workers = [
    subprocess.Popen(
      [
        sys.executable,
        "-c",
        textwrap.dedent(_WORKER),
        address,
        str(i),
        tmp_path,
      ],
      cwd=root,
      env=environment,
    )
    for i in range(2)
  ]
  assert [worker.wait(timeout=120) for worker in workers] == [0, 0]
  one = evaluation.evaluate(
    Recorded([FOUND] * 3), Data([TRUTH] * 3), progress=False
  )
  for name in ("0", "1", "eval_val"):
    assert json.loads((tmp_path / f"{name}.json").read_text()) == one
