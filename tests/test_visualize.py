"""Pictures by their pixels; how they look was judged by eye."""

import json
import pathlib
import subprocess
import sys
import types

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from fcrn_jax import boxes, visualize
from fcrn_jax.visualize import drawing

LABELS = np.zeros((12, 16), np.int32)
LABELS[2:10, 1:7] = 1
LABELS[2:10, 7:14] = 2  # touches the first
GRAY = np.full((12, 16), 100, np.uint8)
RGB = np.repeat(GRAY[..., None], 3, axis=2)


def result_of(labels, classes=(1, 2)):
  return types.SimpleNamespace(
    label_map=labels,
    classes=np.array(classes, int),
    scores=np.linspace(0.9, 0.5, len(classes)),
    categories=("cat", "dog"),
    background="background",
    semantic=np.concatenate([[0], classes]).astype(np.uint8)[labels],
  )


def is_color(picture, color):
  return (picture == np.array(color)).all(axis=-1)


def test_palette_is_that_of_voc():
  palette = visualize.palette()
  assert palette.shape == (256, 3)
  expected = {
    0: (0, 0, 0),
    1: (128, 0, 0),
    2: (0, 128, 0),
    15: (192, 128, 128),
    20: (0, 64, 128),
    255: (224, 224, 192),
  }
  for index, color in expected.items():
    assert tuple(palette[index]) == color


def test_palette_equals_that_of_the_voc_files(real_data):
  path = next((real_data / "voc2012_sample").rglob("SegmentationClass/*.png"))
  palette = np.reshape(Image.open(path).getpalette(), (-1, 3))
  np.testing.assert_array_equal(visualize.palette()[: len(palette)], palette)


@pytest.mark.parametrize("image", [GRAY, RGB])
@pytest.mark.parametrize("scale", [1, 5])
def test_overlay_has_the_image_size_and_leaves_the_background(image, scale):
  before = image.copy()
  picture = visualize.overlay(image, result_of(LABELS), scale)
  assert picture.shape == (12 * scale, 16 * scale, 3)
  inside = LABELS.repeat(scale, 0).repeat(scale, 1) > 0
  # At this size no name has room, so nothing else is touched.
  assert (picture[~inside] == 100).all()
  assert (picture[inside] != 100).any(axis=-1).all()
  np.testing.assert_array_equal(image, before)


def test_instances_differ_in_colour_and_have_edges():
  picture = visualize.instances(RGB, LABELS)
  first, second = picture[5, 3], picture[5, 10]
  assert np.abs(first.astype(int) - second).max() > 40
  # The edge runs along the outline and between the two that touch.
  edge = drawing.edges(LABELS, 1)
  expected = LABELS > 0
  expected[3:9, 2:6] = expected[3:9, 8:13] = False
  np.testing.assert_array_equal(edge, expected)
  assert not np.array_equal(picture[5, 1], first)


def test_an_edge_is_not_drawn_along_the_border_of_the_image():
  assert not drawing.edges(np.ones((6, 6), np.int32), 2).any()


def test_masks_are_drawn_as_label_maps_the_first_on_top():
  masks = np.zeros((2, 12, 16), bool)
  masks[0, 2:10, 1:7] = True
  masks[1, 2:10, 4:14] = True  # the first hides a part of it
  np.testing.assert_array_equal(
    visualize.instances(RGB, masks), visualize.instances(RGB, LABELS)
  )


def test_hundreds_of_colours_differ():
  colors = drawing.instance_colors(400)
  assert colors.shape == (401, 3) and tuple(colors[0]) == (0, 0, 0)
  assert len({tuple(c) for c in colors.tolist()}) > 380
  assert colors[1:].max(axis=1).min() > 150


def test_names_are_written_where_there_is_room():
  labels = np.zeros((300, 300), np.int32)
  labels[50:250, 50:250] = 1
  image = np.zeros((300, 300), np.uint8)
  plain = visualize.instances(image, labels)
  one = np.array([1])
  named = visualize.instances(image, labels, one, one * 0.5, ("cat", "dog"))
  assert (named != plain).any()
  # Scores alone where there is but one category, nothing on a speck.
  scored = visualize.instances(image, labels, one, one * 0.5, ("cat",))
  assert (scored != plain).any() and (scored != named).any()
  labels[:] = 0
  labels[5:9, 5:9] = 1
  np.testing.assert_array_equal(
    visualize.instances(image, labels, one, one * 0.5, ("cat", "dog")),
    visualize.instances(image, labels),
  )


