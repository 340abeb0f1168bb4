import collections
import itertools
import json

import numpy as np
import pytest

from fcrn_jax import data
from fcrn_jax.data import pipeline, transforms
from tests.test_folder import make


class Numbered:
  """Image i is of the colour i, with one instance."""

  name, path = "numbered", None

  def __init__(self, number, broken=()):
    self.number, self.broken = number, set(broken)

  def __len__(self):
    return self.number

  def __getitem__(self, index):
    if index in self.broken:
      raise ValueError(f"image {index} is broken")
    instances = np.zeros((16, 16), np.int32)
    instances[4:12, 4:12] = 1
    return {
      "id": str(index),
      "image": np.full((16, 16, 3), index, np.uint8),
      "semantic": instances.astype(np.uint8),
      "instances": instances,
      "classes": np.ones(1, np.uint8),
    }


OPTIONS = pipeline.PipelineOptions(crop=(16, 16), stride=4, batch_size=2)
SHAPES = pipeline.PipelineOptions(
  crop=(64, 64), scale=(0.7, 1.3), stride=8, batch_size=3, noise=0.05
)


def take(iterator, number):
  return list(itertools.islice(iterator, number))


def numbers(batches):
  return [int(k) for batch in batches for k in batch["image"][:, 8, 8, 0]]


def assert_equal(a, b):
  assert len(a) == len(b)
  for one, other in zip(a, b, strict=True):
    assert one.keys() == other.keys()
    for name in one:
      np.testing.assert_array_equal(one[name], other[name])


def shapes():
  return data.load("shapes", options={"num_images": 10})


def test_a_batch():
  batch = next(pipeline.train_batches(shapes(), SHAPES, seed=0))
  found = {k: (v.shape, v.dtype.name) for k, v in batch.items()}
  assert found == {
    "image": ((3, 64, 64, 3), "uint8"),
    "semantic": ((3, 8, 8), "uint8"),
    "boxes": ((3, 8, 8, 4), "float32"),
    "classes": ((3, 8, 8), "uint8"),
    "valid": ((3, 8, 8), "bool"),
    "weights": ((3, 8, 8), "float32"),
  }
  valid = batch["valid"]
  np.testing.assert_array_equal(
    batch["semantic"][valid], batch["classes"][valid]
  )
  for weights, mask in zip(batch["weights"], valid, strict=True):
    np.testing.assert_allclose(weights.sum(), mask.sum(), rtol=1e-5)


def test_semantic_only_data_have_no_targets(tmp_path):
  root = make(tmp_path)
  for file in (root / "SegmentationObject").iterdir():
    file.unlink()
  (root / "SegmentationObject").rmdir()
  dataset = data.load("folder", "train", root)
  batch = next(pipeline.train_batches(dataset, OPTIONS, seed=0))
  assert set(batch) == {"image", "semantic"}


def test_the_benchmark_times_categories_alone(tmp_path):
  from experiments.benchmarks import pipeline as benchmark

  root = make(tmp_path)
  (root / "SegmentationObject").rename(tmp_path / "elsewhere")
  dataset = data.load("folder", "train", root)
  rows = benchmark._stages(dataset, OPTIONS, seconds=0.01)
  assert [row["stage"] for row in rows] == ["decode", "augment", "all"]


def test_the_seed_decides():
  one, same, other = (
    take(pipeline.train_batches(shapes(), SHAPES, seed), 4)
    for seed in (0, 0, 1)
  )
  assert_equal(one, same)
  assert any(
    (a["image"] != b["image"]).any() for a, b in zip(one, other, strict=True)
  )


def test_visits_differ():
  # The same image comes with other random numbers in the next epoch.
  options = SHAPES._replace(batch_size=1)
  dataset = data.load("shapes", options={"num_images": 1})
  a, b = take(pipeline.train_batches(dataset, options, seed=0), 2)
  assert (a["image"] != b["image"]).any()


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_an_epoch_sees_each_image_once_whatever_the_processes(processes):
  dataset = Numbered(24)
  streams = [
    pipeline.train_batches(dataset, OPTIONS, 7, k, processes)
    for k in range(processes)
  ]
  steps = 24 // (2 * processes)
  epochs = []
  for _ in range(2):
    seen = [numbers(take(stream, steps)) for stream in streams]
    order = list(itertools.chain(*seen))
    assert collections.Counter(order) == dict.fromkeys(range(24), 1)
    epochs.append(order)
  assert epochs[0] != epochs[1]
  assert epochs[0] != sorted(epochs[0])


