# Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
"""Package description. The versions that are tested together are in constraints.txt."""

from setuptools import find_packages, setup

with open("ausm_d2/__init__.py", encoding="utf-8") as init:
    VERSION = next(line.split('"')[1] for line in init if line.startswith("__version__ = "))

with open("README.md", encoding="utf-8") as readme:
    LONG_DESCRIPTION = readme.read()

setup(
    name="ausm_d2",
    version=VERSION,
    description="The Autoregressive Universal Video Segmentation Model (AUSM) in Detectron2",
    long_description=LONG_DESCRIPTION,
    long_description_content_type="text/markdown",
    url="https://arxiv.org/abs/2508.19242",
    license="Apache-2.0",
    license_files=["LICENSE", "NOTICE"],
    packages=find_packages(include=["ausm_d2", "ausm_d2.*"]),
    package_data={
        "": ["*.cpp", "*.h"],  # of every package: the sources of the compiled kernels
        "ausm_d2.app": ["page/*"],
        "ausm_d2": ["weights/*.pth", "configs/**/*.yaml"],  # ausm_d2/configs is a link to configs/; wheels hold copies
    },
    entry_points={"console_scripts": ["ausm = ausm_d2.cli.main:console"]},
    python_requires=">=3.11",
    # Detectron2 is needed too, but is not on the package index under its own name:
    # `python tools/install_detectron2.py`, or its official source install.
    install_requires=[
        "torch>=2.6",  # the oldest that the tests were run with
        "torchvision",
        "numpy>=2",
        "scipy",
        "opencv-python>=4.11",  # vos-benchmark and trackeval require it; -headless beside it would overwrite its files
        "av>=15",  # video files: SA-V, the demo
        "pillow",
        "pycocotools",
        "PyYAML",
        "fvcore",
        "yacs",  # configs: what fvcore's and Detectron2's are made of
        "timm",  # Detectron2's Swin imports it
        "tabulate",
        "tqdm",
        "vos-benchmark",
    ],
    extras_require={
        "cuda": ["mamba-ssm", "causal-conv1d"],  # build against the installed torch: pip install --no-build-isolation
        "demo": ["matplotlib"],
        "export": ["onnx", "onnxruntime", "onnxscript"],  # ausm export; using the file takes onnxruntime only
        "ray": ["ray[data]", "fsspec"],  # tools/batch_ray.py
        "app": ["starlette", "uvicorn"],  # the page of ausm app
        "completion": ["argcomplete"],  # of the shell; docs/command_line.md
        "supervision": ["supervision"],
        "docs": ["pdoc"],  # make docs
        "dev": [
            *("einops", "hypothesis", "mypy", "pytest", "pytest-xdist", "ruff", "trackeval", "transformers"),
            *("httpx2", "playwright"),  # the page of ausm app is tested
            *("ipython", "nbformat", "pdoc"),  # docs/tutorial.ipynb and the API page are tested
        ],
    },
)
