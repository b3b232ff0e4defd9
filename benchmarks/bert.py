"""Fine-tuning BERT beside PyTorch transformers: full steps, and steps of the head alone.

The same architecture (by default that of MiniLM) with random weights, the same batches of padded
texts, AdamW, dropout on, all cores for both; ours runs in the real loop. The two take turns, and
the figures are medians. CPU seconds are those of all threads: on a machine that is shared they
say more than the clock does.

Threads that wait do so without spinning (OMP_WAIT_POLICY=passive): beside other programs PyTorch is
three times slower otherwise. On an idle machine set it to active to see PyTorch at its best.

The head trains on features that are computed anew in each step, without gradient or dropout.
"""

import os
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass

import jax
import numpy as np
import optax

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # which is read when torch is imported

import torch
import transformers
import tyro
from rich.console import Console
from rich.table import Table

import loopax
from loopax.data import Dataset
from loopax.models.bert import BertConfig, BertForSequenceClassification

CLASSES = 2
LEARNING_RATE, WEIGHT_DECAY = 1e-4, 0.01
_open: list[AbstractContextManager[loopax.Run]] = []
"""Trainings that go on for as long as this process runs; one that is dropped ends."""


@dataclass(frozen=True)
class Options:
    layers: int = 6
    hidden: int = 384
    heads: int = 12
    batch: int = 32  # Texts in a step.
    length: int = 128  # Tokens of the longest text, which all are padded to.
    repeats: int = 5  # Samples of each, taken in turn.
    full_steps: int = 2  # Steps in a sample of full fine-tuning.
    head_steps: int = 4  # Steps in a sample of training the head.


def architecture(options: Options) -> BertConfig:
    return BertConfig(
        vocab_size=30_522,
        hidden_size=options.hidden,
        num_hidden_layers=options.layers,
        num_attention_heads=options.heads,
        intermediate_size=4 * options.hidden,
        max_position_embeddings=512,
    )


def texts(options: Options) -> Dataset:
    """Random tokens, half a text at least, and a whole one in each batch."""
    rng, rows = np.random.default_rng(0), 8 * options.batch
    length = rng.integers(options.length // 2, options.length + 1, rows)
    length[:: options.batch] = options.length
    ids = rng.integers(1000, 30_000, (rows, options.length))
    ids[np.arange(options.length)[None] >= length[:, None]] = 0
    columns = {"input_ids": ids, "length": length, "label": rng.integers(0, CLASSES, rows)}
    return Dataset({name: column.astype(np.int32) for name, column in columns.items()})


def ours(options: Options, data: Dataset, *, frozen: bool) -> Callable[[], int]:
    """Runs one chunk of `loopax.training`, and says how many steps that was."""
    model = BertForSequenceClassification(architecture(options), CLASSES)

    def loss_fn(params, batch, rngs):
        ids, rngs = batch["input_ids"], {"dropout": rngs["dropout"]}
        mask = jax.numpy.arange(ids.shape[1])[None] < batch["length"][:, None]
        features = model.apply(
            params, ids, None, mask, deterministic=frozen, method=model.features, rngs=rngs
        )
        logits = model.apply(
            params, features, deterministic=False, method=model.classify, rngs=rngs
        )
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()

    state = loopax.TrainState.create(
        model,
        (data.columns["input_ids"][:1],),
        optax.adamw(LEARNING_RATE, weight_decay=WEIGHT_DECAY),
        frozen=("bert",) if frozen else (),
    )
    training = loopax.training(
        state,
        loss_fn,
        data.batches(options.batch),
        steps=1_000_000,
        log_every=1_000_000,
        probe_every=None,
        chunk_steps=options.head_steps if frozen else options.full_steps,
        progress=False,
    )

    chunks = iter(training.__enter__())
    _open.append(training)

    def run() -> int:
        chunk = next(chunks)
        assert np.isfinite(chunk.metrics["loss"]).all()  # which waits for the device
        return chunk.stop - chunk.start

    return run


def theirs(options: Options, data: Dataset, *, frozen: bool) -> Callable[[], int]:
    """Makes as many steps with PyTorch."""
    config = transformers.BertConfig(**asdict(architecture(options)), num_labels=CLASSES)
    model = transformers.BertForSequenceClassification(config).train()
    if frozen:
        model.bert.eval().requires_grad_(False)
    optimizer = torch.optim.AdamW(
        [parameter for parameter in model.parameters() if parameter.requires_grad],
        lr=LEARNING_RATE,
        weight_decay=WEIGHT_DECAY,
        fused=True,
    )
    columns = {name: torch.tensor(column).long() for name, column in data.columns.items()}
    generator = torch.Generator().manual_seed(0)

    def step() -> float:
        rows = torch.randperm(len(data), generator=generator)[: options.batch]
        mask = (torch.arange(options.length) < columns["length"][rows, None]).long()
        with torch.set_grad_enabled(not frozen):
            features = model.bert(columns["input_ids"][rows], mask).pooler_output
        logits = model.classifier(model.dropout(features))
        loss = torch.nn.functional.cross_entropy(logits, columns["label"][rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    def run() -> int:
        steps = options.head_steps if frozen else options.full_steps
        assert np.isfinite([step() for _ in range(steps)]).all()
        return steps

    return run


def measured(runs: dict[str, Callable[[], int]], repeats: int) -> dict[str, tuple[float, float]]:
    """Seconds and CPU seconds of a step."""
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for repeat in range(-1, repeats):
        for name in list(runs)[:: 1 if repeat % 2 else -1]:
            begun, cpu = time.perf_counter(), time.process_time()
            steps = runs[name]()
            taken = (time.perf_counter() - begun, time.process_time() - cpu)
            if repeat >= 0:  # The first compiles.
                samples[name].append((taken[0] / steps, taken[1] / steps))
    return {
        name: (statistics.median(s for s, _ in taken), statistics.median(c for _, c in taken))
        for name, taken in samples.items()
    }


def main(options: Options) -> None:
    torch.set_num_threads(os.cpu_count() or 1)
    tokens = options.batch * options.length
    title = (
        f"{options.layers} layers x {options.hidden}, {options.batch} x {options.length} tokens, "
        f"{torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}"
    )
    table = Table("training", "with", "tokens/s", "s a step", "CPU s a step", title=title)
    data = texts(options)
    for name, frozen in (("all", False), ("head", True)):
        runs = {
            "loopax": ours(options, data, frozen=frozen),
            "PyTorch": theirs(options, data, frozen=frozen),
        }
        found = measured(runs, options.repeats)
        for library, (seconds, cpu) in found.items():
            table.add_row(name, library, f"{tokens / seconds:,.0f}", f"{seconds:.3f}", f"{cpu:.3f}")
        ratios = [found["PyTorch"][index] / found["loopax"][index] for index in (0, 1)]
        table.add_row("", "ratio", f"{ratios[0]:.2f}", "", f"{ratios[1]:.2f}", end_section=True)
    Console().print(table)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
