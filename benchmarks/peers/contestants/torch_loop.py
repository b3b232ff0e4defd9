"""PyTorch by hand, images in memory, a fused optimiser; `COMPILED` puts `torch.compile` around loss
and network."""

import os

import torch
from benchmarks.peers.contestants.base import Clock, contest
from benchmarks.peers.contestants.pytorch import model_of, optimizer_of, taken, tensors_of
from benchmarks.peers.task import Task, Weights


def train(task: Task, clock: Clock) -> Weights:
    torch.manual_seed(0)
    columns = tensors_of(task)
    count = len(columns[0])
    model, loss_fn = model_of(task)
    optimizer = optimizer_of(model)
    if os.environ.get("COMPILED"):
        loss_fn = torch.compile(loss_fn)
    step, totals = 0, 0
    while step < task.steps:
        order = torch.randperm(count)
        for rows in order[: count // task.batch * task.batch].view(-1, task.batch):
            metrics = loss_fn(model, *(column[rows] for column in columns))
            optimizer.zero_grad(set_to_none=True)
            metrics["loss"].backward()
            optimizer.step()
            totals += torch.stack(list(metrics.values())).detach()
            step += 1
            if step % task.every == 0:
                (totals / task.every).tolist()
                totals = 0
                clock(step)
            if step == task.steps:
                break
        clock.epoch(lambda: taken(model, task))
    clock(step)
    return taken(model, task)


if __name__ == "__main__":
    contest(train)
