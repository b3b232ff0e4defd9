"""The networks in PyTorch and their losses: for the contestants that use them."""

from collections.abc import Callable

import numpy as np
import torch
from benchmarks.peers.task import LEARNING_RATE, WEIGHT_DECAY, Task, Weights
from benchmarks.peers.tasks import bert
from benchmarks.peers.tasks.vae import KL_WEIGHT, LAYERS, SMALL
from torch import nn
from torch.nn import functional


class VAE(nn.Module):
    def __init__(self):
        super().__init__()
        for name, shape in LAYERS["article"].items():
            self.add_module(name, nn.Linear(*shape))

    def forward(self, image, label):
        mean, logvar = self.code(self.encoded(image)).chunk(2, -1)
        latent = self.latent(mean + torch.exp(0.5 * logvar) * torch.randn_like(mean))
        one_hot = functional.one_hot(label, 10).to(image.dtype)
        hidden = functional.relu(latent + self.label(one_hot))
        return self.decoded(hidden), mean, logvar

    def encoded(self, hidden):
        for layer in (self.enc0, self.enc1, self.enc2):
            hidden = functional.relu(layer(hidden))
        return hidden

    def decoded(self, hidden):
        for layer in (self.dec0, self.dec1, self.dec2):
            hidden = functional.relu(layer(hidden))
        return hidden


class ConvVAE(VAE):
    """Channels come last, as in all others, which is PyTorch's faster way as well."""

    def __init__(self):
        nn.Module.__init__(self)
        for name, (*window, inputs, outputs) in LAYERS["conv"].items():
            if not window:
                layer = nn.Linear(inputs, outputs)
            elif name.startswith("enc"):
                layer = nn.Conv2d(inputs, outputs, 4, 2, 1)
            else:
                layer = nn.ConvTranspose2d(outputs, inputs, 4, 2, 1)
            self.add_module(name, layer)
        self.to(memory_format=torch.channels_last)

    def encoded(self, hidden):
        hidden = hidden.view(-1, 28, 28, 1).permute(0, 3, 1, 2)
        for layer in (self.enc0, self.enc1):
            hidden = functional.relu(layer(hidden))
        return hidden.permute(0, 2, 3, 1).flatten(1)

    def decoded(self, hidden):
        hidden = hidden.view(-1, *SMALL).permute(0, 3, 1, 2)
        for layer in (self.dec0, self.dec1):
            hidden = functional.relu(layer(hidden))
        return hidden.flatten(1)  # Of a single channel.


def vae_loss(model: nn.Module, image: torch.Tensor, label: torch.Tensor):
    """The metrics of a batch of uint8 images, the loss first."""
    image = image.float() / 255
    reconstruction, mean, logvar = model(image, label)
    mse = (0.5 * (reconstruction - image) ** 2).sum(-1).mean()
    kl = 0.5 * (torch.exp(logvar) + mean**2 - 1 - logvar).sum(-1).mean()
    return {"loss": mse + KL_WEIGHT * kl, "mse": mse, "kl": kl}


def bert_loss(model: nn.Module, ids: torch.Tensor, length: torch.Tensor, label: torch.Tensor):
    mask = torch.arange(ids.shape[1]) < length[:, None]
    logits = model(input_ids=ids, attention_mask=mask.long()).logits
    accuracy = (logits.argmax(-1) == label).float().mean()
    return {"loss": functional.cross_entropy(logits, label), "accuracy": accuracy}


def model_of(task: Task) -> tuple[nn.Module, Callable]:
    """The network with its initial values, and the loss: a function of it and the columns."""
    if task.name in bert.CONFIG:
        import transformers

        config = transformers.BertConfig(**bert.CONFIG[task.name], num_labels=bert.CLASSES)
        model, loss = transformers.BertForSequenceClassification(config).train(), bert_loss
    else:
        model, loss = {"article": VAE, "conv": ConvVAE}[task.name](), vae_loss
    with torch.no_grad():
        for name, arrays in task.weights().items():
            layer = model.get_submodule(name)
            for parameter, array in zip(layer.parameters(), arrays, strict=True):
                parameter.copy_(torch.from_numpy(turned(array, layer, (3, 2, 0, 1))))
    return model, loss


def tensors_of(task: Task) -> list[torch.Tensor]:
    """The data; PyTorch wants whole numbers of 64 bits for labels and indices."""
    tensors = map(torch.from_numpy, task.columns().values())
    return [each if each.dtype == torch.uint8 else each.long() for each in tensors]


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(
        model.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY, eps=1e-8, fused=True
    )


def taken(model: nn.Module, task: Task) -> Weights:
    found = {}
    for name in task.weights():
        layer = model.get_submodule(name)
        arrays = (parameter.detach().numpy() for parameter in layer.parameters())
        found[name] = tuple(turned(array, layer, (2, 3, 1, 0)) for array in arrays)
    return found


def turned(array: np.ndarray, layer: nn.Module, axes: tuple[int, ...]) -> np.ndarray:
    """A kernel as the other side holds it; `axes` are of a convolution."""
    if isinstance(layer, nn.Embedding) or array.ndim == 1:
        return array
    return array.T if array.ndim == 2 else array.transpose(axes)
