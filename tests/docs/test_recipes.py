"""The recipes run as their pages say, and what they measure is what the table of them says."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch

import prunekit as pk
from tests.docs.snippets import ROOT, run_document

FOLDER = ROOT / "docs/recipes"
TABLE = (ROOT / "docs/recipes.md").read_text()


@attrs.frozen
class Bar:
    """What a recipe has to reach.

    Attributes:
        macs: Part of the MACs that is left.
        sign: 1 where more is better, -1 where less is.
        trained: What the uncut model reaches at least (at most, where less is better).
        cut: What is lost at most right after the cut.
        healed: What is lost at most after distillation.
        without_data: What a cut without data loses at least: the task is none that survives anything.
    """

    macs: float
    sign: int
    trained: float
    cut: float
    healed: float
    without_data: float

    def check(self, trained: float, cut: float, healed: float, without_data: float) -> None:
        def lost(figure: float) -> float:
            return self.sign * (trained - figure)

        assert self.sign * (trained - self.trained) >= 0
        assert lost(cut) <= self.cut
        assert lost(healed) <= self.healed
        assert lost(without_data) >= self.without_data


BARS = {
    "detector": Bar(0.3, 1, trained=0.93, cut=0.2, healed=0.04, without_data=0.5),
    "diffusion": Bar(0.4, -1, trained=0.19, cut=0.06, healed=0.01, without_data=0.15),
    "speech": Bar(0.3, 1, trained=0.9, cut=0.03, healed=0.015, without_data=0.2),
}


@pytest.fixture(autouse=True)
def _one_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    with torch.random.fork_rng(devices=[]):
        yield


@pytest.mark.slow
@pytest.mark.parametrize("name", BARS)
def test_a_recipe_cuts_and_heals_what_it_trained(name: str) -> None:
    if name == "detector":
        pytest.importorskip("torchvision", reason="needs prunekit[vision]")
    if name == "diffusion":
        pytest.importorskip("sklearn", reason="needs prunekit[demo]")
    names: dict[str, Any] = {}
    run_document((FOLDER / f"{name}.md").read_text(), f"docs/recipes/{name}.md", names)
    bar, result = BARS[name], names["result"]
    assert isinstance(result, pk.PruneResult)
    before, after = result.preview.costs["macs"]
    assert after <= bar.macs * before
    held = sum(parameter.numel() for parameter in names["model"].parameters())
    assert held == result.preview.params_after < 0.35 * result.preview.params_before
    bar.check(*(names[figure] for figure in ("trained", "cut", "healed", "without_data")))


def rows() -> dict[str, list[float]]:
    """The figures in the table, by the name of the page."""
    found = re.findall(r"^\| \[(\w+)\]\(recipes/\1\.md\) \|.*?\|(.*) \|$", TABLE, flags=re.MULTILINE)
    return {
        name: [float(cell.rstrip(" %")) / (100 if "%" in cell else 1) for cell in text.split(" | ")]
        for name, text in found
    }


def test_the_table_has_every_recipe_and_figures_that_pass() -> None:
    found = rows()
    assert sorted(found) == sorted(BARS) == sorted(path.stem for path in FOLDER.glob("*.md"))
    for name, (macs, _, *figures) in found.items():
        assert macs == BARS[name].macs
        BARS[name].check(*figures)


@pytest.mark.parametrize("figures", [(0.8, 0.8, 0.8, 0.1), (0.95, 0.7, 0.95, 0.1), (0.95, 0.9, 0.9, 0.1)])
def test_a_recipe_that_reaches_less_is_told(figures: tuple[float, ...]) -> None:
    with pytest.raises(AssertionError):
        BARS["detector"].check(*figures)
