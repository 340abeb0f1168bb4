"""Who may import whom, walked over the syntax trees (DESIGN)."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = ROOT / "fcrn_jax"

# Part -> parts of fcrn_jax that it may import beside itself.
ALLOWED = {
  "types": set(),
  "boxes": {"types"},
  "losses": {"types", "boxes"},
  "metrics": {"types", "boxes"},
  "instances": {"types", "boxes"},
  "data": {"types", "boxes"},
  "models": {"types", "cpu"},
  "checkpoint": {"types"},
  "visualize": {"types", "boxes"},
  "training.optimizer": {"types"},
  "training.writers": {"types"},
  "tiling": {"types"},
  "views": {"types", "boxes"},
  "inference": {"types", "boxes", "tiling", "views"},
  "predictor": {
    "types", "boxes", "models", "inference", "instances", "checkpoint",
    "visualize", "export", "data", "views",
  },
  "export": {
    "types", "boxes", "models", "inference", "instances", "checkpoint",
  },
  "oracle": {"types", "predictor", "data", "inference", "instances"},
  "scoring": {"types", "predictor", "metrics", "oracle"},
  "evaluation": {
    "types", "predictor", "metrics", "data", "checkpoint", "oracle",
    "visualize", "scoring",
  },
  "cpu": set(),
  "files": set(),
}  # fmt: skip


def modules():
  return sorted(PACKAGE.rglob("*.py"))


def imported(path):
  """Full names that a file imports, anywhere in it."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f"{path} imports relatively"
      yield node.module
      yield from (f"{node.module}.{alias.name}" for alias in node.names)


def part_of(path):
  parts = path.relative_to(PACKAGE).with_suffix("").parts
  dotted = ".".join(parts[:2])
  return dotted if dotted in ALLOWED else parts[0]


@pytest.mark.parametrize("path", modules(), ids=str)
def test_parts_import_only_what_they_may(path):
  part = part_of(path)
  for name in imported(path):
    top = name.split(".")[0]
    assert top not in ("configs", "experiments"), name
    assert not name.startswith("absl.flags"), name
    if part in ("data", "metrics"):
      assert top not in ("jax", "flax", "jaxlib", "optax"), name
    if part not in ("models", "training"):
      assert top != "flax", name
    if top == "fcrn_jax" and part in ALLOWED and "." in name:
      other = name.split(".")[1]
      allowed = ALLOWED[part] | {"files", part.split(".")[0]}
      assert other in allowed, name


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.py")))
def test_configs_import_only_ml_collections(path):
  tops = {name.split(".")[0] for name in imported(path)}
  assert tops <= {"ml_collections", "configs", "os"}, tops


def test_no_circles():
  """Depth-first over module-level imports among the package's files."""
  names = {}
  for path in modules():
    parts = ("fcrn_jax", *path.relative_to(PACKAGE).with_suffix("").parts)
    names[".".join(part for part in parts if part != "__init__")] = path
  edges = {
    name: {n for n in _module_level(path) if n in names and n != name}
    for name, path in names.items()
  }
  done, active = set(), []

  def visit(name):
    assert name not in active, " -> ".join([*active, name])
    if name in done:
      return
    active.append(name)
    for other in sorted(edges[name]):
      visit(other)
    active.pop()
    done.add(name)

  for name in sorted(edges):
    visit(name)


def _module_level(path):
  for node in ast.parse(path.read_text()).body:
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      submodules = {f"{node.module}.{alias.name}" for alias in node.names}
      # `from package import module` needs the module, not the whole package.
      files = {str(p.relative_to(ROOT))[:-3].replace("/", ".").removesuffix(
        ".__init__") for p in modules()}  # fmt: skip
      yield from submodules & files or {node.module}


def test_import_needs_no_tensorflow_and_data_no_jax():
  code = (
    "import sys, fcrn_jax, fcrn_jax.data.pipeline, fcrn_jax.metrics\n"
    "assert 'jax' not in sys.modules, 'jax'\n"
    "for name in fcrn_jax.__all__: getattr(fcrn_jax, name)\n"
    "assert 'tensorflow' not in sys.modules, 'tensorflow'\n"
  )
  subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
