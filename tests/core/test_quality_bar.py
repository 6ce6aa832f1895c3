"""A language model of two layers, trained here in seconds: how much worse it may get when it is cut by default."""

from __future__ import annotations

import copy
import functools
import importlib
import inspect

import pytest
import torch
from torch import Tensor, nn

import prunekit as pk

from ..compat.models import Decoder

WINDOW = 32
READ = ("argparse", "collections", "configparser", "csv", "decimal", "inspect", "json", "logging", "pathlib", "shutil")
HELD_OUT = ("calendar", "fractions", "statistics", "tempfile", "textwrap", "zipfile")


def text_of(modules: tuple[str, ...]) -> Tensor:
    """What modules of the standard library say of themselves, printable ASCII from 0: ``[characters]``, int64."""
    found = []
    for name in modules:
        module = importlib.import_module(name)
        members = [value for _, value in sorted(vars(module).items()) if getattr(value, "__module__", "") == name]
        methods = [method for value in members for _, method in sorted(getattr(value, "__dict__", {}).items())]
        found += [inspect.getdoc(value) or "" for value in (module, *members, *filter(inspect.isfunction, methods))]
    return torch.tensor([ord(letter) - 32 for letter in " ".join(found) if 32 <= ord(letter) < 127])


def windows(text: Tensor, count: int, seed: int) -> Tensor:
    """Draws windows with one character more than the model reads, ``[count, WINDOW + 1]``."""
    starts = torch.randint(len(text) - WINDOW, (count,), generator=torch.Generator().manual_seed(seed))
    return text[starts[:, None] + torch.arange(WINDOW + 1)]


def loss(model: nn.Module, drawn: Tensor) -> Tensor:
    """Mean cross entropy of the next character, in nats."""
    logits = model(drawn[:, :-1])["logits"]
    return nn.functional.cross_entropy(logits.flatten(0, 1), drawn[:, 1:].flatten())


@functools.cache
def trained() -> nn.Module:
    torch.manual_seed(0)
    model, text = Decoder(width=48, heads=4, kv_heads=2, words=95), text_of(READ)
    for value in model.parameters():
        if value.dim() == 2:
            nn.init.normal_(value, std=0.5 * value.shape[-1] ** -0.5)
    steps = 400
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=steps)
    for step in range(steps):
        optimizer.zero_grad()
        loss(model, windows(text, 32, step)).backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def held_out_loss(model: nn.Module) -> float:
    with torch.inference_mode():
        return float(loss(model, windows(text_of(HELD_OUT), 512, 1)))


def cut(**options: object) -> nn.Module:
    model = copy.deepcopy(trained())
    pk.prune(model, windows(text_of(READ), 1, 0)[:, :-1], target={"macs": 0.6}, **options)
    return model


def calibration() -> list[Tensor]:
    return list(windows(text_of(READ), 128, 10_000)[:, :-1].split(32))


BAR = 0.06
"""Nats per character that may be lost: four times what was lost at the time of writing."""


@pytest.mark.slow
def test_the_language_model_has_learnt_something() -> None:
    counts = text_of(READ).bincount(minlength=95).double()
    unigram = float(-(counts / counts.sum()).add(1e-9).log() @ (counts / counts.sum()))
    assert held_out_loss(trained()) < unigram - 0.2


@pytest.mark.slow
def test_a_language_model_cut_to_sixty_percent_by_default_keeps_what_it_learnt() -> None:
    assert held_out_loss(cut(calibration=calibration())) < held_out_loss(trained()) + BAR


@pytest.mark.slow
@pytest.mark.parametrize("importance", ["magnitude", "random"])
def test_the_bar_is_one_that_cuts_without_data_do_not_reach(importance: str) -> None:
    assert held_out_loss(cut(importance=importance)) > held_out_loss(trained()) + 2 * BAR
