"""The article's loop: a DataLoader over image objects, a jitted step for each batch, a print each
100 steps. Its loader needs PyTorch."""

import os
from functools import partial

import jax
import numpy as np
import torch
from benchmarks.peers.contestants.base import Clock, contest
from benchmarks.peers.contestants.linen import given, loss_of, optimizer, taken
from benchmarks.peers.task import Task, Weights
from flax.training.train_state import TrainState
from PIL import Image


class Digits(torch.utils.data.Dataset):
    def __init__(self, images, labels):
        self.images, self.labels = images, labels

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        image = Image.fromarray(self.images[index].reshape(28, 28))
        # What torchvision's ToTensor does.
        tensor = torch.from_numpy(np.array(image)).view(28, 28, 1).permute(2, 0, 1).contiguous()
        return tensor.to(torch.float32).div(255), int(self.labels[index])


loss_fn = loss_of("article")


@jax.jit
def train_step(state, image, label, key):
    rngs = {"noise": jax.random.fold_in(key, state.step)}
    batch = {"image": image, "label": label}
    (loss, aux), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params, batch, rngs)
    return state.apply_gradients(grads=grads), loss, aux["mse"], aux["kl"]


def train(task: Task, clock: Clock) -> Weights:
    data = Digits(*task.columns().values())
    loader = torch.utils.data.DataLoader(data, task.batch, shuffle=True, drop_last=True)
    state = TrainState.create(apply_fn=None, params=given(task.weights()), tx=optimizer)
    key, step, totals = jax.random.key(0), 0, [0.0, 0.0, 0.0]
    with open(os.devnull, "w") as screen:
        while step < task.steps:
            for image, label in loader:
                image = image.numpy().reshape(task.batch, 784)
                state, *metrics = train_step(state, image, label.numpy(), key)
                totals = [total + value for total, value in zip(totals, metrics, strict=True)]
                step += 1
                if step % 100 == 0:
                    print(step, *(f"{total / 100:.4f}" for total in totals), file=screen)
                    totals = [0.0, 0.0, 0.0]
                    clock(step)
                if step == task.steps:
                    break
            clock.epoch(partial(taken, state.params))
    jax.block_until_ready(state)
    clock(step)
    return taken(state.params)


if __name__ == "__main__":
    contest(train)
