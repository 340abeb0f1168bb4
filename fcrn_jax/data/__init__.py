"""Data sets: `load` gives examples by index; `pipeline` makes batches of them.

A data set is any object with `__len__`, `__getitem__` and the attributes

  name, split, path   what was asked for (path None for shapes)
  ids                 list of str, one an example
  categories          names of the categories 1 ... C, category k at k - 1
  background          name of label 0
  has_instances       whether examples carry "instances" and "classes"

An example is a dict: "id" str, "image" H W 3 uint8 RGB, "semantic" H W uint8
(0 background, 1 ... C, IGNORE void), "instances" H W int32 (0 none, 1 ... m)
and "classes" m uint8, the category of instance k at k - 1.

Data of your own are a folder in VOC layout, a COCO json, or two functions:
data.Functions(ids, image_fn, labels_fn, categories) is a data set too.
"""

import importlib
import pathlib
from collections.abc import Mapping
from typing import Any

from fcrn_jax.data import builders, folder, shapes
from fcrn_jax.data.functions import Functions as Functions

_BUILT = ("voc2012_sbd", "cityscapes", "pascal_context", "coco")


def load(
  name: str,
  split: str = "train",
  path: Any = None,
  options: Mapping[str, Any] | None = None,
) -> Any:
  """The data set `name`, see the module's docstring.

  `path` is the data's directory ("shapes" needs none): as it was published,
  or as experiments.prepare_data or a tfds builder wrote it. `options` are
  fields of the Options in the module of that name; prepared data have theirs
  from when they were prepared. ValueError for an unknown name or field and for
  data that cannot be read.
  """
  options = dict(options or {})
  known = ("shapes", "folder", *_BUILT)
  if name not in known:
    raise ValueError(
      f"there is no data set {name!r} but {known}; for data of your own pass"
      " 'folder' (VOC layout) or 'coco' and their path, or make a"
      " data.Functions."
    )
  if name == "shapes":
    return shapes.Shapes(split, _fields(name, shapes.Options, options))
  if path is None:
    raise ValueError(
      f"data set {name!r} needs a path; pass path= (--config.data.path=DIR)."
    )
  place = pathlib.Path(path).expanduser().resolve()
  if not place.exists():
    raise ValueError(
      f"the data {place} do not exist; if they were moved, pass their new"
      " place."
    )
  if builders.is_prepared(path):
    # Only here, since it imports tensorflow_datasets.
    from fcrn_jax.data.builders import records

    dataset = records.Prepared(path, split)
    if name not in ("folder", dataset.name):
      raise ValueError(
        f"{path} holds {dataset.name!r}, prepared, and not {name!r}."
      )
    if options.get("num_images"):
      raise ValueError(
        f"{path} is prepared, of which all images of a split are taken; leave"
        " num_images (config.data.num_train, num_val) out."
      )
    of_voc = dataset.categories == folder.VOC_LABELS[1:]
    if options.get("categories") == "voc" and not of_voc:
      raise ValueError(
        f"{path} was prepared with other categories than VOC's; prepare it"
        " again with --categories=voc."
      )
    return dataset
  if name == "folder":
    return folder.Folder(path, split, _fields(name, folder.Options, options))
  reader = importlib.import_module(f"fcrn_jax.data.builders.{name}")
  return reader.load(path, split, _fields(name, reader.Options, options))


def _fields(name: str, kind: Any, options: dict[str, Any]) -> Any:
  """`kind(**options)`, with an error that names the fields there are."""
  unknown = set(options) - set(kind._fields)
  if unknown:
    raise ValueError(
      f"the data set {name!r} has no option {', '.join(sorted(unknown))} but"
      f" {', '.join(kind._fields)}; leave it out."
    )
  return kind(**options)