def test_a_global_batch_is_the_same_set_on_any_number_of_processes():
  # 22 images in global batches of 4: epochs end within a batch.
  dataset = Numbered(22)
  alone = pipeline.train_batches(dataset, OPTIONS._replace(batch_size=4), 3)
  pair = [pipeline.train_batches(dataset, OPTIONS, 3, k, 2) for k in range(2)]
  for _ in range(9):
    together = numbers([next(pair[0]), next(pair[1])])
    assert sorted(numbers([next(alone)])) == sorted(together)


def test_resume_is_exact_across_settings_of_workers():
  # Threads of this process or two workers: one stream, one state.
  plain = pipeline.train_batches(shapes(), SHAPES, seed=5)
  take(plain, 3)
  state = json.loads(json.dumps(plain.get_state()))
  expected = take(plain, 4)
  for workers in (0, 2):
    options = SHAPES._replace(num_workers=workers)
    other = pipeline.train_batches(shapes(), options, seed=5)
    other.set_state(state)
    assert_equal(expected[:2], take(other, 2))
    middle = other.get_state()
    assert_equal(expected[2:], take(other, 2))
    # Back, after batches have been prepared ahead.
    other.set_state(middle)
    assert_equal(expected[2:], take(other, 2))
    other.close()


def test_state_fits_another_number_of_processes():
  dataset = Numbered(20)
  alone = pipeline.train_batches(dataset, OPTIONS._replace(batch_size=4), 3)
  take(alone, 3)
  pair = [pipeline.train_batches(dataset, OPTIONS, 3, k, 2) for k in range(2)]
  for stream in pair:
    stream.set_state(alone.get_state())
  together = numbers([next(stream) for stream in pair])
  assert sorted(numbers([next(alone)])) == sorted(together)


def test_cached_examples_give_the_same_batches():
  plain = pipeline.train_batches(shapes(), SHAPES, seed=2)
  cached = pipeline.train_batches(shapes(), SHAPES._replace(cache=True), seed=2)
  assert_equal(take(plain, 8), take(cached, 8))


@pytest.mark.parametrize("cache", [False, True])
def test_cached_images_are_read_once(cache):
  reads = []

  class Counted(Numbered):
    def __getitem__(self, index):
      reads.append(index)
      return super().__getitem__(index)

  example = pipeline.TrainExample(Counted(3), OPTIONS._replace(cache=cache))
  for index in (0, 2, 0, 0):
    example(index, np.random.default_rng(0))
  assert reads == ([0, 2] if cache else [0, 2, 0, 0])


def test_after_a_broken_last_image_comes_the_first():
  options = OPTIONS._replace(on_error="skip")
  example = pipeline.TrainExample(Numbered(6, broken=[4, 5]), options)
  assert (example(4, np.random.default_rng(0))["image"] == 0).all()


def test_intensities_are_normalised_and_bends_made_where_that_is_asked():
  example = shapes()[0]
  options = pipeline.PipelineOptions(crop=(64, 64), flip=False)
  prepared = pipeline.prepare(example, options)
  assert prepared["image"] is example["image"]
  normal = pipeline.prepare(example, options._replace(normalize=True))["image"]
  np.testing.assert_array_equal(
    normal, transforms.normalize_intensity(example["image"])
  )
  assert (normal != example["image"]).any()
  rng = np.random.default_rng(0)
  plain = pipeline.augment(prepared, options, rng)["image"]
  for change in ({"elastic": 2.0}, {"rotation": 20.0}):
    rng = np.random.default_rng(0)
    other = pipeline.augment(prepared, options._replace(**change), rng)
    assert (other["image"] != plain).any()


def test_a_broken_image_is_an_error_or_skipped(caplog):
  dataset = Numbered(6, broken=[2, 3])
  options = OPTIONS._replace(batch_size=6)
  stream = pipeline.train_batches(dataset, options, seed=0)
  with pytest.raises(ValueError, match=r"image [23] is broken"):
    next(stream)
  skipping = options._replace(on_error="skip")
  with caplog.at_level("WARNING"):
    batches = take(pipeline.train_batches(dataset, skipping, seed=0), 2)
  # 2 and 3 are replaced by the next sound one, 4.
  assert sorted(numbers(batches[:1])) == [0, 1, 4, 4, 4, 5]
  assert sorted(numbers(batches[1:])) == [0, 1, 4, 4, 4, 5]
  messages = [r.message for r in caplog.records if "skipped image" in r.message]
  assert len(messages) == 2
  assert "skipped image 2" in messages[1]
  everything = Numbered(2, broken=[0, 1])
  with pytest.raises(ValueError, match="no image of"):
    next(pipeline.train_batches(everything, skipping, seed=0))


