"""The report of a finished VAE run: one page to send to a colleague."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import jax

import loopax
from loopax import Figures, Picture, Rows, Section, Text
from loopax.recipes.vae.config import PRESETS
from loopax.recipes.vae.evaluation import Results, tables
from loopax.recipes.vae.trained import TrainedVAE

SECTIONS = {
    "Samples": ("samples-prior.png", "class-means.png"),
    "Reconstructions": ("reconstructions.png", "worst.png"),
    "Latents": ("interpolation.png", "traversal.png", "latents.png"),
    "Training": ("curves.png",),
}
"""Where each picture goes; `samples.png` comes first of all."""
ACCOUNT = {
    "setup": "preparing",
    "compute": "training steps",
    "compile": "compiling",
    "data": "waiting for data",
    "evaluation": "evaluating",
    "checkpoint": "saving checkpoints",
    "hooks": "drawing on the way",
    "host": "other work, the device idle",
}
CLASSES_LISTED = 100
UNKNOWN = "not recorded"


def write(trained: TrainedVAE, results: Results, pictures: Iterable[tuple[str, str]]) -> Path:
    """Leaves `report.html` in the run directory.

    Args:
        trained: what the report is on.
        results: what `evaluate` measured.
        pictures: names of files among the run's pictures, and what they show.

    Raises:
        LoopaxError: a picture cannot be read, or the report cannot be written.
    """
    folder = trained.dir.pictures
    drawn = {name: Picture(folder / name, caption) for name, caption in pictures}
    first = [drawn.pop(name) for name in ("samples.png",) if name in drawn]
    placed = {
        title: [drawn.pop(name) for name in names if name in drawn]
        for title, names in SECTIONS.items()
    }
    measured = [Rows(table.columns, table.rows, table.title) for table in tables(results)]
    sections = [
        Section("Summary", [*_summary(trained, results), *first]),
        Section("Samples", [*placed["Samples"], *_per_class(trained, results)]),
        Section("Reconstructions", placed["Reconstructions"]),
        Section("Latents", placed["Latents"]),
        Section("More pictures", list(drawn.values())),
        Section("Measures", [Text(_how_to_read(results)), *measured]),
        Section("Training", [*placed["Training"], *_account(trained)]),
        Section("Configuration", [_configuration(trained)]),
        Section("Provenance", [*_provenance(trained)]),
    ]
    name = trained.data.train.name.removesuffix(" train")
    path = trained.dir.path / "report.html"
    loopax.write_report(path, f"A VAE of {name}", sections, subtitle=_when(trained))
    return path


def _summary(trained: TrainedVAE, results: Results) -> Iterator[Text | Figures]:
    """What was trained on what, for how long, and what came of it."""
    config = trained.config
    network = "convolutions" if config.network == "conv" else "dense layers"
    by_class = " of a given class" if len(trained.class_names) > 1 else ""
    parameters = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(trained.params))
    epochs = trained.step * config.batch_size / len(trained.data.train)
    yield Text(
        f"A variational autoencoder that draws images{by_class}: {network}, {config.latent} "
        f"numbers in a latent, {parameters:,} parameters. It was trained for {epochs:.3g} passes "
        f"over the training images, {trained.step:,} steps of {config.batch_size}{_took(trained)}."
        f"\n\n{trained.data.description}."
    )
    yield Figures([*_figures(results)])


def _figures(results: Results) -> Iterator[tuple[str, str, str]]:
    samples, floor = _best(results), results["samples"].get("floor", {})
    if "class_accuracy" in samples:
        yield (
            "samples in their class",
            f"{samples['class_accuracy']:.1%}",
            f"real images: {floor['class_accuracy']:.1%}",
        )
    if "frechet_distance" in samples:
        yield (
            "Fréchet distance to test images",
            f"{samples['frechet_distance']:.2f}",
            f"real images: {floor['frechet_distance']:.2f}",
        )
    test = results["objective"]["test"]
    yield (
        "-ELBO of a test image",
        f"{test['neg_elbo_nats']:.1f} nats",
        f"{test['neg_elbo_bits_per_dim']:.3f} bits per dimension",
    )
    if "mse_per_pixel" in test:
        yield "squared error per pixel", f"{test['mse_per_pixel']:.4f}", "test images, from 0 to 1"


def _how_to_read(results: Results) -> str:
    beside = (
        "The column of real images is the floor: as many training images, scored as if they were "
        "samples. No sampler is expected to do better."
    )
    if results.get("judge") is None:
        return beside
    return (
        "Samples are measured by a classifier, the judge, which was trained on the same training "
        f"images; distances compare only under the same judge. {beside}"
    )


def _per_class(trained: TrainedVAE, results: Results) -> Iterator[Rows]:
    """How many samples of each class the judge takes for it, from every source."""
    columns = {
        source: scores["per_class_accuracy"]
        for source, scores in results["samples"].items()
        if "per_class_accuracy" in scores
    }
    if not columns:
        return
    names = trained.class_names[:CLASSES_LISTED]
    limited = f", the first {CLASSES_LISTED}" if len(trained.class_names) > len(names) else ""
    rows = [
        (name, *(_share(values[label]) for values in columns.values()))
        for label, name in enumerate(names)
    ]
    heads = ("class", *("real images" if each == "floor" else each for each in columns))
    yield Rows(heads, rows, f"Samples in their class, by the judge{limited}")


def _account(trained: TrainedVAE) -> Iterator[Rows]:
    account = _kept(trained, "account.json")
    shares = account.get("shares", {})
    rows = [
        (ACCOUNT.get(name, name), f"{account[f'{name}_s']:.1f}", f"{share:.1%}")
        for name, share in sorted(shares.items(), key=lambda item: -item[1])
    ]
    if rows:
        rows.append(("in all", f"{account['wall_s']:.1f}", ""))
        last = " of the last start" if len(_starts(trained)) > 1 else ""
        yield Rows(("", "seconds", "share"), rows, f"Where the time{last} went")


def _configuration(trained: TrainedVAE) -> Rows:
    """Every setting, beside the preset's where that is another one."""
    config = trained.config
    usual = dict(_flat(PRESETS[config.preset].to_json()))
    own = dict(_flat(config.to_json()))
    changed = {name for name, value in own.items() if value != usual.get(name)}
    rows = [
        (name, _shown(value), _shown(usual.get(name)) if name in changed else "")
        for name, value in own.items()
    ]
    if changed:
        return Rows(("setting", "value", f"in preset {config.preset}"), rows)
    return Rows(("setting", "value"), [row[:2] for row in rows])


