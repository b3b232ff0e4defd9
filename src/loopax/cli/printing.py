"""Tables for the terminal."""

from __future__ import annotations

from typing import Any


def table(*columns: str) -> Any:
    """A table whose first column is text and whose others are numbers."""
    from rich.table import Table

    made = Table(*columns[:1])
    for column in columns[1:]:
        made.add_column(column, justify="right")
    return made


def show(content: Any) -> None:
    """Prints it to standard output."""
    from rich.console import Console

    Console().print(content)


def show_results(results: dict[str, dict[str, float]], units: dict[str, str]) -> None:
    """Prints the metrics of each split, with their units."""
    made = table("", *results)
    for name, unit in units.items():
        made.add_row(unit, *(f"{values[name]:.4f}" for values in results.values()))
    show(made)
