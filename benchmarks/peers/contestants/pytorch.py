"""The network in PyTorch and its loss: for the contestants that use it."""

import torch
from benchmarks.peers.task import KL_WEIGHT, LAYERS, LEARNING_RATE, WEIGHT_DECAY, Weights
from torch import nn
from torch.nn import functional


class VAE(nn.Module):
    def __init__(self, weights: Weights):
        super().__init__()
        self.layers = nn.ModuleDict({name: nn.Linear(*shape) for name, shape in LAYERS.items()})
        with torch.no_grad():
            for name, (matrix, bias) in weights.items():
                self.layers[name].weight.copy_(torch.from_numpy(matrix.T))
                self.layers[name].bias.copy_(torch.from_numpy(bias))

    def forward(self, image, label):
        hidden = image
        for name in ("enc0", "enc1", "enc2"):
            hidden = functional.relu(self.layers[name](hidden))
        mean, logvar = self.layers["code"](hidden).chunk(2, -1)
        latent = self.layers["latent"](mean + torch.exp(0.5 * logvar) * torch.randn_like(mean))
        one_hot = functional.one_hot(label, 10).to(image.dtype)
        hidden = functional.relu(latent + self.layers["label"](one_hot))
        for name in ("dec0", "dec1", "dec2"):
            hidden = functional.relu(self.layers[name](hidden))
        return hidden, mean, logvar


def losses(model: nn.Module, image: torch.Tensor, label: torch.Tensor):
    """The loss of a batch of uint8 images, and its two parts."""
    image = image.float() / 255
    reconstruction, mean, logvar = model(image, label)
    mse = (0.5 * (reconstruction - image) ** 2).sum(-1).mean()
    kl = 0.5 * (torch.exp(logvar) + mean**2 - 1 - logvar).sum(-1).mean()
    return mse + KL_WEIGHT * kl, mse, kl


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(
        model.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY, eps=1e-8, fused=True
    )


def taken(model: VAE) -> Weights:
    layers = model.layers.items()
    return {n: (x.weight.detach().numpy().T, x.bias.detach().numpy()) for n, x in layers}