def _provenance(trained: TrainedVAE) -> Iterator[Rows]:
    starts = _starts(trained)
    if not starts:
        return
    first, last = starts[0], starts[-1]
    git = last.get("git") or {}
    changed = ", with changes that are not committed" if git.get("changed") else ""
    devices = last.get("devices") or []
    data = last.get("data")
    rows = {
        "first started": _moment(first),
        "command": shlex.join(map(str, last.get("command") or [])),
        "random seed": str(trained.config.seed),
        "data, SHA-256": data.get("data") if isinstance(data, Mapping) else None,
        "code, git revision": f"{git['revision']}{changed}" if "revision" in git else None,
        "devices": f"{len(devices)} x {', '.join(sorted(set(devices)))}" if devices else None,
        "processor": (last.get("numerics") or {}).get("cpu"),
        "processor cores": last.get("visible_cores"),
        "Python": last.get("python"),
        **(last.get("packages") or {}),
    }
    yield Rows(("", ""), [(name, str(value or UNKNOWN)) for name, value in rows.items()])
    if len(starts) > 1:
        each = [(_moment(start), f"{start.get('step', 0):,}") for start in starts]
        yield Rows(("started", "at step"), each, "This run was interrupted and went on")


def _best(results: Results) -> Mapping[str, Any]:
    """The scores of the sampler that the run uses."""
    return next((s for name, s in results["samples"].items() if name != "floor"), {})


def _took(trained: TrainedVAE) -> str:
    seconds, starts = _kept(trained, "account.json").get("wall_s"), len(_starts(trained))
    if seconds is None:
        return ""
    return f", in {_duration(seconds)}" + (f" since the last of {starts} starts" * (starts > 1))


def _when(trained: TrainedVAE) -> str:
    starts = _starts(trained)
    started = [f"started {_moment(starts[0])}"] if starts else []
    return " · ".join([f"preset {trained.config.preset}", *started, f"loopax {loopax.__version__}"])


def _starts(trained: TrainedVAE) -> list[dict[str, Any]]:
    return list(_kept(trained, "run.json").get("starts", []))


def _kept(trained: TrainedVAE, name: str) -> dict[str, Any]:
    """A JSON file of the run; empty when it is not there."""
    return dict(trained.dir.read_json(name)) if (trained.dir.path / name).exists() else {}


def _flat(values: Mapping[str, Any], within: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{within}{name}.")
        else:
            yield f"{within}{name}", value


def _shown(value: Any) -> str:
    if value is None or value in ((), [], {}):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(map(_shown, value))
    return str(value)


def _share(value: float) -> str:
    return f"{value:.1%}" if math.isfinite(value) else ""


def _moment(start: Mapping[str, Any]) -> str:
    try:
        return f"{datetime.fromisoformat(str(start.get('time'))):%-d %B %Y, %H:%M %Z}"
    except ValueError:
        return UNKNOWN


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60:02} min"
