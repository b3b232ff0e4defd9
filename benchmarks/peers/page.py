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
from benchmarks.peers.task import KINDS

OURS, BASE = "loopax", "scan"
NOISE = 0.03
"""Within such a part of each other two are level: runs of one contestant differ by more."""
ABSENT = (
    "Not among them: Kauldron 1.4.2 and pythae 0.1.2, which pip had not installed after ten "
    "minutes each, beside other work."
)
Rows = Mapping[str, Mapping[str, Any]]
"""A row for each contestant: its samples and its loss, or why it has failed."""


def opened(options: Any, contestants: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of earlier measurements, to be gone on with, or none yet.

    Raises:
        SystemExit: they were taken on another machine, or otherwise.
    """
    now = facts(options, contestants)
    if not options.json.exists():
        return now
    before = json.loads(options.json.read_text())
    for name in ("machine", "python", "seconds"):
        if before[name] != now[name]:
            raise SystemExit(
                f"{options.json}: {name} is {before[name]}, now {now[name]}; give another --json"
            )
    for home, versions in now["versions"].items():
        for package, version in before["versions"].get(home, {}).items():
            if versions.get(package) != version:
                raise SystemExit(
                    f"{options.json}: {package} is {version}, now {versions.get(package)} in "
                    f"{home}; give another --json"
                )
    for name in ("versions", "titles"):
        before[name].update(now[name])
    return {**before, "sessions": before["sessions"] + now["sessions"]}


def facts(options: Any, contestants: Mapping[str, Any]) -> dict[str, Any]:
    """The machine, the versions, and how is measured."""
    folder = options.environments.absolute()
    versions = {
        each.environment: environments.versions_of(environments.python_of(each.environment, folder))
        for each in contestants.values()
    }
    return {
        "sessions": [
            {
                "date": datetime.now(UTC).isoformat(timespec="seconds"),
                "load_average": os.getloadavg()[0],
            }
        ],
        "machine": f"{os.cpu_count()} CPU cores, {_processor()}",
        "python": platform.python_version(),
        "seconds": options.seconds,
        "minutes": 0.0,
        "titles": {name: each.title for name, each in contestants.items()},
        "versions": versions,
        "results": {},
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


def number(value: float) -> str:
    """In three digits, or all before the point."""
    return f"{value:,.{max(0, 2 - math.floor(math.log10(value)))}f}"


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
            number(median(row, "pace")),
            f"{number(min(paces))} to {number(max(paces))} ({len(paces)})",
            f"{median(row, 'pace') / median(base, 'pace'):.2f}" if base else "",
            number(whole(row)),
            f"{whole(row) / whole(base):.2f}" if base else "",
            f"{row['check']['first_s']:.1f}",
            f"{median(row, 'first_s'):.1f}",
            number(cpu),
            f"{median(row, 'peak_mb'):,.0f}",
            f"{row['loss']:.3f}",
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


def races(found: Mapping[str, Any]) -> Iterator[tuple[str, Rows]]:
    """What is trained in batches of which size, and the rows of that; in the order of tasks."""
    for name, kind in KINDS.items():
        for batch, rows in sorted(
            found["results"].get(name, {}).items(), key=lambda item: int(item[0])
        ):
            yield f"{kind.title}, batch {batch}", rows


def verdict(rows: Rows, titles: Mapping[str, str]) -> str:
    """Who is faster than loopax, said first."""
    if OURS not in measured(rows):
        return "loopax was not measured."
    ours = median(rows[OURS], "pace")
    ratio = {name: median(rows[name], "pace") / ours for name in measured(rows) if name != OURS}
    level = [name for name, by in ratio.items() if abs(by - 1) <= NOISE]
    ahead = [f"{titles[name]} ({by:.2f} times)" for name, by in ratio.items() if by > 1 + NOISE]
    behind = [f"{titles[name]} ({1 / by:.2f})" for name, by in ratio.items() if by < 1 - NOISE]
    lost = f"Faster than loopax: {', '.join(ahead)}" if ahead else "None is faster than loopax"
    drawn = f"; level with it: {', '.join(titles[name] for name in level)}" if level else ""
    won = f"; loopax is faster than {', '.join(behind)}" if behind else ""
    return f"{lost}{drawn}{won}."


def text(found: Mapping[str, Any]) -> str:
    """All tables, in Markdown."""
    said = []
    for race, rows in races(found):
        said += [f"## {race[0].upper()}{race[1:]}", "", verdict(rows, found["titles"]), ""]
        said += [_line(HEADINGS), _line(["---"] + ["--:"] * (len(HEADINGS) - 1))]
        said += [_line(row) for row in lines(rows, found["titles"])]
        said.append("")
    return "\n".join(said)


def quality(found: Mapping[str, Any]) -> str:
    """The table of `benchmarks.quality`, in Markdown, the fastest first."""
    said = [
        f"## Until the test loss is {found['target']:g}",
        "",
        "Whole processes, until the first epoch after which it is reached. Where a command gives "
        "its size of batch and its length, these were chosen for this loss.",
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
    sessions = found["sessions"]
    dates = " and ".join(dict.fromkeys(session["date"][:10] for session in sessions))
    loads = ", ".join(f"{session['load_average']:.1f}" for session in sessions)
    of_quality = quality(found["quality"]) + "\n" if "quality" in found else ""
    path.write_text(
        "# Beside the peers\n\n"
        "Generated by `python -m benchmarks.peers --page docs/peers.md`; "
        "[benchmarks/README.md](../benchmarks/README.md) says what each contestant is.\n\n"
        f"{dates}, {found['machine']}, Python {found['python']}, load average at the start "
        f"{loads}. Medians of runs of about {found['seconds']:g} s, taking turns; "
        f"{found['minutes']:.0f} minutes in all. Steps/s are "
        "those after the first ten seconds; the whole process has all of it, from the start of "
        "Python to its end. The first time to metrics is that of a process that has to compile; in "
        "all others every contestant finds what it has compiled before.\n\n"
        f"![Steps per second]({chart.name})\n\n{text(found)}\n"
        f"{of_quality}{ABSENT}\n\n{listed}.\n"
    )


def draw(found: Mapping[str, Any], path: Path) -> None:
    """A bar for each contestant, a panel for each size of batch, two in a row."""
    import matplotlib.pyplot as plt

    panels = [(race, rows) for race, rows in races(found) if measured(rows)]
    bars_of = [
        max(len(measured(rows)) for _, rows in panels[i : i + 2]) for i in range(0, len(panels), 2)
    ]
    heights = [0.8 + 0.35 * bars for bars in bars_of]
    figure = plt.figure(figsize=(14, sum(heights) + 0.3), layout="constrained")
    axes = figure.subplots(len(heights), 2, squeeze=False, height_ratios=heights).ravel()
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    for axis, (race, rows) in zip(axes, panels, strict=False):
        names = measured(rows)
        paces = [median(rows[name], "pace") for name in names]
        colours = ["#0f766e" if name == OURS else "#cbd5e1" for name in names]
        bars = axis.barh([found["titles"][name] for name in names], paces, 0.68, color=colours)
        axis.bar_label(bars, [number(pace) for pace in paces], padding=5)
        axis.set_title(race, loc="left", fontweight="bold")
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
