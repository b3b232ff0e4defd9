"""PyTorch by hand, images in memory, a fused optimiser; `COMPILED` puts `torch.compile` around loss
and network."""

import os

import torch
from benchmarks.peers.contestants.base import Clock, contest
from benchmarks.peers.contestants.pytorch import VAE, losses, optimizer_of, taken
from benchmarks.peers.task import Task, Weights


def train(task: Task, clock: Clock) -> Weights:
    torch.manual_seed(0)
    images, labels = map(torch.from_numpy, task.images())
    labels = labels.long()
    model = VAE(task.weights())
    optimizer = optimizer_of(model)
    loss_fn = torch.compile(losses) if os.environ.get("COMPILED") else losses
    step, totals = 0, torch.zeros(3)
    while step < task.steps:
        order = torch.randperm(len(labels))
        for rows in order[: len(order) // task.batch * task.batch].view(-1, task.batch):
            loss, mse, kl = loss_fn(model, images[rows], labels[rows])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            totals += torch.stack((loss, mse, kl)).detach()
            step += 1
            if step % 100 == 0:
                (totals / 100).tolist()
                totals.zero_()
                clock(step)
            if step == task.steps:
                break
        clock.epoch(lambda: taken(model))
    clock(step)
    return taken(model)


if __name__ == "__main__":
    contest(train)
