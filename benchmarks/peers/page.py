"""What was measured, as a table, a chart, and a page of docs that is generated from it."""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
import sys
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.peers import environments

OURS, BASE = "loopax", "scan"
NOISE = 0.03
"""Within such a part of each other two are level: runs of one contestant differ by more."""
Rows = Mapping[str, Mapping[str, Any]]
"""A row for each contestant: its samples and its loss, or why it has failed."""


def facts(options: Any, contestants: Mapping[str, Any]) -> dict[str, Any]:
    """The machine, the versions, and how is measured."""
    folder = options.environments.absolute()
    versions = {
        each.environment: environments.versions_of(environments.python_of(each.environment, folder))
        for each in contestants.values()
    }
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{os.cpu_count()} CPU cores, {_processor()}",
        "python": platform.python_version(),
        "load_average": os.getloadavg()[0],
        "seconds": options.seconds,
        "titles": {name: each.title for name, each in contestants.items()},
        "versions": versions,
    }


def measured(rows: Rows) -> list[str]:
    """The contestants that have figures, the fastest first."""
    there = [name for name, row in rows.items() if row["samples"]]
    return sorted(there, key=lambda name: -median(rows[name], "pace"))


def median(row: Mapping[str, Any], figure: str) -> float:
    """Of all repeats."""
    return statistics.median(sample[figure] for sample in row["samples"])


def whole(row: Mapping[str, Any]) -> float:
    """Steps a second of the whole process."""
    return statistics.median(sample["steps"] / sample["wall_s"] for sample in row["samples"])


def lines(rows: Rows, titles: Mapping[str, str]) -> Iterator[tuple[str, ...]]:
    """A line of the table for each contestant, those that failed last."""
    base = rows[BASE] if rows.get(BASE, {}).get("samples") else None
    for name in measured(rows):
        row = rows[name]
        paces = [sample["pace"] for sample in row["samples"]]
        cpu = statistics.median(
            1e3 * sample["cpu_s"] / sample["steps"] for sample in row["samples"]
        )
        yield (
            f"**{titles[name]}**" if name == OURS else titles[name],
            f"{median(row, 'pace'):,.0f}",
            f"{min(paces):,.0f} to {max(paces):,.0f} ({len(paces)})",
            f"{median(row, 'pace') / median(base, 'pace'):.2f}" if base else "",
            f"{whole(row):,.0f}",
            f"{whole(row) / whole(base):.2f}" if base else "",
            f"{row['check']['first_s']:.1f}",
            f"{median(row, 'first_s'):.1f}",
            f"{cpu:.2f}",
            f"{median(row, 'peak_mb'):,.0f}",
            f"{row['loss']:.2f}",
        )
    for name, row in rows.items():
        if "failed" in row:
            yield (titles[name], row["failed"].replace("|", "/"), *[""] * (len(HEADINGS) - 2))


HEADINGS = (
    "",
    "steps/s",
    "lowest to highest (runs)",
    "of the bare scan",
    "whole process, steps/s",
    "of the bare scan",
    "first metrics after, s",
    "the same, compiled before",
    "CPU ms a step",
    "peak memory, MB",
    "test loss of the check",
)


def verdict(batch: str, rows: Rows, titles: Mapping[str, str]) -> str:
    """Who is faster than loopax, said first."""
    if OURS not in measured(rows):
        return f"At batch {batch}, loopax was not measured."
    ours = median(rows[OURS], "pace")
    ratio = {name: median(rows[name], "pace") / ours for name in measured(rows) if name != OURS}
    level = [name for name, by in ratio.items() if abs(by - 1) <= NOISE]
    ahead = [f"{titles[name]} ({by:.2f} times)" for name, by in ratio.items() if by > 1 + NOISE]
    behind = [f"{titles[name]} ({1 / by:.2f})" for name, by in ratio.items() if by < 1 - NOISE]
    lost = f"faster than loopax: {', '.join(ahead)}" if ahead else "none is faster than loopax"
    drawn = f"; level with it: {', '.join(titles[name] for name in level)}" if level else ""
    won = f"; loopax is faster than {', '.join(behind)}" if behind else ""
    return f"At batch {batch}, {lost}{drawn}{won}."


