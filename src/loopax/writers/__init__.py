"""Where logged rows go beside the files that every run has; `docs/writers.md` is the guide."""

from loopax.jsonlines import Row, values_of
from loopax.run.writers import Writer
from loopax.writers.clients import MLflow, Trackio, WandB
from loopax.writers.table import CSV

__all__ = ["CSV", "MLflow", "Row", "Trackio", "WandB", "Writer", "values_of"]
