"""A virtual environment for each kind of contestant, made once and kept."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = {
    "loopax": ["-e", str(ROOT)],
    "article": ["-e", str(ROOT), "torch==2.13.0", "pillow"],
    "keras": ["keras>=3.15,<4", "jax", "numpy"],
    "torch": ["torch==2.13.0", "numpy", "setuptools", "transformers>=5,<6"],
    "lightning": ["torch==2.13.0", "lightning>=2.5,<3", "numpy", "transformers>=5,<6"],
}
"""What `pip install` is given. PyTorch is pinned to a build for CPUs alone."""
SHOWN = ("jax", "flax", "optax", "keras", "torch", "transformers", "lightning", "loopax")


def python_of(name: str, folder: Path) -> Path:
    """The Python of an environment, which is made where it is missing."""
    home = folder / name
    python = home / "bin" / "python"
    mark, packages = home / "complete", "\n".join(PACKAGES[name]).replace(str(ROOT), ".")
    if not mark.exists() or mark.read_text() != packages:
        print(f"making the environment {name}")
        subprocess.run([sys.executable, "-m", "venv", home], check=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *PACKAGES[name]], check=True)
        mark.write_text(packages)
    return python


def versions_of(python: Path) -> dict[str, str]:
    """What is installed there, of the packages that are compared."""
    program = (
        "from importlib.metadata import distributions as d;"
        "print(*(f'{x.name.lower()}={x.version}' for x in d() if x.name))"
    )
    found = subprocess.run([python, "-c", program], check=True, capture_output=True, text=True)
    listed = dict(word.split("=", 1) for word in found.stdout.split())
    return {name: listed[name] for name in SHOWN if name in listed}