def test_a_broken_image_in_a_worker_names_itself(tmp_path):
  root = make(tmp_path, number=2)
  (root / "JPEGImages" / "im1.jpg").write_bytes(b"\xff\xd8\xff")
  dataset = data.load("folder", "train", root)
  options = OPTIONS._replace(num_workers=1)
  stream = pipeline.train_batches(dataset, options, seed=0)
  with pytest.raises(ValueError, match=r"im1\.jpg cannot be read"):
    next(stream)
  stream.close()


def test_wrong_options():
  with pytest.raises(ValueError, match="no images"):
    pipeline.train_batches(Numbered(0), OPTIONS, 0)
  with pytest.raises(ValueError, match="on_error is 'ignore'"):
    pipeline.train_batches(Numbered(2), OPTIONS._replace(on_error="ignore"), 0)
  for name, value in (
    ("scale", (1.3, 0.7)), ("scale", (0.0, 1.0)), ("scale", (1.0,)),
    ("input_scale", 0.0), ("aspect", -0.1), ("noise", -0.1), ("rotation", -5.0),
    ("invert", 1.5), ("box_weighting", "volume"), ("label_stride", 3),
    ("label_stride", 8),
  ):  # fmt: skip
    with pytest.raises(ValueError, match=f"{name} is "):
      pipeline.train_batches(Numbered(2), OPTIONS._replace(**{name: value}), 0)


def test_nuclei_boxes_are_those_of_the_nuclei(real_data):
  dataset = data.load("folder", "val_fluo", real_data / "nuclei")
  options = pipeline.PipelineOptions(
    crop=(128, 128), scale=(0.5, 1.5), stride=2, rot90=True, normalize=True,
    rotation=20.0, elastic=2.0, gamma=0.4, batch_size=4,
  )  # fmt: skip
  batch = next(pipeline.train_batches(dataset, options, seed=0))
  valid = batch["valid"]
  assert valid.any()
  # A nucleus's cells lie in its box, so no offset is beyond half its size.
  boxes = batch["boxes"][valid]
  assert (np.abs(boxes[:, :2]) <= boxes[:, 2:] / 2 + 1).all()
  assert (boxes[:, 2:] > 0).all()


class Crowded(Numbered):
  """Image i has 1 + 4 i instances."""

  name, split, has_instances = "crowded", "train", True

  def __getitem__(self, index):
    classes = np.ones(1 + 4 * index, np.uint8)
    return {**super().__getitem__(index), "classes": classes}


def test_visits_follow_the_number_of_instances():
  # 1, 5, 9, 13 and 17 instances are 0.2, 0.8, 1.5, 2.2 and 2.8 times 6; of the
  # broken image none are known.
  expected = [0, 1, 2, 2, 3, 3, 4, 4, 4]
  assert pipeline.visits(Crowded(5), 6).tolist() == expected
  broken = Crowded(5, broken=[3])
  assert pipeline.visits(broken, 6).tolist() == [0, 1, 2, 2, 3, 4, 4, 4]
  broken.has_instances = False
  with pytest.raises(ValueError, match="no instances, by which"):
    pipeline.visits(broken, 6)
  with pytest.raises(ValueError, match="instances_per_visit is -1"):
    pipeline.train_batches(
      Crowded(5), OPTIONS._replace(instances_per_visit=-1), seed=0
    )


@pytest.mark.parametrize("process_count", [1, 2])
def test_an_epoch_has_all_visits(process_count):
  """Nine, as above: 18 examples are two epochs, whoever takes them."""
  options = OPTIONS._replace(instances_per_visit=6, batch_size=3)
  seen = collections.Counter()
  for index in range(process_count):
    batches = pipeline.train_batches(
      Crowded(5), options, 0, process_index=index, process_count=process_count
    )
    seen.update(numbers(take(batches, 6 // process_count)))
  assert seen == {0: 2, 1: 2, 2: 4, 3: 4, 4: 6}
