"""The report of any run, from the files of its directory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from loopax.files import storing
from loopax.jsonlines import Row, read_json_lines, values_of
from loopax.report.curves import save_curves
from loopax.report.page import Block, Figures, Picture, Section, Table, Text, write_report
from loopax.report.provenance import Provenance, values_table
from loopax.report.standing import Standing
from loopax.run.directory import RunDir
from loopax.run.run import STOPPED

CURVES = "metrics.png"
"""The picture of it, beside those that a recipe or a hook draws."""
PANELS = 12


def of_run(path: str | Path, *, measures: Sequence[Table] = ()) -> Path:
    """Leaves `report.html` in the directory of a run, and returns its path.

    It says how far the run has come and why it ended, shows every metric by step, and lists the
    checkpoints, the settings, where the time went, and how the run was started. A run may go on
    meanwhile. A recipe has more to say of its runs (`Recipe.report`).

    Args:
        path: the directory.
        measures: tables of what the model was measured by.

    Raises:
        ConfigError: the extra `report` is not installed.
        RunDirError: there is no run, or a file of it is damaged.
        StorageError: the report cannot be written.
    """
    run = RunDir.open(path)
    standing, provenance = Standing.of(run), Provenance(run)
    rows = [*run.metrics, *read_json_lines(run.timing_file)]
    sections = [
        Section("Summary", [Text(_story(run, standing, provenance)), *_figures(standing)]),
        Section("Measures", measures),
        Section("What went wrong", [*_autopsy(run)]),
        Section("Metrics", [*_curves(run, rows), *_newest(rows)]),
        Section("Checkpoints", [*_checkpoints(standing)]),
        Section("Time", provenance.account),
        Section("Configuration", [values_table(run.config)] if run.config else []),
        Section("Provenance", provenance.tables),
    ]
    report = run.path / "report.html"
    write_report(report, f"Run {run.path.resolve().name}", sections, subtitle=provenance.began)
    return report


def _story(run: RunDir, standing: Standing, provenance: Provenance) -> str:
    """How far the run has come, in how long, and why it ended."""
    total, took = provenance.total, provenance.took
    told = f"The run has come to step {standing.step:,}"
    told += f" of {total:,}" if total is not None else ""
    told += f"{took and f', {took}'}."
    if (run.path / STOPPED).exists():
        stopped = run.read_json(STOPPED)
        told += f" It was stopped at step {stopped['step']:,}: {stopped['reason']}."
    elif total is not None and standing.step < total:
        told += " It has not ended; the same command goes on."
    return told


def _figures(standing: Standing) -> Iterator[Figures]:
    """The newest value of the metric that counts, and the best one."""
    figures = []
    if standing.best_value is not None:
        at = f"at step {standing.best:,}"
        figures.append((f"{standing.metric}, best", f"{standing.best_value:.4g}", at))
    if standing.latest is not None:
        figures.append((f"{standing.metric}, latest", f"{standing.latest:.4g}", ""))
    if figures:
        yield Figures(figures)


def _curves(run: RunDir, rows: Sequence[Row]) -> Iterator[Picture]:
    """Every metric by step, the loss first."""
    names = dict.fromkeys(name for row in rows for name in values_of(row))
    titles = {name: name for name in sorted(names, key=lambda name: name != "loss")}
    if not titles:
        return
    with storing(run.path):
        picture = run.pictures / CURVES
        save_curves(rows, picture, titles, most=PANELS)
    more = f" (the first {PANELS} of {len(titles)} metrics)" if len(titles) > PANELS else ""
    yield Picture(picture, f"Means over the steps between two rows, and evaluations, by step{more}")


def _newest(rows: Sequence[Row]) -> Iterator[Table]:
    """The last row of each source, side by side."""
    last = {row["source"]: row for row in rows}
    columns = {f"{source}, step {row['step']:,}": values_of(row) for source, row in last.items()}
    names = dict.fromkeys(name for values in columns.values() for name in values)
    cells = [
        (name, *(f"{values[name]:.6g}" if name in values else "" for values in columns.values()))
        for name in names
    ]
    if cells:
        yield Table(("", *columns), cells, "The latest values")


def _checkpoints(standing: Standing) -> Iterator[Table]:
    """Each that is kept, by what it was measured."""
    if not standing.ranks:
        return
    latest = max(standing.ranks)
    rows = [
        (
            f"{step:,}",
            f"{rank['value']:.4g}" if rank else "",
            ", ".join(["latest"] * (step == latest) + ["best"] * (step == standing.best)),
        )
        for step, rank in sorted(standing.ranks.items())
    ]
    by = standing.metric if standing.best is not None else "not measured"
    yield Table(("step", by or "", "which is"), rows)


def _autopsy(run: RunDir) -> Iterator[Block]:
    """Where the first number came from that was not finite."""
    if not (run.path / "autopsy.json").exists():
        return
    found: dict[str, Any] = run.read_json("autopsy.json")
    yield Text(
        f"At step {found['step']:,} a number was not finite. The step was executed again to find "
        "where that began; `autopsy.json` has the norms of each parameter too."
    )
    shown = {name: found[name] for name in ("metrics", "non_finite", "origin")}
    yield Table(("", ""), values_table(shown).rows)
