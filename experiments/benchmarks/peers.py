"""What people would use instead, trained and scored on the same lists.

  python -m experiments.benchmark --what=peers \
      --set=peers=stardist+maskrcnn,data=DIR,train=train_fluo,val=val_fluo,\
minutes=45,workdirs=runs/nuclei
  python -m experiments.benchmark --what=peers \
      --set=peers=fcn+deeplab,data=CAMVID,minutes=60,workdirs=runs/camvid

Every peer trains from random weights for `minutes` by its makers' published
recipe, on its own choice of thresholds, made on a tenth of the training
images. Accuracy as of experiments.evaluate; time of a second call on each
image; `images` of the val list, default all. `workdirs` adds networks of ours,
joined by "+", as they are; with tta=0 in one view instead of the config's.

stardist: its notebook for 2D (32 rays, grid 2, flips, turns, intensity),
needs `pip install stardist tensorflow`. maskrcnn: torchvision's
maskrcnn_resnet50_fpn_v2. fcn, deeplab: torchvision's ResNet-50 ones with
auxiliary loss and the reference script's optimizer, scales and crops.
"""

import functools
import pathlib
import resource
import tempfile
import time
from collections.abc import Callable, Iterator

import numpy as np
from tqdm import tqdm

from fcrn_jax import checkpoint, data, files, metrics
from fcrn_jax.data import pipeline
from fcrn_jax.types import IGNORE

SCORES = (
  "mean_iou", "matching_0.5", "matching_0.7", "touching_recall_0.5",
  "touching_recall_0.7", "ap_0.5",
)  # fmt: skip

OPTIONS = {
  "peers": "", "data": None, "train": "train", "val": "val", "minutes": "45",
  "workdirs": "", "tta": "1", "images": "0",
}  # fmt: skip


def run(options: dict[str, str]) -> list[dict]:
  """One row per network."""
  peers = [name for name in options["peers"].split("+") if name]
  if unknown := set(peers) - set(PEERS):
    raise ValueError(f"no peers {sorted(unknown)}; expected {list(PEERS)}.")
  val = data.load("folder", options["val"], options["data"])
  train = data.load("folder", options["train"], options["data"])
  number = min(int(options["images"]) or len(val), len(val))
  val = [val[i] for i in range(number)]
  minutes = float(options["minutes"])
  rows = []
  for name in peers:
    start = time.perf_counter()
    try:
      predict, steps = PEERS[name](train, minutes)
    except ImportError as error:
      print(f"{name} is left out: {error}")
      continue
    spent = (time.perf_counter() - start) / 60
    row = _score(predict, val, len(train.categories) + 1)
    rows.append({"network": name, "steps": steps, "minutes": spent, **row})
  for workdir in filter(None, options["workdirs"].split("+")):
    from fcrn_jax.predictor import Predictor

    predictor = Predictor.load(workdir)
    name = f"fcrn_jax {pathlib.Path(workdir).name}"
    if options["tta"] == "0":
      name += ", one view"
      predictor.views = predictor.views.one_view()

    def predict(image, predictor=predictor):
      result = predictor(image)
      return result.semantic, result.label_map, result.classes, result.scores

    row = _score(predict, val, len(train.categories) + 1)
    rows.append({
      "network": name,
      "steps": predictor.step, "minutes": _minutes(workdir), **row,
    })  # fmt: skip
  return rows


def _minutes(workdir: str) -> float:
  """How long the steps of a training took, by its metrics."""
  batch = checkpoint.read_config(workdir).batch_size
  seconds, last = 0.0, 0
  for values in files.read_lines(pathlib.Path(workdir) / "metrics.jsonl"):
    if "images_per_second" in values:
      seconds += (values["step"] - last) * batch / values["images_per_second"]
      last = values["step"]
  return seconds / 60


def _score(predict: Callable, examples: list, num_classes: int) -> dict:
  """Scores of predict(image) -> category map, label map, classes, scores.

  The category map or the other three may be None. peak_mib is the process's so
  far, training included: the first network's alone.
  """
  matrix = np.zeros((num_classes, num_classes), np.int64)
  evaluator, seconds = metrics.InstanceEvaluator(num_classes), 0.0
  for example in tqdm(examples, desc="score", unit="image"):
    predict(example["image"])  # compiles, fills caches
    start = time.perf_counter()
    semantic, labels, classes, scores = predict(example["image"])
    seconds += time.perf_counter() - start
    truth = example["semantic"]
    if semantic is not None:
      matrix += metrics.confusion(truth, semantic, num_classes)
    if labels is not None and "instances" in example:
      evaluator.add(
        labels, classes, scores, example["instances"], example["classes"],
        truth == IGNORE if (truth == IGNORE).any() else None,
      )  # fmt: skip
  values = {}
  if matrix.any():
    values |= metrics.semantic_scores(matrix)
  if evaluator.images:
    values |= evaluator.result("coco") | evaluator.result("matching")
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
  row = {name: float(values[name]) for name in SCORES if name in values}
  return row | {"ms_per_image": 1e3 * seconds / len(examples), "peak_mib": peak}


