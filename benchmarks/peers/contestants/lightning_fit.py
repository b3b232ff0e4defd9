"""Lightning with its defaults: progress bar, CSV log, a checkpoint. Its loader takes whole
batches of tensors at once, which is faster than its usual one."""

import tempfile

import lightning
from benchmarks.peers.contestants.base import Clock, contest
from benchmarks.peers.contestants.pytorch import model_of, optimizer_of, taken, tensors_of
from benchmarks.peers.task import Task, Weights
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset


class Module(lightning.LightningModule):
    def __init__(self, task: Task):
        super().__init__()
        self.model, self.loss = model_of(task)

    def training_step(self, batch, index):
        metrics = self.loss(self.model, *batch)
        self.log_dict(metrics)
        return metrics["loss"]

    def configure_optimizers(self):
        return optimizer_of(self.model)


class Ticks(lightning.Callback):
    def __init__(self, clock: Clock):
        self.clock = clock

    def on_train_batch_end(self, trainer, module, outputs, batch, index):
        if trainer.global_step % self.clock.task.every == 0:
            self.clock(trainer.global_step)

    def on_train_epoch_end(self, trainer, module):
        self.clock.epoch(lambda: taken(module.model, self.clock.task))


def train(task: Task, clock: Clock) -> Weights:
    lightning.seed_everything(0)
    data = TensorDataset(*tensors_of(task))
    batches = BatchSampler(RandomSampler(data), task.batch, drop_last=True)
    module = Module(task)
    with tempfile.TemporaryDirectory() as folder:
        trainer = lightning.Trainer(
            accelerator="cpu",
            max_steps=task.steps,
            max_epochs=-1,
            logger=CSVLogger(folder),
            log_every_n_steps=task.every,
            default_root_dir=folder,
            callbacks=[Ticks(clock)],
        )
        trainer.fit(module, DataLoader(data, sampler=batches, batch_size=None))
    clock(task.steps)
    return taken(module.model, task)


if __name__ == "__main__":
    contest(train)
