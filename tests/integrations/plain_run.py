"""A training of one's own on the digits, which writes checkpoints and may be killed: ``plain_run FOLDER DIE_AFTER``."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from prunekit_plugins.cli.commands.demo import data, networks
from prunekit_plugins.integrations import TrainingPruner
from prunekit_plugins.pruners import GrowingRegPruner

STEPS = 12
AT = (3, 6, 10)


class Run:
    """Everything that a training has, as it is at the start."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.digits = data.load(0)
        self.model = networks.ConvNet(8)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=2e-3)
        self.scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, STEPS)
        self.average = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(0.8), use_buffers=True)
        self.pruner = GrowingRegPruner(
            self.model, self.digits.images[:2], pruning_ratio=0.5, iterative_steps=3, delta_reg=1e-3
        )
        self.training = TrainingPruner(self.pruner, AT, optimizer=self.optimizer, copies=[self.average], grow_every=2)
        self.losses: list[float] = []
        self.done = 0

    def parts(self) -> dict[str, nn.Module | torch.optim.Optimizer | torch.optim.lr_scheduler.LRScheduler]:
        return {
            "model": self.model, "optimizer": self.optimizer, "scheduler": self.scheduler, "average": self.average
        }  # fmt: skip

    def save(self, path: Path) -> None:
        states = {name: part.state_dict() for name, part in self.parts().items()}
        torch.save({"done": self.done, "pruning": self.training.state_dict(), **states}, path)

    def resume(self, path: Path) -> None:
        state = torch.load(path, weights_only=True)
        self.training.load_state_dict(state["pruning"])
        for name, part in self.parts().items():
            part.load_state_dict(state[name])
        self.done = state["done"]

    def go(self, until: int = STEPS) -> None:
        while self.done < until:
            self.done += 1
            batch = torch.randint(0, 1000, (32,), generator=torch.Generator().manual_seed(self.done))
            self.optimizer.zero_grad()
            loss = F.cross_entropy(self.model(self.digits.images[batch]), self.digits.labels[batch])
            loss.backward()
            self.training.regularize()
            self.optimizer.step()
            self.scheduler.step()
            self.average.update_parameters(self.model)
            self.training.after(self.done)
            self.losses.append(float(loss.detach()))


if __name__ == "__main__":
    torch.set_num_threads(1)
    run, folder = Run(), Path(sys.argv[1])
    for step in range(1, STEPS + 1):
        run.go(step)
        if step % 4 == 0:
            run.save(folder / f"{step}.pt")
        if step == int(sys.argv[2]):
            os.kill(os.getpid(), signal.SIGKILL)
