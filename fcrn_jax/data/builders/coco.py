"""COCO instances: polygons and run lengths of 80 categories, or VOC's 20.

Official splits: train and val of 2014 (82,783 / 40,504) and 2017 (118,287 /
5,000). Any other COCO json with its images is read the same way: own data.

Crowd regions are void (255) where no instance covers them. Where instances
overlap the smaller lies on top (ours: COCO gives no order), and one without a
visible pixel is left out. With categories="voc" the other 60 are background.
"""

import collections
import functools
import json
import pathlib
from typing import Any, NamedTuple

import numpy as np

from fcrn_jax.data import folder
from fcrn_jax.data.builders import archives, rle
from fcrn_jax.data.functions import Functions, number_instances
from fcrn_jax.types import IGNORE

SPLITS = {
  "train2014": 82783, "val2014": 40504, "train2017": 118287, "val2017": 5000,
}  # fmt: skip
# VOC's names where COCO's differ.
VOC_NAMES = {
  "airplane": "aeroplane", "motorcycle": "motorbike", "couch": "sofa",
  "dining table": "diningtable", "potted plant": "pottedplant",
  "tv": "tvmonitor",
}  # fmt: skip
ROBOFLOW = "_annotations.coco.json"  # in a folder a split, with the images
_ID = (int, float, str)
_FIELDS = {  # that the json must have, and what each holds
  "images": {"id": _ID, "file_name": str, "height": int, "width": int},
  "annotations": {
    "image_id": _ID, "category_id": _ID, "segmentation": (list, dict),
  },
  "categories": {"id": _ID, "name": str},
}  # fmt: skip
_ZIPS = "http://images.cocodataset.org/zips"
_ANNOTATIONS = "http://images.cocodataset.org/annotations"
ARCHIVES = {
  name: archives.Archive(f"{name}.zip", f"{url}/{name}.zip", *rest)
  for name, url, *rest in (
    (
      "annotations_trainval2014", _ANNOTATIONS, "annotations",
      "instances_*.json", 252872794, None,
      "031296bbc80c45a1d1f76bf9a90ead27e94e99ec629208449507a4917a3bf009",
    ),
    (
      "annotations_trainval2017", _ANNOTATIONS, "annotations",
      "instances_*.json", 252907541, None,
      "113a836d90195ee1f884e704da6304dfaaecff1f023f49b6ca93c4aaae470268",
    ),
    (
      "train2014", _ZIPS, "train2014", "*.jpg", 13510573713, None,
      "ede4087e640bddba550e090eae701092534b554b42b05ac33f0300b984b31775",
    ),
    (
      "train2017", _ZIPS, "train2017", "*.jpg", 19336861798, None,
      "69a8bb58ea5f8f99d24875f21416de2e9ded3178e903f1f7603e283b9e06d929",
    ),
    (
      "val2014", _ZIPS, "val2014", "*.jpg", 6645013297, None,
      "fe9be816052049c34717e077d9e34aa60814a55679f804cd043e3cbee3b9fde0",
    ),
    (
      "val2017", _ZIPS, "val2017", "*.jpg", 815585330, None,
      "4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05",
    ),
  )
}  # fmt: skip
HELP = archives.instructions(
  "COCO (annotations and images of one year)",
  "https://cocodataset.org/#download",
  ARCHIVES.values(),
  "2017 at 100 Mbit/s: 27 minutes to fetch, about 40 to prepare in one "
  "process, 10 in four.",
)


class Broken(ValueError):
  """The json is there, and what it says is wrong."""


class Options(NamedTuple):
  """Fields of data.load("coco", options=...)."""

  year: int = 2017  # of split "train" and "val"; the split may carry it too
  categories: str = "all"  # or "voc": the 20 of PASCAL VOC
  annotations: str = ""  # a json file; "": found below path by the split
  images: str = ""  # its folder of images, from path; "": found below it
  partial: bool = False  # accept missing images, with a warning


