"""Prune a small vision transformer, check the cut, save it and load it: ``python examples/transformer.py``.

Needs scikit-learn, which brings the data. Takes about ten seconds on a CPU.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
from pathlib import Path

import digits
import torch
from torch import Tensor, nn

import prunekit as pk


class Transformer(nn.Module):
    """PyTorch's own encoder over 16 patches of 2 by 2 pixels."""

    def __init__(self, width: int = 48, heads: int = 4, depth: int = 2) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 2, stride=2)
        self.positions = nn.Parameter(torch.randn(1, 16, width) * 0.3)
        layer = nn.TransformerEncoderLayer(width, heads, 4 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.head = nn.Linear(width, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Takes ``[batch, 1, 8, 8]``, returns ``[batch, 10]``."""
        tokens = self.patches(images).flatten(2).transpose(1, 2) + self.positions
        return self.head(self.encoder(tokens).mean(1))


def main(epochs: int) -> None:
    """Trains, prunes, checks, fine-tunes, saves and loads."""
    torch.manual_seed(0)
    images, labels, *held_out = digits.load()
    model = Transformer()
    digits.train(model, images, labels, epochs, rate=3e-3)
    trained = digits.accuracy(model, *held_out)
    original = copy.deepcopy(model)

    # whole heads leave only where that is asked for; otherwise all heads get narrower
    result = pk.prune(model, images[:1], target={"macs": 0.5}, prune_num_heads=True)
    print(result)

    # the cut model against the original with the removed units set to zero, in double precision
    check = pk.check_exact(original.double(), copy.deepcopy(model).double(), result.plan, held_out[0][:32].double())
    print(check)
    after_cut = digits.accuracy(model, *held_out)
    digits.train(model, images, labels, epochs, rate=3e-3)
    print(
        f"accuracy: {trained:.1%} trained, {after_cut:.1%} after the cut, "
        f"{digits.accuracy(model, *held_out):.1%} fine-tuned"
    )

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "small.safetensors"
        pk.save(model, file, plan=result.plan)  # the weights and the plan
        loaded = pk.load(Transformer().eval(), file)  # a fresh, unpruned model gets the pruned shapes and weights
    same = torch.equal(loaded(held_out[0]), model(held_out[0]))
    print(f"loaded from the file: {'the same outputs' if same else 'OTHER outputs'}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=16, help="passes over the data, before and after the cut")
    main(parser.parse_args().epochs)