def test_a_result_without_instances_shows_its_categories():
  result = result_of(np.zeros_like(LABELS), ())
  result.semantic = np.full(LABELS.shape, 2, np.uint8)
  color = drawing.category_colors()[2].astype(int)
  picture = visualize.overlay(RGB, result).reshape(-1, 3)
  assert len(np.unique(picture, axis=0)) == 1
  assert picture[0].argmax() == color.argmax()


def test_categories_have_a_legend_of_what_is_there():
  image = np.full((200, 300), 100, np.uint8)
  semantic = np.zeros((200, 300), np.uint8)
  semantic[:, 150:] = 2
  semantic[:100, 200:] = 255
  names = ("background", "cat", "dog")
  plain = visualize.categories(image, semantic)
  named = visualize.categories(image, semantic, names=names)
  changed = np.argwhere((named != plain).any(axis=-1))
  top, right = changed[:, 0].min(), changed[:, 1].max()
  assert top > 150 and right < 150
  legend, colors = named[top:, :right], drawing.category_colors()
  assert is_color(legend, colors[2]).any()
  assert not is_color(legend, colors[1]).any()  # no cat is there
  assert (named[50, 250] > 150).all()  # void, which has no entry
  # Label 0 is dim where it is the background, a category else.
  assert np.ptp(named[50, 50]) == 0
  street = visualize.categories(image, semantic, names=("road", *names[1:]))
  assert np.ptp(street[50, 50]) > 50
  assert is_color(street[100:, :100], colors[0]).any()
  # No legend where it would hide half of the picture.
  long = ("background", "cat", "a dog with a name that is far too long for it")
  np.testing.assert_array_equal(
    visualize.categories(image, semantic, names=long), plain
  )


def test_colours_of_sixty_categories_can_be_told_apart():
  colors = drawing.category_colors()[:60].astype(int)
  apart = np.abs(colors[:, None] - colors).max(axis=-1)
  assert apart[~np.eye(60, dtype=bool)].min() >= 32
  assert (np.ptp(colors, axis=1) > 30).all()  # none is gray


def test_box_votes_show_direction_and_meet_at_the_centre():
  # One box of 4 ... 36 in both directions, seen by cells of stride 4.
  votes = np.broadcast_to(np.float32([4, 4, 36, 36]), (10, 10, 4))
  candidates = np.zeros((10, 10), bool)
  candidates[1:9, 1:9] = True
  image = np.full((40, 40), 200, np.uint8)
  picture = visualize.box_votes(image, votes, candidates, 4, 8)
  assert picture.shape == (320, 320, 3)
  # Outside is dark and gray, the centre is white with votes.
  assert tuple(picture[5, 5]) == (90, 90, 90)
  assert (picture[160, 160] > 240).all()
  # Opposite sides have opposite hues: what is strong here is weak there.
  left, right = picture[130, 45].astype(int), picture[190, 275].astype(int)
  assert np.abs(left - right).max() > 100
  # The wheel in the corner: red to the right, cyan to the left.
  assert picture[302, 314].argmax() == 0 and picture[302, 290].argmin() == 0


def test_boxes_that_are_no_numbers_are_not_drawn():
  votes = np.full((10, 10, 4), np.nan, np.float32)
  votes[0, 0] = [0, 0, np.inf, 1e30]
  votes[5, 5] = [4, 4, 36, 36]
  image = np.full((40, 40), 200, np.uint8)
  picture = visualize.box_votes(image, votes, np.ones((10, 10), bool), 4, 8)
  assert tuple(picture[5, 5]) == tuple(picture[300, 5]) == (90, 90, 90)
  assert tuple(picture[5 * 32 + 4, 5 * 32 + 30]) != (90, 90, 90)
  mask = np.zeros((40, 40), bool)
  mask[10:20, 10:20] = True
  seed = np.float32([15, 15])
  close = visualize.explain(image, mask, seed, votes[:1, 1], seed[None])
  assert 300 < max(close.shape[:2]) < 700


def test_errors_of_a_category_map():
  truth = np.uint8([[0, 1, 2, 255] * 4] * 12)
  found = np.uint8([[0, 2, 2, 1] * 4] * 12)
  picture = visualize.category_errors(RGB, found, truth)
  wrong = picture[..., 0] > picture[..., 2].astype(int) + 50
  np.testing.assert_array_equal(wrong, truth == 1)
  hatched = is_color(picture, (150, 150, 150))
  assert hatched.any() and (truth[hatched] == 255).all()