def load(path: Any, split: str, options: Options) -> Functions:
  """The split, from archives or folders in `path`, or any COCO json.

  ValueError if files are missing or damaged, or not the official number.
  """
  if options.categories not in ("all", "voc"):
    raise ValueError(
      f"categories is {options.categories!r}; expected 'all' or 'voc'."
    )
  root = pathlib.Path(path).expanduser()
  official = split if split in SPLITS else f"{split}{options.year}"
  file = _find_annotations(root, split, official, options)
  content = _read_json(file)
  is_official = official in SPLITS and file.stem == f"instances_{official}"
  names = [image["file_name"] for image in content["images"]]
  folder_path = _find_images(
    root, split, official if is_official else "", options, names
  )
  images = {}
  for image in content["images"]:
    if not options.partial or (folder_path / image["file_name"]).is_file():
      key = str(pathlib.PurePosixPath(image["file_name"]).with_suffix(""))
      if key in images:
        raise Broken(
          f"{file} has {image['file_name']} and {images[key]['file_name']},"
          " twice the same or different by their suffix only; rename one."
        )
      images[key] = image
  if is_official:
    archives.check_counts(
      "coco", official, len(images), SPLITS[official], options.partial
    )
  table, categories = _categories(
    content["categories"], options.categories, file
  )
  return Functions(
    sorted(images),
    functools.partial(
      _image, folder_path, {k: i["file_name"] for k, i in images.items()}
    ),
    functools.partial(
      _labels,
      {k: (i["height"], i["width"]) for k, i in images.items()},
      _by_image(content, images, table, file),
    ),
    categories,
    category_ids=tuple(sorted(table, key=table.get)),
    name="coco",
    split=split,
    path=root,
    source=folder_path,
  )


def _find_annotations(
  root: pathlib.Path, split: str, official: str, options: Options
) -> pathlib.Path:
  """The json file of a split."""
  if options.annotations or root.is_file():
    file = root / options.annotations if options.annotations else root
    if not file.is_file():
      raise ValueError(f"annotations file {file} does not exist.")
    return file
  stems = (f"instances_{official}", f"instances_{split}", official, split)
  for where in (root / "annotations", root / "extracted/annotations", root):
    for stem in stems:
      if (where / f"{stem}.json").is_file():
        return where / f"{stem}.json"
  if (root / split / ROBOFLOW).is_file():
    return root / split / ROBOFLOW
  if others := roboflow_splits(root):
    raise ValueError(
      f"{root} has no split {split!r} but {others}; name one of them"
      " (--config.data.train_split, --config.data.val_split)."
    )
  if official in SPLITS:
    archive = ARCHIVES[f"annotations_trainval{official[-4:]}"]
    archive = archive._replace(marker=f"instances_{official}.json")
    return archives.find(root, archive, HELP) / archive.marker
  raise ValueError(
    f"no json file of split {split!r} in {root} or {root / 'annotations'} "
    f"(tried {', '.join(stems)}); rename it, or pass its own path as the "
    "data's."
  )


def roboflow_splits(root: pathlib.Path) -> list[str]:
  """The splits that Roboflow wrote into folders of `root`."""
  return sorted(file.parent.name for file in root.glob(f"*/{ROBOFLOW}"))


def _read_json(file: pathlib.Path) -> dict[str, Any]:
  """The file's content, with the lists and fields that it must have."""
  try:
    content = json.loads(file.read_bytes())
  except (OSError, ValueError) as error:
    raise Broken(f"{file} is no readable json: {error}") from None
  missing = set(_FIELDS) - set(content if isinstance(content, dict) else ())
  if missing:
    raise Broken(
      f"{file} has no {sorted(missing)}; expected a COCO instances file with "
      "images, annotations and categories."
    )
  for part in _FIELDS:
    _check_entries(content[part], part, file)
  outlines = [some["segmentation"] for some in content["annotations"]]
  if outlines and not any(outlines):
    raise Broken(
      f"{file} has boxes alone: the segmentation of all {len(outlines)}"
      " annotations is empty. Outline the instances, or export them with their"
      " polygons or masks (as instance segmentation)."
    )
  return content


def _check_entries(entries: Any, part: str, file: pathlib.Path) -> None:
  """Broken unless `part` of the json is a list of whole, different entries."""
  if not isinstance(entries, list):
    raise Broken(f"{file}: {part} is {entries!r:.40}; expected a list.")
  for entry in entries:
    if not isinstance(entry, dict):
      raise Broken(
        f"{file}: {part} has an entry {entry!r:.40}; expected an object with"
        f" {', '.join(_FIELDS[part])}."
      )
    for field, kind in _FIELDS[part].items():
      if not isinstance(entry.get(field), kind):
        raise Broken(
          f"{file}: an entry of {part} (id {entry.get('id')}) lacks its"
          f" {field} or has a wrong one ({entry.get(field)!r:.40})."
        )
  if part == "annotations":  # whose own ids nothing refers to
    return
  counts = collections.Counter(entry["id"] for entry in entries)
  if twice := [key for key, count in counts.items() if count > 1]:
    raise Broken(
      f"{file} has several {part} of one id ({twice[:10]}); give each its own,"
      " in the annotations too."
    )


