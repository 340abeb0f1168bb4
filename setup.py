"""Installation; see BUILD.md for CPU, CUDA and TPU."""

from setuptools import find_packages, setup

setup(
  name="fcrn_jax",
  version="0.1.0",
  description="Semantic and instance segmentation with dilated FCRNs in JAX",
  license="Apache-2.0",
  python_requires=">=3.11",
  packages=find_packages(include=["fcrn_jax", "fcrn_jax.*"]),
  install_requires=[
    "absl-py",
    "array_record",
    "clu",
    "flatbuffers",
    "flax>=0.12",
    "grain>=0.2.18",
    "h5py",
    "jax>=0.10",
    "jaxtyping",
    "matplotlib",
    "ml-collections",
    "numpy>=2",
    "opencv-python-headless",
    "optax>=0.2.8",
    "orbax-checkpoint>=0.12",
    "pillow",
    "safetensors",
    "scipy",
    "tensorflow-datasets>=4.9.10",
    "tifffile",
    "tqdm",
  ],
  extras_require={
    "cuda": ["jax[cuda13]"],
    "tpu": ["jax[tpu]"],
    "test": [
      "beartype",
      "pycocotools",
      "pytest",
      "pytest-xdist",
      "ruff",
      "scikit-learn",
    ],
    "parity": ["keras", "protobuf", "torch==2.13.0"],
  },
)
