"""A run that begins with the past of another."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from loopax.compute.state import TrainState
from loopax.files import PARTIAL, storing
from loopax.jsonlines import JsonLines, Row
from loopax.run.checkpoint import CheckpointStore
from loopax.run.directory import RunDir
from loopax.run.retention import Checkpoints


def branch_of(
    parent: Mapping[str, Any],
    out: Path,
    config: Mapping[str, Any],
    rows: Iterable[Row],
    state: TrainState,
    meta: Mapping[str, Any],
) -> RunDir:
    """A new run in `out`, where nothing is yet, that begins with a checkpoint.

    Args:
        parent: where its past is from, for `run.json`.
        out: its directory.
        config: its configuration.
        rows: what was logged up to the checkpoint.
        state, meta: the checkpoint, as for `CheckpointStore.save`.
    """
    # A branch that is cut short must not be taken for a run that has yet to begin.
    partial = out.with_name(f"{PARTIAL}{out.name}")
    with storing(out):
        shutil.rmtree(partial, ignore_errors=True)
        run = RunDir.create(partial)
        run.claim(config)
        run.write_json("run.json", {"format": 2, "parent": parent, "starts": []})
        JsonLines(run.metrics_file, kept=rows).close()
        with CheckpointStore(run.checkpoints, Checkpoints()) as store:
            store.save(state, meta, {})
        partial.rename(out)
    return RunDir(out)