def _find_images(
  root: pathlib.Path,
  split: str,
  official: str,
  options: Options,
  names: list[str],
) -> pathlib.Path:
  """The folder that holds the json's images."""
  base = root.parent if root.is_file() else root
  if options.images:
    return base / options.images
  folders = [
    f"{stem}{name}"
    for name in (official, split)
    if name
    for stem in ("", "images/")
  ]
  folders += ["images", ""]
  places = [b / name for b in (base, base / "extracted") for name in folders]
  places.append(base.parent / "images")
  for place in places:
    if names and any((place / name).is_file() for name in names):
      return place
  if official:
    return archives.find(base, ARCHIVES[official], HELP)
  raise ValueError(
    f"the images of the json (such as {names[:1]}) are in none of "
    f"{[str(p) for p in places]}; name their folder in the option 'images' "
    "(experiments.prepare_data --images=DIR)."
  )


def _categories(
  listed: list[dict[str, Any]], which: str, file: pathlib.Path
) -> tuple[dict[int, int], tuple[str, ...]]:
  """Category 1 ... C by the json's id, and the names of 1 ... C."""
  try:
    listed = sorted(listed, key=lambda category: category["id"])
  except TypeError:
    ids = [category["id"] for category in listed]
    raise Broken(
      f"{file} has categories whose ids are of several kinds: {ids}; write"
      " whole numbers."
    ) from None
  if which == "all":
    table = {category["id"]: k + 1 for k, category in enumerate(listed)}
    names = tuple(category["name"] for category in listed)
    if len({"background", *names}) <= len(names):
      raise Broken(
        f"{file} has two categories of one name, or one named 'background',"
        f" as label 0 is: {names}. Rename it, or take it out with its"
        " annotations."
      )
    return table, names
  names = folder.VOC_LABELS[1:]
  ours = {c["id"]: VOC_NAMES.get(c["name"], c["name"]) for c in listed}
  table = {i: names.index(n) + 1 for i, n in ours.items() if n in names}
  if len(table) != len(names):
    raise ValueError(
      "categories='voc' needs COCO's 80 categories; of VOC's 20 the json "
      f"lacks {sorted(set(names) - set(ours.values()))}."
    )
  return table, names


def _by_image(
  content: dict[str, Any],
  images: dict[str, dict[str, Any]],
  table: dict[int, int],
  file: pathlib.Path,
) -> dict[str, bytes]:
  """Per image (category, crowd, segmentation) of each annotation, as json.

  Bytes, since the whole of COCO as Python objects fills gigabytes, and goes
  to every worker process.
  """
  grouped = {image["id"]: [] for image in content["images"]}
  listed = {category["id"] for category in content["categories"]}
  for annotation in content["annotations"]:
    if annotation["image_id"] not in grouped:
      raise Broken(
        f"{file}: annotation {annotation.get('id')} is of image "
        f"{annotation['image_id']}, which the file does not list."
      )
    if annotation["category_id"] not in listed:
      raise Broken(
        f"{file}: annotation {annotation.get('id')} is of category "
        f"{annotation['category_id']}, which the file does not list."
      )
    category = table.get(annotation["category_id"])
    if category is not None:
      crowd = bool(annotation.get("iscrowd", 0))
      found = (category, crowd, annotation["segmentation"])
      grouped[annotation["image_id"]].append(found)
  return {
    key: json.dumps(grouped[image["id"]]).encode()
    for key, image in images.items()
  }


def _image(folder_path: pathlib.Path, names: dict[str, str], key: str) -> str:
  return str(folder_path / names[key])


def _labels(
  sizes: dict[str, tuple[int, int]], annotations: dict[str, bytes], key: str
) -> dict[str, Any]:
  """Paints crowds as void, then instances from large to small."""
  height, width = sizes[key]
  semantic = np.zeros((height, width), np.uint8)
  instances = np.zeros((height, width), np.int32)
  painted = []
  for category, crowd, segmentation in json.loads(annotations[key]):
    try:
      mask = rle.decode(segmentation, height, width)
    except (ValueError, TypeError, KeyError) as error:
      raise ValueError(f"an annotation of {key} is broken: {error}") from None
    if crowd:
      semantic[mask] = IGNORE
    else:
      painted.append((int(mask.sum()), category, mask))
  painted.sort(key=lambda item: -item[0])
  for k, (_, category, mask) in enumerate(painted):
    semantic[mask] = category
    instances[mask] = k + 1
  classes = np.array([category for _, category, _ in painted], np.uint8)
  return {"semantic": semantic, **number_instances(instances, classes)}
