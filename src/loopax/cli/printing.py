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

    # Names of classes are the user's own: `[red]` in them is no colour.
    Console(markup=False, emoji=False).print(content)


def show_tables(tables: Any) -> None:
    """Prints tables of a title, columns and rows."""
    for each in tables:
        made = table(*each.columns)
        made.title = each.title
        made.title_justify = "left"
        for row in each.rows:
            made.add_row(*row)
        show(made)