def _split(dataset) -> tuple[list[int], list[int]]:
  """Nine tenths to train on and one to choose on."""
  order = np.random.default_rng(0).permutation(len(dataset)).tolist()
  held = max(1, len(order) // 10)
  return order[held:], order[:held]


def _augment(image, labels, rng):
  turns, flip = rng.integers(4), rng.integers(2)
  image, labels = np.rot90(image, turns), np.rot90(labels, turns)
  if flip:
    image, labels = image[::-1], labels[::-1]
  image = image * rng.uniform(0.6, 2) + rng.uniform(-0.2, 0.2)
  noise = 0.02 * rng.uniform() * rng.normal(size=image.shape)
  return image + noise, labels


def stardist(train, minutes: float) -> tuple[Callable, int]:
  """Trains StarDist; predict and the number of steps."""
  import keras
  from csbdeep.utils import normalize
  from stardist import fill_label_holes
  from stardist.models import Config2D, StarDist2D

  def gray(image):
    image = image if image.ndim == 2 else image.mean(axis=-1)
    return normalize(image, 1, 99.8)

  def pairs(indices):
    examples = [train[i] for i in indices]
    images = [gray(example["image"]) for example in examples]
    return images, [fill_label_holes(e["instances"]) for e in examples]

  deadline = time.perf_counter() + 60 * minutes
  steps = 0

  class Deadline(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
      nonlocal steps
      steps += 1
      if time.perf_counter() > deadline:
        self.model.stop_training = True

  inside, held = _split(train)
  images, labels = pairs(inside)
  held_images, held_labels = pairs(held)
  config = Config2D(
    n_rays=32,
    grid=(2, 2),
    n_channel_in=1,
    train_steps_per_epoch=100,
    train_tensorboard=False,
    train_epochs=1000,
    train_reduce_lr={"factor": 0.5, "patience": 10, "min_delta": 0},
  )
  model = StarDist2D(config, name="peer", basedir=tempfile.mkdtemp())
  model.prepare_for_training()
  model.callbacks.append(Deadline())
  model.train(
    images,
    labels,
    validation_data=(held_images, held_labels),
    augmenter=functools.partial(_augment, rng=np.random.default_rng(0)),
    seed=0,
  )
  model.optimize_thresholds(held_images, held_labels)

  def predict(image):
    found, details = model.predict_instances(gray(image))
    scores = np.asarray(details["prob"], np.float64)
    return (found > 0), found, np.ones(len(scores), np.int32), scores

  return predict, steps


def _samples(train, indices: list[int], tensor: Callable) -> Iterator:
  """Endless flipped images and targets for torchvision's detectors."""
  import torch

  rng = np.random.default_rng(0)
  while True:
    example = train[indices[rng.integers(len(indices))]]
    image, labels = example["image"], example["instances"]
    for axis in (0, 1):
      if rng.integers(2):
        image, labels = np.flip(image, axis), np.flip(labels, axis)
    ids = np.setdiff1d(labels, [0])
    if not len(ids):
      continue
    masks = labels[None] == ids[:, None, None]
    image = tensor(image)
    yield (
      image,
      {
        "boxes": torch.tensor([_box(mask) for mask in masks]).to(image),
        "labels": torch.tensor(example["classes"][ids - 1]).long(),
        "masks": torch.tensor(masks).to(torch.uint8),
      },
    )


def maskrcnn(train, minutes: float) -> tuple[Callable, int]:
  """Trains torchvision's Mask R-CNN; predict and the number of steps."""
  import torch
  from torchvision.models import detection

  device = "cuda" if torch.cuda.is_available() else "cpu"
  net = detection.maskrcnn_resnet50_fpn_v2(
    weights=None,
    weights_backbone=None,
    num_classes=len(train.categories) + 1,
    box_detections_per_img=400,
    rpn_post_nms_top_n_test=2000,
    min_size=512,
    max_size=1024,
  ).to(device)
  inside, held = _split(train)

  def tensor(image):
    image = image if image.ndim == 3 else np.repeat(image[..., None], 3, 2)
    image = np.ascontiguousarray(image.transpose(2, 0, 1))
    return torch.tensor(image, device=device).float() / 255

  samples = _samples(train, inside, tensor)

  def batch_loss():
    images, targets = zip(*(next(samples) for _ in range(2)), strict=True)
    targets = [{k: v.to(device) for k, v in t.items()} for t in targets]
    return sum(net(list(images), targets).values())

  sgd = torch.optim.SGD(
    [p for p in net.parameters() if p.requires_grad],
    lr=0.005, momentum=0.9, weight_decay=1e-4,
  )  # fmt: skip
  steps = _train_torch(net, sgd, batch_loss, minutes, warmup=500)

  def detect(image, floors):
    """Label map, classes and scores above each of the floors."""
    with torch.inference_mode():
      found = net([tensor(image)])[0]
    found = {name: value.cpu().numpy() for name, value in found.items()}
    nothing = np.zeros((1, *image.shape[:2]), bool)
    for floor in floors:
      keep = found["scores"] > floor
      # The best one has the pixel.
      labels = np.concatenate([nothing, found["masks"][keep, 0] > 0.5])
      labels = np.where(labels.any(0), labels.argmax(0), 0)
      yield labels, found["labels"][keep], found["scores"][keep]

  floors = (0.3, 0.5, 0.7)
  scores = {
    floor: metrics.InstanceEvaluator(len(train.categories) + 1)
    for floor in floors
  }
  for i in tqdm(held, desc="choose", unit="image"):
    example = train[i]
    results = detect(example["image"], floors)
    for floor, result in zip(floors, results, strict=True):
      scores[floor].add(*result, example["instances"], example["classes"])
  best = max(floors, key=lambda f: scores[f].result("matching")["matching_0.5"])

  def predict(image):
    return None, *next(detect(image, (best,)))

  return predict, steps


def _box(mask):
  rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
  return columns[0], rows[0], columns[-1] + 1, rows[-1] + 1


def fcn(train, minutes: float) -> tuple[Callable, int]:
  """Trains torchvision's FCN ResNet-50; predict and the number of steps."""
  return _torch_segmentation("fcn_resnet50", train, minutes)


def deeplab(train, minutes: float) -> tuple[Callable, int]:
  """Trains torchvision's DeepLabV3 ResNet-50; see fcn."""
  return _torch_segmentation("deeplabv3_resnet50", train, minutes)


def _torch_segmentation(name, train, minutes):
  import torch
  from torch.nn import functional as F

  from experiments.benchmarks import torch_fcrn

  device = "cuda" if torch.cuda.is_available() else "cpu"
  net = torch_fcrn.torchvision_segmentation(
    name, len(train.categories) + 1, aux_loss=True
  ).to(device, memory_format=torch.channels_last)
  settings = pipeline.PipelineOptions(
    crop=(360, 480), scale=(0.5, 2.0), stride=1, batch_size=8, cache=True
  )
  batches = pipeline.train_batches(train, settings, seed=0)
  mean = torch.tensor((123.675, 116.28, 103.53), device=device)
  std = torch.tensor((58.395, 57.12, 57.375), device=device)

  def tensor(images):
    x = (torch.tensor(images, device=device).float() - mean) / std
    return x.permute(0, 3, 1, 2)

  def batch_loss():
    batch = next(batches)
    target = torch.tensor(batch["semantic"], device=device).long()
    out = net(tensor(batch["image"]))
    losses = {
      key: F.cross_entropy(scores, target, ignore_index=IGNORE)
      for key, scores in out.items()
    }
    return losses["out"] + 0.5 * losses["aux"]

  sgd = torch.optim.SGD(
    net.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4
  )
  steps = _train_torch(net, sgd, batch_loss, minutes, warmup=0)
  batches.close()

  def predict(image):
    with torch.inference_mode():
      scores = net(tensor(image[None]))["out"][0]
    return scores.argmax(0).cpu().numpy().astype(np.uint8), None, None, None

  return predict, steps


def _train_torch(net, sgd, batch_loss, minutes, warmup) -> int:
  """Trains until time is up; the rate falls with it by the power of 0.9."""
  net.train()
  rate, steps = sgd.param_groups[0]["lr"], 0
  for share in _progress(minutes):
    factor = (1 - share) ** 0.9 * min(1, (steps + 1) / max(warmup, 1))
    sgd.param_groups[0]["lr"] = rate * factor
    loss = batch_loss()
    sgd.zero_grad(set_to_none=True)
    loss.backward()
    sgd.step()
    steps += 1
  net.eval()
  return steps


def _progress(minutes: float) -> Iterator[float]:
  """The share of the time that is gone, until it is, with a bar."""
  start = time.perf_counter()
  with tqdm(total=round(60 * minutes), desc="train", unit="s") as bar:
    while (spent := time.perf_counter() - start) < 60 * minutes:
      bar.update(int(spent) - bar.n)
      yield spent / (60 * minutes)


PEERS = {
  "stardist": stardist,
  "maskrcnn": maskrcnn,
  "fcn": fcn,
  "deeplab": deeplab,
}
