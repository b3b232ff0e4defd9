"""Lines of a test that a comment marks, to be found in what is reported."""

from pathlib import Path


def line_of(file, mark):
    """Where the file has the comment `born: <mark>`."""
    lines = Path(file).read_text().splitlines()
    (number,) = [at for at, text in enumerate(lines, 1) if text.endswith(f"# born: {mark}")]
    return f"{file}:{number}"
