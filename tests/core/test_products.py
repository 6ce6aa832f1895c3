"""How far outputs of a large vocabulary differ, found without making them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import prunekit as pk
from prunekit.plugin import default_registry
from prunekit_plugins.calibration import products
from prunekit_plugins.calibration.batches import Batches
from prunekit_plugins.calibration.observation import Watched
from prunekit_plugins.calibration.products import Grams, Product
from prunekit_plugins.compensation.side_by_side import SideBySide

WORDS = 60


class Language(nn.Module):
    """Token ids in, scores of words out; what is done to these is told by name."""

    def __init__(self, kind: str = "", *, bias: bool = False) -> None:
        super().__init__()
        self.kind = kind
        self.embed, self.up, self.down = nn.Embedding(WORDS, 12), nn.Linear(12, 24), nn.Linear(24, 12)
        self.head = nn.Linear(12, WORDS, bias=bias)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Any:
        x = self.embed(input_ids)
        x = x + self.down(self.up(x).relu())
        scores = self.head(x)
        if self.kind == "capped":
            return scores.tanh()
        if self.kind == "written":
            x.mul_(2)
        return (scores, x) if self.kind == "both" else scores


def language(kind: str = "", *, bias: bool = False) -> Language:
    torch.manual_seed(0)
    return Language(kind, bias=bias).eval()


def texts(*, masked: bool = False) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    found = [{"input_ids": torch.randint(WORDS, (2, 9), generator=generator)} for _ in range(6)]
    for number, batch in enumerate(found if masked else ()):
        batch["attention_mask"] = (torch.arange(9) < 9 - number).long().expand(2, 9)
    return found


def outputs(model: nn.Module, batch: dict[str, Tensor]) -> list[Tensor]:
    """What a model returns at the positions that count."""
    with torch.no_grad():
        found = model(**batch)
    mask = batch.get("attention_mask", torch.ones_like(batch["input_ids"])).bool()
    return [one.double()[mask] for one in (found if isinstance(found, tuple) else (found,))]


def error(model: nn.Module, original: nn.Module, batches: list[dict[str, Tensor]]) -> float:
    pairs = [pair for one in batches for pair in zip(outputs(original, one), outputs(model, one), strict=True)]
    return float(sum((a - b).square().sum() for a, b in pairs) / sum(a.square().sum() for a, _ in pairs))


@pytest.fixture
def times(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """A vocabulary of `WORDS` is a large one; how often its scores were made, and how often they weren't."""
    monkeypatch.setattr(products, "MANY", WORDS)
    counts = {"made": 0, "not made": 0}
    made, squares = Product.made, Grams.squares

    def counted_made(self: Product) -> Tensor:
        counts["made"] += 1
        return made(self)

    def counted_squares(self: Grams, features: Tensor, weight: Tensor) -> float:
        counts["not made"] += 1
        return squares(self, features, weight)

    monkeypatch.setattr(Product, "made", counted_made)
    monkeypatch.setattr(Grams, "squares", counted_squares)
    return counts


def check(model: Language, batches: list[dict[str, Tensor]], *, stream: bool = False) -> None:
    """Compares the errors that a report tells with those of the outputs, as cut and as compensated."""
    original, plain = copy.deepcopy(model), copy.deepcopy(model)
    kept = [] if stream else ["embed"]  # which the head's features are tied to

    def prune(model: Language, **options: Any) -> pk.Compensation | None:
        return pk.prune(
            model, batches[0], ratio=0.5, calibration=batches, ignored_layers=kept, verify="never", **options
        ).compensation

    found = prune(model)
    prune(plain, compensation=None, reestimate_batchnorm=False)
    assert found is not None
    told = (error(plain, original, batches), error(model, original, batches))
    assert found.output_error == pytest.approx(told, rel=1e-5)
    assert found.output_error[1] < found.output_error[0]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("kind", ["", "both"])
def test_the_error_is_that_of_outputs_that_are_never_made(times: dict[str, int], kind: str, masked: bool) -> None:
    batches = texts(masked=masked)
    check(language(kind), batches)
    # twice each, but when the first batch is written down
    assert times == {"made": 0, "not made": 2 * (len(batches) - 1) + 2 * len(batches)}


@pytest.mark.parametrize("kind", ["capped", "written"])
def test_outputs_that_something_else_uses_or_that_more_follows_are_made(times: dict[str, int], kind: str) -> None:
    check(language(kind), texts())
    assert times == {"made": 0, "not made": 0}


def test_outputs_of_a_layer_with_a_bias_are_made(times: dict[str, int]) -> None:
    check(language(bias=True), texts())
    assert times == {"made": 0, "not made": 0}


def test_outputs_of_two_weights_are_made(times: dict[str, int]) -> None:
    """The cut takes features away from the head."""
    check(language(), texts(), stream=True)
    assert times["not made"] == 0 < times["made"]


def test_outputs_for_a_few_samples_are_made(times: dict[str, int]) -> None:
    """The products of the weight would take longer."""
    check(language(), [{"input_ids": torch.tensor([[number, number + 3]])} for number in range(5)])
    assert times["not made"] == 0 < times["made"]


def test_outputs_that_are_not_finite_any_more_are_no_zero_error(times: dict[str, int]) -> None:
    model = language()
    small = copy.deepcopy(model)
    with torch.no_grad():
        small.down.bias[0] = torch.nan
    small.head.weight = model.head.weight
    registry, batches = default_registry(), Batches(texts())
    both = SideBySide(Watched(model, registry), small, batches, registry, None)
    assert not both.output_error() < 1
    assert not both.output_error() < 1, "goes on with what is known of the first time"
    assert times["not made"] == 0 < times["made"]


def test_squares_of_many_outputs_are_those_of_the_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "ROWS", 7)
    torch.manual_seed(0)
    features, weight, grams = torch.randn(2, 5, 8), torch.randn(40, 8), Grams()
    expected = float((features.double() @ weight.double().T).square().sum())
    assert grams.squares(features, weight) == pytest.approx(expected, rel=1e-12)
    assert grams.of(weight) is grams.of(weight)
    other = weight[:20]  # in the same memory
    assert grams.squares(features, other) == pytest.approx(
        float((features.double() @ other.double().T).square().sum()), rel=1e-12
    )
