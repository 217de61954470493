"""Packaging of hybrid-infomax; the tested versions are in constraints.txt.

The recipes are installed as data of `trainer`: a package `recipes` would stand in everybody's site-packages.
"""

from setuptools import find_packages, setup

setup(
    name="hybrid-infomax",
    version="0.1.0",
    description="Pretraining of image encoders by mutual information, from a laptop to a cluster",
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
    extras_require={"test": ["pytest", "pytest-xdist", "psycopg2-binary", "ruff", "setuptools>=70.1"]},
)
