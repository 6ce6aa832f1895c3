"""A small mixture of experts for the benchmark of experts, and how it is trained."""

from __future__ import annotations

import hashlib
import inspect

import quality_networks as networks
import quality_tasks as tasks
import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH, HEADS, DEPTH, EXPERTS, HIDDEN, TOP_K = 32, 4, 2, 8, 64, 2
STEPS, BATCH, RATE = 1500, 16, 8e-3
BALANCE = 0.01
"""Weight of the loss that keeps the experts in use (Fedus et al., Switch Transformers, 2022, equation 4)."""


EXPERT_PARAMETERS = 2 * WIDTH * HIDDEN + WIDTH
"""Parameters that leave with an expert: its weights and its row of the router."""


class Experts(nn.Module):
    """Two-layer perceptrons in stacks of weights."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.randn(EXPERTS, WIDTH, HIDDEN) / WIDTH**0.5)
        self.down = nn.Parameter(torch.randn(EXPERTS, HIDDEN, WIDTH) / HIDDEN**0.5 / 3)

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        hidden = F.gelu(torch.einsum("btd,edh->bteh", x, self.up))
        return torch.einsum("bteh,ehd->btd", hidden * weights[..., None], self.down)


class Mixture(nn.Module):
    """A router that sends each token to a few experts, with weights that sum up to 1."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(WIDTH, EXPERTS, bias=False)
        self.experts = Experts()

    def forward(self, x: Tensor) -> Tensor:
        scores = self.router(x).softmax(-1)
        weights, chosen = scores.topk(TOP_K)
        weights = weights / weights.sum(-1, keepdim=True)
        return self.experts(x, torch.zeros_like(scores).scatter(-1, chosen, weights))


class Layer(nn.Module):
    """Attention and a mixture."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attention, self.mixture = networks.CausalAttention(WIDTH, HEADS), Mixture()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mixture(self.norm2(x))


class Decoder(nn.Module):
    """A language model on characters."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(networks.SYMBOLS, WIDTH)
        self.positions = nn.Embedding(networks.CONTEXT, WIDTH)
        self.layers = nn.ModuleList([Layer() for _ in range(DEPTH)])
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, networks.SYMBOLS)
        with torch.no_grad():
            self.tokens.weight *= 0.1
            self.positions.weight *= 0.1

    def forward(self, symbols: Tensor) -> Tensor:
        x = self.tokens(symbols) + self.positions(torch.arange(symbols.shape[1], device=symbols.device))
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x))


PARAMETERS = sum(parameter.numel() for parameter in Decoder().parameters())


def _balance(logits: Tensor) -> Tensor:
    """The experts' parts of the tokens times their mean probabilities: 1 where all are alike."""
    scores = logits.softmax(-1).flatten(0, -2)
    parts = F.one_hot(scores.topk(TOP_K)[1], scores.shape[-1]).float().mean((0, 1))
    return scores.shape[-1] * (parts * scores.mean(0)).sum()


def train(model: nn.Module, task: tasks.Task, seed: int, part: float = 1.0, speed: float = 1.0) -> None:
    """Trains a model in place with AdamW, one cycle of the learning rate and a loss that balances the experts."""
    steps, rate = max(1, round(STEPS * part)), RATE * speed
    generator, seen = torch.Generator().manual_seed(seed), list[Tensor]()
    routers = [module for name, module in model.named_modules() if name.endswith("router")]
    hooks = [router.register_forward_hook(lambda module, args, out: seen.append(out)) for router in routers]
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    model.train()
    for _ in range(steps):
        x, y = task.sample(BATCH, generator)
        optimizer.zero_grad()
        loss = networks.loss(model(x), y).mean()
        (loss + BALANCE * torch.stack([_balance(logits) for logits in seen]).sum()).backward()
        seen.clear()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    for hook in hooks:
        hook.remove()
    model.eval()


def trained(task: tasks.Task, seed: int) -> Decoder:
    """Trains the network, or takes it from the folder of trained ones."""
    torch.manual_seed(seed)
    model = Decoder()
    x, _ = task.sample(8, torch.Generator().manual_seed(0))
    code = inspect.getsource(inspect.getmodule(trained))  # type: ignore[arg-type]
    digest = hashlib.sha256(f"{code}{torch.__version__}{x.tolist()}".encode()).hexdigest()[:12]
    file = tasks.CACHE / f"experts-{seed}-{digest}.pt"
    if file.exists():
        model.load_state_dict(torch.load(file, weights_only=True))
    else:
        train(model, task, seed)
        tasks.CACHE.mkdir(parents=True, exist_ok=True)
        torch.save(model.state_dict(), file)
    return model.eval()