def test_hard_pixels_glow_and_void_is_hatched():
  kept = np.zeros((3, 4), bool)
  kept[1, 2] = True
  valid = np.ones((3, 4), bool)
  valid[2] = False
  picture = visualize.hard_pixels(RGB, kept, valid, stride=4, scale=4)
  assert picture.shape == (48, 64, 3)
  assert picture[24, 40, 0] > 150  # the middle of cell (1, 2)
  assert tuple(picture[8, 8]) == tuple(picture[24, 8])  # dim elsewhere
  assert is_color(picture, (150, 150, 150))[32:].any()
  assert not is_color(picture, (150, 150, 150))[:32].any()


def test_errors_are_coloured_by_what_they_are():
  truth = LABELS
  found = np.where(LABELS == 1, 1, 0)
  found[0:2, 14:16] = 2
  picture = visualize.errors(RGB, found, truth)
  right = is_color(picture, visualize.FOUND)
  wrong = is_color(picture, visualize.WRONG)
  missed = is_color(picture, visualize.MISSED)
  assert right.any() and (LABELS[right] == 1).all()
  assert wrong.sum() == 3 and wrong[0:2, 14:16].sum() == 3  # a corner is inside
  assert missed.any() and (LABELS[missed] == 2).all()
  # What spills into void is not held against it.
  wide = np.where(LABELS == 1, 1, 0)
  wide[:, 14:16] = wide[10:] = wide[:2] = 1
  void = (LABELS == 0) & (wide > 0)
  assert is_color(visualize.errors(RGB, wide, truth), visualize.WRONG).any()
  picture = visualize.errors(RGB, wide, truth, void)
  assert not is_color(picture, visualize.WRONG).any()
  # At a higher threshold a half-found instance counts as wrong.
  half = np.where(np.arange(16) < 5, found, 0)
  assert is_color(visualize.errors(RGB, half, truth), visualize.FOUND).any()
  strict = visualize.errors(RGB, half, truth, threshold=0.8)
  assert not is_color(strict, visualize.FOUND).any()
  # The right place and another category is a mistake.
  classes = np.array([2, 1]), np.array([1, 2])
  other = visualize.errors(RGB, found, truth, classes=classes)
  assert not is_color(other, visualize.FOUND).any()
  same = visualize.errors(RGB, found, truth, classes=(classes[1],) * 2)
  np.testing.assert_array_equal(same, visualize.errors(RGB, found, truth))


def test_explain_is_a_close_up_with_the_seed():
  image = np.full((200, 300), 80, np.uint8)
  mask = np.zeros((200, 300), bool)
  mask[100:120, 200:230] = True
  points = boxes.cell_points(50, 75, 4, np)
  inside = mask[2::4, 2::4]
  box = np.tile(np.float32([100, 200, 120, 230]), (inside.sum(), 1))
  picture = visualize.explain(
    image, mask, np.float32([104, 206]), box, points[inside]
  )
  # 30 pixels wide with a margin, brought to about 480.
  assert 300 < max(picture.shape[:2]) < 700
  assert is_color(picture, visualize.WRONG).any()
  # At the corner of the image, with a mask of no pixel: still a picture.
  empty = visualize.explain(
    image, mask & False, np.float32([0.5, 0.5]), box[:1] * 0, points[inside][:1]
  )
  assert empty.ndim == 3 and min(empty.shape[:2]) > 0


def test_panel_sets_pictures_under_titles():
  red = np.zeros((20, 30, 3), np.uint8) + np.uint8([255, 0, 0])
  blue = np.zeros((10, 30, 3), np.uint8) + np.uint8([0, 0, 255])
  sheet = visualize.panel([red, blue, red], ["one", "two", "three"], columns=2)
  gap, head = 11, 22
  assert sheet.shape == (2 * (20 + head) + gap, 2 * (30 + gap) + gap, 3)
  np.testing.assert_array_equal(sheet[head : head + 20, gap : gap + 30], red)
  np.testing.assert_array_equal(
    sheet[head : head + 10, 2 * gap + 30 : 2 * gap + 60], blue
  )
  assert (sheet[:head] < 128).any()  # the titles
  wide = visualize.panel([red], ["a title wider than its picture"])
  assert (wide[:head, -gap:] > 250).all()  # and yet it is not cut
  with pytest.raises(ValueError, match="1 pictures and 2 titles"):
    visualize.panel([red], ["one", "two"])


