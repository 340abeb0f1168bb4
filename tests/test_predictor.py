"""Predictor and Result: every road in, every file out."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from experiments.benchmarks.predict import discs
from fcrn_jax import files, inference, instances, visualize
from fcrn_jax import predictor as predictor_lib
from fcrn_jax.predictor import (
  Predictor,
  Result,
  check_image,
  grouping,
  large,
  read_ahead,
)
from fcrn_jax.predictor import result as result_lib
from tests import test_inference as scenes
from tests import workdirs


@pytest.fixture(scope="module")
def joint(tmp_path_factory):
  return workdirs.make(tmp_path_factory.mktemp("joint"))


def test_a_cpu_predicts_in_full_precision(joint, tmp_path):
  half = workdirs.make(tmp_path, model__dtype="bfloat16")
  image = image_of(0, 40, 56)
  ours, theirs = (Predictor.load(path).maps(image) for path in (half, joint))
  np.testing.assert_array_equal(ours.probs, theirs.probs)


def perfect(**settings):
  return Predictor(scenes.see, 4, ("red", "green"), **settings)


def true_masks(image):
  return [image[..., channel] > 127 for channel in (0, 1)]


def image_of(seed, height, width):
  rng = np.random.default_rng(seed)
  return rng.integers(0, 255, (height, width, 3), np.uint8)


def assert_scene(result, image, pixels):
  """Both objects found, each but for its border of so many pixels."""
  assert sorted(result.classes.tolist()) == [1, 2]
  order = np.argsort(result.classes)
  for k, true in zip(order, true_masks(image), strict=True):
    wrong = result.mask(k) != true
    assert wrong.sum() <= pixels
    center = np.argwhere(result.mask(k)).mean(0) - np.argwhere(true).mean(0)
    assert np.abs(center).max() < 0.6
    rows, columns = np.where(true)
    box = [rows.min(), columns.min(), rows.max() + 1, columns.max() + 1]
    np.testing.assert_allclose(result.boxes[k], box, atol=0.6)
  np.testing.assert_allclose(result.scores, 1, atol=1e-3)
  assert not result.truncated


@pytest.mark.parametrize("size", [(96, 128), (93, 107), (70, 61)])
def test_perfect_networks_give_the_objects(size):
  image = scenes.scene(*size)
  result = perfect()(image)
  assert result.semantic.shape == size and result.semantic.dtype == np.uint8
  assert result.label_map.shape == size and result.label_map.dtype == np.int32
  assert result.masks.shape == (2, *size) and result.masks.dtype == bool
  assert_scene(result, image, pixels=8)
  np.testing.assert_array_equal(result.masks.any(0), result.label_map > 0)
  for k in range(2):
    np.testing.assert_array_equal(result.masks[k], result.mask(k))
    np.testing.assert_array_equal(result.label_map == k + 1, result.mask(k))
  right = result.semantic == np.where(
    true_masks(image)[0], 1, np.where(true_masks(image)[1], 2, 0)
  )
  assert right.mean() > 0.995
  # A cell's points are where the evidence says they are.
  assert (result.evidence.num_votes > 20).all()
  assert (result.evidence.spread < 1e-3).all()


def test_results_come_back_at_the_images_resolution():
  # The network sees half or twice the size, odd sizes included.
  # Edges lie between cells at each of the scales.
  image = np.zeros((187, 213, 3), np.uint8)
  image[16:96, 32:112, 0] = 255
  image[112:160, 128:176, 1] = 255
  for input_scale, pixels in ((0.5, 30), (2.0, 10), (0.75, 30)):
    result = perfect(input_scale=input_scale)(image)
    assert result.semantic.shape == (187, 213)
    assert_scene(result, image, pixels)


def test_scales_that_give_no_whole_pixels_lose_no_row():
  # 0.33 of 195 pixels are 64.35: 64 would be the 8 cells of 193.9 pixels.
  def apply_fn(images, sizes):
    cells = len(images), images.shape[1] // 8, images.shape[2] // 8
    return {"semantic": np.zeros((*cells, 2), np.float32)}

  predictor = Predictor(apply_fn, 8, ("disc",), input_scale=0.33)
  result = predictor(np.zeros((195, 60), np.uint8))
  assert result.semantic.shape == (195, 60)


def test_views_and_tiles_reach_the_result():
  image = scenes.scene(96, 128)
  for views in (
    inference.Options(flip=True, shifts=2),
    inference.Options(scales=(1.0, 2.0)),
    inference.Options(tile=96, tile_overlap=48),
  ):
    assert_scene(perfect(views=views)(image), image, pixels=40)


@jax.jit
def see_discs(images, sizes):
  """A perfect network of stride 4 for benchmarks.predict.discs."""
  x = images[:, 2::4, 2::4].astype(jnp.float32)
  dy, dx, size = x[..., 0] - 128, x[..., 1] - 128, x[..., 2]
  inside = dy**2 + dx**2 < (size / 2) ** 2
  boxes = jnp.stack([dy, dx, size, size], axis=-1)
  semantic = jnp.stack([~inside, inside], axis=-1) * 8.0
  return {"semantic": semantic, "boxes": boxes[..., None, :]}


def assert_equal(a, b):
  np.testing.assert_array_equal(a.label_map, b.label_map)
  np.testing.assert_array_equal(a.semantic, b.semantic)
  np.testing.assert_allclose(a.confidence, b.confidence, atol=1e-3)
  np.testing.assert_array_equal(a.classes, b.classes)
  np.testing.assert_allclose(a.scores, b.scores, atol=1e-6)
  np.testing.assert_allclose(a.boxes, b.boxes, atol=1e-4)
  for mine, other in zip(a.evidence[:4], b.evidence[:4], strict=True):
    np.testing.assert_allclose(mine, other, atol=1e-4)


def test_large_images_have_no_seams(monkeypatch):
  # In 3 x 3 tiles and 4 x 4 regions: as whole, to the last pixel.
  image = discs(300, 40)[:, :268]
  options = instances.Options(max_instances=128)
  whole = Predictor(see_discs, 4, ("disc",), options=options)
  monkeypatch.setattr(large, "REGION", 96)
  tiled = Predictor(
    see_discs, 4, ("disc",),
    views=inference.Options(tile=128, tile_overlap=32),
    options=instances.Options(max_instances=2),  # in 96 x 96, and more
  )  # fmt: skip
  result, expected = tiled(image), whole(image)
  assert len(result) == 8 * 7 and not result.truncated
  # But for equal scores and ties between neighbours, which blending rounds.
  np.testing.assert_array_equal(result.semantic, expected.semantic)
  pairs = np.stack([result.label_map.ravel(), expected.label_map.ravel()])
  _, sizes = np.unique(pairs, axis=1, return_counts=True)
  sizes = np.sort(sizes)[::-1]
  assert sizes[len(result) + 1 :].sum() == 0
  np.testing.assert_allclose(
    sorted(result.boxes.tolist()), sorted(expected.boxes.tolist()), atol=1e-3
  )
  with pytest.raises(ValueError, match="too large to be explained"):
    tiled.explain(image)
  too_many = dataclasses.replace(options, masks="full")
  with pytest.raises(ValueError, match="masks is 'full'"):
    tiled.group(tiled.maps(image), image, too_many)


def test_regions_of_cells_of_no_whole_pixels(monkeypatch):
  # Three cells are 16 pixels.
  monkeypatch.setattr(large, "REGION", 50)
  predictor = Predictor(see_discs, 4, ("disc",), input_scale=0.75)
  assert predictor.stride == pytest.approx(16 / 3)
  image = discs(230, 50)
  maps = Predictor(see_discs, 4, ("disc",)).maps(image[:176, :172])
  image = image[: 16 * 14, : 16 * 14]
  # The boxes are those of another stride and do not fit the cells.
  options = instances.Options(min_extent=0.0)
  settings = (options, predictor.stride, ("disc",))
  whole = grouping.group_one(maps, image, *settings)
  assert len(whole) > 3
  assert_equal(large.group_large(maps, image, *settings), whole)


def test_large_category_maps(joint, monkeypatch, tmp_path):
  monkeypatch.setattr(large, "REGION", 40)
  image = image_of(8, 100, 90)
  path = workdirs.make(tmp_path, ("semantic",))
  whole = Predictor.load(path)
  tiled = Predictor.load(path)
  maps = whole.maps(image)
  tiled.views = inference.Options(tile=64, tile_overlap=32)
  np.testing.assert_array_equal(
    tiled.group(maps, image).semantic, whole.group(maps, image).semantic
  )
  assert len(tiled(image)) == 0


def eager(path):
  """A predictor whose untrained network finds instances all the same."""
  predictor = Predictor.load(path)
  predictor.options = instances.Options(score_floor=0.0, min_extent=0.0)
  return predictor


def test_batches_equal_single_images(joint):
  predictor = eager(joint)
  sizes = [(64, 64), (50, 61), (64, 60), (90, 120), (64, 33), (40, 64)]
  images = [image_of(i, *size) for i, size in enumerate(sizes)]
  images += [images[0][..., 0]]  # gray
  together = predictor.predict_batch(images)
  for image, result in zip(images, together, strict=True):
    alone = predictor(image)
    assert result.semantic.shape == image.shape[:2]
    assert len(result) > 2
    np.testing.assert_array_equal(result.semantic, alone.semantic)
    np.testing.assert_array_equal(result.label_map, alone.label_map)
    np.testing.assert_allclose(result.scores, alone.scores, atol=1e-5)


def test_maps_and_group_are_the_two_halves_of_a_call(joint):
  predictor = eager(joint)
  image = image_of(3, 75, 90)
  maps = predictor.maps(image)
  assert maps.probs.shape == (19, 23, 5) and maps.boxes.shape == (19, 23, 4, 4)
  two_steps, one_step = predictor.group(maps, image), predictor(image)
  assert len(one_step) > 2
  np.testing.assert_array_equal(two_steps.label_map, one_step.label_map)
  np.testing.assert_allclose(two_steps.scores, one_step.scores, atol=1e-5)


def test_maps_of_another_image_are_refused():
  maps = inference.Maps(np.zeros((8, 9, 2), np.float32), None)
  predictor = Predictor(None, 8, ("disc",), has_boxes=False)
  with pytest.raises(ValueError, match=r"cover \(64, 72\) .* has \(64, 73\)"):
    predictor.group(maps, np.zeros((64, 73), np.uint8))


def test_separate_networks_and_a_joint_one(joint, tmp_path):
  image = image_of(5, 64, 70)
  semantic = workdirs.make(tmp_path / "s", ("semantic",), seed=1, steps=9)
  boxes = workdirs.make(tmp_path / "b", ("boxes",), seed=2)
  predictor = Predictor.load(semantic=semantic, localization=boxes)
  assert predictor.step == 7
  assert predictor.source == f"{semantic} at step 9 and {boxes} at step 7"
  maps = predictor.maps(image)
  np.testing.assert_array_equal(
    maps.probs, Predictor.load(semantic).maps(image).probs
  )
  from_joint = Predictor.load(semantic=joint, localization=boxes).maps(image)
  np.testing.assert_array_equal(from_joint.boxes, maps.boxes)
  assert np.abs(from_joint.probs - maps.probs).max() > 1e-3
  # One head alone: a category map without instances.
  alone = Predictor.load(semantic)
  assert predictor.has_boxes and not alone.has_boxes
  result = alone(image)
  assert len(result) == 0 and result.masks.shape == (0, 64, 70)
  assert result.label_map.max() == 0 and len(result.select([])) == 0
  # No label map, which would say that there is nothing.
  names = [path.name for path in result.save(tmp_path / "out", "a")]
  assert names == ["a_semantic.png", "a_overlay.png"]
  assert result.semantic.max() > 0 or (maps.probs.argmax(-1) == 0).all()
  with pytest.raises(ValueError, match="no network gives scores"):
    Predictor.load(boxes)


def test_a_box_network_without_boxes_is_refused(tmp_path):
  other = workdirs.make(tmp_path, ("semantic",))
  with pytest.raises(ValueError, match="is of a network without boxes"):
    Predictor.load(semantic=other, localization=workdirs.make(
      tmp_path / "second", ("semantic",)))  # fmt: skip
  alone = Predictor.load(other)
  assert Predictor.load(semantic=other, localization=other).step == alone.step


def test_networks_of_other_data_are_refused(joint, tmp_path):
  other = workdirs.make(tmp_path, ("boxes",), categories=("a", "b"))
  with pytest.raises(ValueError, match=r"categories is \('ellipse'"):
    Predictor.load(semantic=joint, localization=other)


def test_what_load_refuses(tmp_path):
  with pytest.raises(ValueError, match="needs either a path"):
    Predictor.load()
  with pytest.raises(ValueError, match="does not exist"):
    Predictor.load(tmp_path / "nothing")
  with pytest.raises(ValueError, match=r"config.json"):
    Predictor.load(tmp_path)


def test_thresholds_of_the_workdir_count(tmp_path):
  path = workdirs.make(tmp_path)
  assert Predictor.load(path).options.iou_threshold == 0.5
  files.write_json(
    path / "thresholds.json", {"instances": {"iou_threshold": 0.3}}
  )
  assert Predictor.load(path).options.iou_threshold == 0.3
  files.write_json(path / "thresholds.json", {"instances": {"iou": 1}})
  with pytest.raises(ValueError, match=r"unknown settings \['iou'\]"):
    Predictor.load(path)


@pytest.mark.parametrize("image", [
  np.zeros((5, 5, 3), np.float32), np.zeros((5, 5, 4), np.uint8),
  np.zeros((0, 5), np.uint8), np.zeros(5, np.uint8),
])  # fmt: skip
def test_what_is_no_image_is_refused(image):
  with pytest.raises(ValueError, match="expected uint8 of shape"):
    perfect()(image)


def test_truncation_is_told():
  options = instances.Options(max_instances=1)
  assert perfect(options=options)(scenes.scene(96, 128)).truncated


def result_of(layers, classes, scores=None):
  layers = np.asarray(layers, np.uint16)
  number = len(classes)
  return Result(
    np.zeros(layers.shape[1:], np.uint8),
    np.ones(layers.shape[1:], np.float16),
    layers,
    np.asarray(classes, np.int32),
    np.linspace(0.9, 0.5, number, dtype=np.float32),
    np.zeros((number, 4), np.float32),
    image=np.zeros((*layers.shape[1:], 3), np.uint8),
  )


def test_overlapping_masks_and_the_best_on_top():
  # Pixel (0, 1) belongs to instances 1 and 2, of different categories.
  result = result_of(
    [[[2, 2, 0], [0, 0, 3]], [[0, 1, 1], [0, 0, 0]]], [1, 2, 1]
  )
  np.testing.assert_array_equal(result.label_map, [[2, 1, 1], [0, 0, 3]])
  np.testing.assert_array_equal(
    result.masks,
    [
      [[0, 1, 1], [0, 0, 0]],
      [[1, 1, 0], [0, 0, 0]],
      [[0, 0, 0], [0, 0, 1]],
    ],
  )


def test_instances_count_from_the_end_too():
  result = result_of([[[1, 2, 2], [0, 0, 3]]], [1, 2, 1])
  np.testing.assert_array_equal(result.mask(-1), result.masks[-1])
  np.testing.assert_array_equal(result.crop(-2), result.crop(1))


def test_results_have_the_category_ids_of_the_json():
  result = result_of([[[1, 2, 2], [0, 0, 3]]], [1, 2, 1])
  assert [row["category_id"] for row in result.to_coco(0)] == [1, 2, 1]
  rows = result.to_coco(0, category_ids=(13, 90))
  assert [row["category_id"] for row in rows] == [13, 90, 13]


def test_run_lengths_are_pycocotools():
  rng = np.random.default_rng(0)
  for trial in range(200):
    height, width = rng.integers(1, 40, 2)
    mask = rng.random((height, width)) < rng.choice([0.1, 0.5, 0.95, 1.0])
    layers = mask[None].astype(np.uint16)
    result = result_of(layers, [3] if mask.any() else [])
    if not mask.any():
      assert result.to_coco(0) == []
      continue
    (row,) = result.to_coco(trial)
    expected = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    assert row["segmentation"]["counts"] == expected["counts"].decode()
    assert row["segmentation"]["size"] == [height, width]
    assert row["bbox"] == coco_mask.toBbox(expected).tolist()
    assert row["image_id"] == trial and row["category_id"] == 3
    json.dumps(row)


def test_compressing_long_runs():
  mask = np.zeros((3000, 2000), bool)
  mask[1:2999, 1500] = True
  crop = mask[1:2999, 1500:1501]
  counts = result_lib.run_lengths(crop, 1, 1500, mask.shape)
  expected = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
  assert result_lib.compress(counts) == expected["counts"].decode()


def test_save_writes_what_the_readers_expect(tmp_path):
  image = scenes.scene(96, 128)
  result = perfect()(image)
  paths = result.save(tmp_path, "a")
  assert [p.name for p in paths] == [
    "a_semantic.png", "a_instances.png", "a_overlay.png"
  ]  # fmt: skip
  assert sorted(p.name for p in tmp_path.iterdir()) == sorted(
    p.name for p in paths
  )
  with Image.open(paths[0]) as semantic:
    assert semantic.mode == "P"
    assert semantic.getpalette()[3:6] == [128, 0, 0]  # VOC's colour of 1
    np.testing.assert_array_equal(np.array(semantic), result.semantic)
  with Image.open(paths[1]) as labels:
    assert labels.mode == "I;16"
    np.testing.assert_array_equal(np.array(labels), result.label_map)
  with Image.open(paths[2]) as overlay:
    assert overlay.size == (128, 96) and overlay.mode == "RGB"


def test_a_result_without_an_image_has_no_overlay(tmp_path):
  result = dataclasses.replace(perfect()(scenes.scene(96, 128)), image=None)
  with pytest.raises(ValueError, match=r"pass overlay\(image\)"):
    result.overlay()
  assert len(result.save(tmp_path, "a")) == 2


def test_label_0_has_its_name_where_it_is_no_background(tmp_path):
  path = workdirs.make(tmp_path, ("semantic",), background="sky")
  predictor = Predictor.load(path)
  results = [
    predictor(image_of(0, 64, 64)),
    predictor.group(predictor.maps(image_of(0, 64, 64)), image_of(0, 64, 64)),
  ]
  assert [result.background for result in results] == ["sky", "sky"]
  results[0].semantic = np.zeros_like(results[0].semantic)
  assert np.ptp(results[0].overlay(), axis=-1).min() > 50  # has a colour


def test_compilation_is_said_once_a_shape(joint, caplog):
  predictor_lib._say_compiling.cache_clear()
  predictor = Predictor.load(joint)
  with caplog.at_level("INFO", "absl"):
    for size in ((64, 64), (60, 50), (64, 64)):
      predictor(image_of(0, *size))
    predictor.views = inference.Options(tile=64, tile_overlap=16)
    predictor(image_of(0, 150, 40))
    predictor(image_of(0, 150, 100))
  said = [m for m in caplog.messages if "compiling for an image" in m]
  assert [m.split(",")[0] for m in said] == [
    "compiling for an image of up to 64 x 64"
  ]


def test_more_instances_than_16_bits_hold(tmp_path):
  labels = np.arange(70_000, dtype=np.int32).reshape(1, 700, 100)
  result = result_of(np.zeros((1, 700, 100)), [1] * 69_999)
  result.layers = labels
  paths = result.save(tmp_path, "many")
  assert paths[1].name == "many_instances.tif"
  with Image.open(paths[1]) as image:
    np.testing.assert_array_equal(np.array(image), labels[0])


def test_large_overlays_are_reduced(tmp_path, monkeypatch):
  monkeypatch.setattr(result_lib, "_OVERLAY_SIDE", 50)
  result = perfect()(scenes.scene(96, 128))
  with Image.open(result.save(tmp_path, "a")[2]) as overlay:
    assert overlay.size == (43, 32)  # every third pixel
  with Image.open(tmp_path / "a_instances.png") as labels:
    assert labels.size == (128, 96)


def test_a_failed_save_leaves_nothing(tmp_path, monkeypatch):
  result = perfect()(scenes.scene(96, 128))

  def fail(path, kind):
    path.write_bytes(b"half")
    raise OSError("disk full")

  with pytest.raises(OSError, match="disk full"):
    result_lib._write(tmp_path / "a.png", fail, "PNG")
  assert list(tmp_path.iterdir()) == []
  assert len(result) == 2


def test_explain_draws_the_best_and_the_worst(joint, monkeypatch):
  titles, panel = [], visualize.panel

  def keep(pictures, names, **options):
    titles.extend(names)
    return panel(pictures, names, **options)

  monkeypatch.setattr(visualize, "panel", keep)
  predictor, image = eager(joint), image_of(3, 64, 64)
  scores = predictor(image).scores
  last, sure = len(scores) - 1, int((scores >= np.median(scores)).sum())
  assert last > 3 and sure > 1
  for number, min_score, drawn in (
    (last + 1, 0.0, range(last + 1)),
    (3, 0.0, (0, 1, last)),
    (1, 0.0, (0,)),
    (2, float(np.median(scores)), (0, sure - 1)),
  ):
    titles.clear()
    picture = predictor.explain(image, number, min_score)
    assert [int(title.split(" ")[0]) - 1 for title in titles] == [*drawn]
    assert picture.ndim == 3 and picture.dtype == np.uint8
  assert titles[0].startswith(f"1 of {sure}: ")
  empty = perfect(options=instances.Options(min_fill=2.0)).explain(image)
  assert empty.shape == image.shape


def test_reading_ahead_keeps_order_and_errors():
  assert list(read_ahead(lambda x: x * x, range(20), 3)) == [
    x * x for x in range(20)
  ]
  with pytest.raises(ZeroDivisionError):
    list(read_ahead(lambda x: 1 // x, [1, 0, 1], 2))


def test_select_keeps_some_instances(joint):
  result = eager(joint)(image_of(3, 64, 64))
  assert len(result) > 2
  keep = np.arange(len(result)) % 2 == 1
  some = result.select(keep)
  np.testing.assert_array_equal(some.masks, result.masks[keep])
  np.testing.assert_array_equal(some.scores, result.scores[keep])
  np.testing.assert_array_equal(some.boxes, result.boxes[keep])
  np.testing.assert_array_equal(
    some.evidence.num_votes, result.evidence.num_votes[keep]
  )
  for same in (np.flatnonzero(keep)[::-1], slice(1, None, 2)):
    np.testing.assert_array_equal(result.select(same).masks, some.masks)
  assert len(result.select([])) == 0
  with pytest.raises(IndexError):
    result.select(np.ones(len(result) + 1, bool))
  none = result.select(np.zeros(len(result), bool))
  assert len(none) == 0 and none.label_map.max() == 0 and none.to_coco(1) == []
  assert len(result) == len(keep) and result.label_map.max() == len(keep)


def test_an_instance_without_pixels_is_an_empty_run():
  rows = result_lib.run_lengths(np.zeros((2, 2), bool), 0, 0, (4, 4))
  assert rows.tolist() == [16]


def test_maps_and_prediction_agree_on_what_is_tiled(joint):
  predictor = Predictor.load(joint)
  calls = []
  inner = predictor.apply_fn

  def apply_fn(images, sizes):
    calls.append(images.shape[1:])
    return inner(images, sizes)

  predictor.apply_fn = apply_fn
  predictor.views = inference.Options(tile=64, tile_overlap=16, shifts=2)
  for side, tiled in ((63, False), (64, False), (65, True)):
    shapes = []
    for function in (predictor, predictor.maps):
      calls.clear()
      function(image_of(1, side, side))
      shapes.append(set(calls))
    assert shapes[0] == shapes[1]
    assert (shapes[0] == {(64, 64, 3)}) == tiled


def test_full_masks_without_boxes_need_no_room(tmp_path):
  predictor = Predictor.load(workdirs.make(tmp_path, ("semantic",)))
  predictor.options = instances.Options(masks="full")
  predictor.views = inference.Options(tile=64, tile_overlap=16)
  assert predictor(image_of(0, 100, 70)).semantic.shape == (100, 70)


def test_fragments_leave_room_for_instances():
  """Forty cells vote, surely, for boxes that are not theirs; nine agree."""
  probs = np.zeros((8, 8, 2), np.float32)
  boxes = np.zeros((8, 8, 1, 4), np.float32)
  for k in range(40):
    boxes[k // 8, k % 8, 0] = [k, 7 * k % 11, k + 3, 7 * k % 11 + 90]
  probs[:5, :, 1] = 0.9
  probs[5:, :3, 1], boxes[5:, :3] = 0.6, [20, 0, 32, 12]
  probs[..., 0] = 1 - probs[..., 1]
  options = instances.Options(num_masks=1, max_instances=2)
  image = np.zeros((32, 32, 3), np.uint8)
  maps = inference.Maps(probs, boxes)
  result = grouping.group_one(maps, image, options, 4, ("thing",))
  assert len(result) == 1 and not result.truncated
  np.testing.assert_array_equal(result.boxes, [[20, 0, 32, 12]])


def test_what_is_no_image_is_named():
  for wrong, words in (
    ("a.png", "is a str; expected an array"),
    (np.zeros((4, 4, 3), np.uint16), r"pictures\.stretch brings other values"),
  ):
    with pytest.raises(ValueError, match=words):
      check_image(wrong)
