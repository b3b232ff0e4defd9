"""Lightning with its defaults: progress bar, CSV log, a checkpoint. Its loader takes whole
batches of tensors at once, which is faster than its usual one."""

import tempfile

import lightning
import torch
from benchmarks.peers.contestants.base import Clock, contest
from benchmarks.peers.contestants.pytorch import VAE, losses, optimizer_of, taken
from benchmarks.peers.task import Task, Weights
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset


class Module(lightning.LightningModule):
    def __init__(self, weights: Weights):
        super().__init__()
        self.model = VAE(weights)

    def training_step(self, batch, index):
        loss, mse, kl = losses(self.model, *batch)
        self.log_dict({"loss": loss, "mse": mse, "kl": kl})
        return loss

    def configure_optimizers(self):
        return optimizer_of(self.model)


class Ticks(lightning.Callback):
    def __init__(self, clock: Clock):
        self.clock = clock

    def on_train_batch_end(self, trainer, module, outputs, batch, index):
        if trainer.global_step % 100 == 0:
            self.clock(trainer.global_step)

    def on_train_epoch_end(self, trainer, module):
        self.clock.epoch(lambda: taken(module.model))


def train(task: Task, clock: Clock) -> Weights:
    lightning.seed_everything(0)
    images, labels = map(torch.from_numpy, task.images())
    data = TensorDataset(images, labels.long())
    batches = BatchSampler(RandomSampler(data), task.batch, drop_last=True)
    module = Module(task.weights())
    with tempfile.TemporaryDirectory() as folder:
        trainer = lightning.Trainer(
            accelerator="cpu",
            max_steps=task.steps,
            max_epochs=-1,
            logger=CSVLogger(folder),
            log_every_n_steps=100,
            default_root_dir=folder,
            callbacks=[Ticks(clock)],
        )
        trainer.fit(module, DataLoader(data, sampler=batches, batch_size=None))
    clock(task.steps)
    return taken(module.model)


if __name__ == "__main__":
    contest(train)