def test_sample_shows_what_is_given():
  result = result_of(LABELS)
  example = {"semantic": result.semantic, "instances": LABELS}
  example["classes"] = np.array([1, 2], np.uint8)
  maps = types.SimpleNamespace(
    probs=np.random.default_rng(0).random((3, 4, 3)).astype(np.float32),
    boxes=np.full((3, 4, 2, 4), 5, np.float32),
  )
  full = visualize.sample(RGB, result, example, maps, 4)
  bare = visualize.sample(RGB, result)
  semantic_only = visualize.sample(
    RGB,
    result,
    {"semantic": result.semantic},
    types.SimpleNamespace(probs=maps.probs, boxes=None),
  )
  # Six tiles in two rows against three in one.
  assert full.shape[1] == bare.shape[1]
  assert full.shape[0] > 1.8 * bare.shape[0]
  # Image, truth, category map and its errors, two by two.
  assert semantic_only.shape[0] == full.shape[0]
  assert 1.4 < bare.shape[1] / semantic_only.shape[1] < 1.6


def test_zoom_enlarges_small_images_only():
  assert [visualize.zoom((n, n)) for n in (48, 96, 480, 2000)] == [10, 5, 1, 1]


def test_save_writes_a_whole_file_or_none(tmp_path):
  visualize.save(tmp_path / "a.png", RGB)
  np.testing.assert_array_equal(np.array(Image.open(tmp_path / "a.png")), RGB)
  assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_curves_skip_nulls_and_a_line_cut_short(tmp_path):
  rows = [
    {"step": 10, "loss": 2.0, "box_loss": 0.5, "lr": 0.1},
    {"step": 20, "loss": 1.0, "box_loss": None, "lr": 0.05},
    {"step": 20, "val_mean_iou": 0.5, "val_ap_r_0.7": None},
  ]
  path = tmp_path / "metrics.jsonl"
  path.write_text("\n".join(map(json.dumps, rows)) + '\n{"step": 3')
  visualize.save_curves(path, tmp_path / "curves.png")
  # Three plots in a row: loss, validation, learning rate.
  width, height = Image.open(tmp_path / "curves.png").size
  assert width > 4 * height
  path.write_text("")
  visualize.save_curves(path, tmp_path / "curves.png")
  assert sorted(p.name for p in tmp_path.iterdir()) == [
    "curves.png",
    "metrics.jsonl",
  ]


def drawn_curves(rows, tmp_path, monkeypatch, labels=()):
  """Legend's names, or one line's, by title of what save_curves draws."""
  figures = []
  monkeypatch.setattr(Figure, "savefig", lambda f, *a, **k: (
    figures.append(f), pathlib.Path(a[0]).touch()))  # fmt: skip
  path = tmp_path / "metrics.jsonl"
  path.write_text("\n".join(map(json.dumps, rows)))
  visualize.save_curves(path, tmp_path / "curves.png", labels)
  return {
    axes.get_title("left"): [line.get_label() for line in axes.lines]
    for axes in figures[0].axes
  }


def test_curves_are_few_and_named(tmp_path, monkeypatch):
  validation = {
    f"val_{before}{name}_0.{k}": 0.5
    for before in ("", "components_")
    for name in ("matching", "matching_by_image", "touching_recall")
    for k in (5, 55, 6, 65, 7, 75)
  }
  shares = {f"semantic_share_{k}": 0.01 * k for k in range(21)}
  ious = {f"val_iou_name{k}": 0.04 * k for k in range(21)}
  rows = [
    {"step": 10, "loss": 2.0, "box_share_1": 1.0} | shares,
    {"step": 10, "val_mean_iou": 0.1} | validation | ious,
  ]
  labels = [f"name{k}" for k in range(20)] + ["a very long category name"]
  assert drawn_curves(rows, tmp_path, monkeypatch, labels) == {
    "loss": ["loss"],
    "validation": [
      "mean_iou", "matching_0.5", "matching_0.7", "touching_recall_0.5"
    ],
    "validation: IoU, the 8 lowest of 21": [f"name{k}" for k in range(8)],
    "share of the hard pixels, the 8 largest of 21": [
      *(f"name{k}" for k in range(13, 20)), "a very long categ..."
    ],
  }  # fmt: skip


def test_matplotlib_is_imported_for_curves_alone():
  code = (
    "import sys, fcrn_jax.visualize\n"
    "assert 'matplotlib' not in sys.modules and 'jax' not in sys.modules"
  )
  root = pathlib.Path(__file__).parent.parent
  subprocess.run([sys.executable, "-c", code], check=True, cwd=root)