def text(found: Mapping[str, Any]) -> str:
    """All tables, in Markdown."""
    said = []
    for batch, rows in found["results"].items():
        said += [f"## Batch {batch}", "", verdict(batch, rows, found["titles"]), ""]
        said += [_line(HEADINGS), _line(["---"] + ["--:"] * (len(HEADINGS) - 1))]
        said += [_line(row) for row in lines(rows, found["titles"])]
        said.append("")
    return "\n".join(said)


def quality(found: Mapping[str, Any]) -> str:
    """The table of `benchmarks.quality`, in Markdown, the fastest first."""
    said = [
        f"## Until the test loss is {found['target']:g}",
        "",
        "Whole processes, until the first epoch after which it is reached.",
        "",
        _line(("", "seconds, compiled before", "seconds, the first time", "loss")),
        _line(("---", "--:", "--:", "--:")),
    ]
    rows = found["rows"].values()
    for row in sorted(rows, key=lambda row: row["seconds"][-1] if "loss" in row else math.inf):
        first, *again = row["seconds"] if "loss" in row else [row["failed"]]
        if "loss" not in row:
            said.append(_line((row["title"], first, "", "")))
            continue
        later = f"{statistics.median(again):.1f}" if again else ""
        said.append(_line((row["title"], later, f"{first:.1f}", f"{row['loss']:.2f}")))
    return "\n".join([*said, ""])


def write(found: Mapping[str, Any], path: Path) -> None:
    """The page, and its chart beside it."""
    chart = path.with_suffix(".png")
    draw(found, chart)
    listed = "; ".join(
        f"{name}: {', '.join(f'{package} {version}' for package, version in versions.items())}"
        for name, versions in found["versions"].items()
    )
    path.write_text(
        "# Beside the peers\n\n"
        "Generated by `python -m benchmarks.peers --page docs/peers.md`; "
        "[benchmarks/README.md](../benchmarks/README.md) says what each contestant is.\n\n"
        f"{found['date'][:10]}, {found['machine']}, Python {found['python']}, load average "
        f"{found['load_average']:.1f} at the start. Medians of runs of about "
        f"{found['seconds']:g} s, taking turns; {found['minutes']:.0f} minutes in all. Steps/s are "
        "those after the first ten seconds; the whole process has all of it, from the start of "
        "Python to its end. The first time to metrics is that of a process that has to compile; in "
        "all others every contestant finds what it has compiled before.\n\n"
        f"![Steps per second]({chart.name})\n\n{text(found)}\n"
        f"{quality(found['quality']) + chr(10) if 'quality' in found else ''}{listed}.\n"
    )


def draw(found: Mapping[str, Any], path: Path) -> None:
    """A bar for each contestant, a panel for each size of batch."""
    import matplotlib.pyplot as plt

    panels = {b: rows for b, rows in found["results"].items() if measured(rows)}
    height = sum(0.8 + 0.35 * len(measured(rows)) for rows in panels.values())
    figure = plt.figure(figsize=(8, height), layout="constrained")
    axes = figure.subplots(len(panels), squeeze=False)[:, 0]
    for axis, (batch, rows) in zip(axes, panels.items(), strict=True):
        names = measured(rows)
        paces = [median(rows[name], "pace") for name in names]
        colours = ["#0f766e" if name == OURS else "#cbd5e1" for name in names]
        bars = axis.barh([found["titles"][name] for name in names], paces, 0.68, color=colours)
        axis.bar_label(bars, [f"{pace:,.0f}" for pace in paces], padding=5)
        axis.set_title(f"batch {batch}", loc="left", fontweight="bold")
        axis.set(xlim=(0, 1.12 * max(paces)), xticks=[])
        axis.invert_yaxis()
        axis.tick_params(left=False)
        axis.spines[:].set_visible(False)
    figure.supxlabel(f"steps per second, more is better; {found['machine']}", fontsize=9)
    figure.savefig(path, dpi=160)
    plt.close(figure)


def _line(cells: Any) -> str:
    return f"| {' | '.join(cells)} |"


def _processor() -> str:
    found = (
        [
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ]
        if Path("/proc/cpuinfo").exists()
        else []
    )
    return found[0] if found else platform.processor()


if __name__ == "__main__":
    source, target = map(Path, sys.argv[1:])
    write(json.loads(source.read_text()), target)
