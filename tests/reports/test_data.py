"""What a report says is compared with what is known otherwise: modules, profilers, the plan itself."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import prunekit as pk
from prunekit import plugin
from prunekit_plugins.cli.listing import print_report
from prunekit_plugins.reports import (
    ReportData,
    inspection_data,
    report_data,
    to_html,
    to_json,
    to_markdown,
    write_report,
)
from prunekit_plugins.reports.sections import number, sections, shape, share
from tests.models import Residual

HOSTILE = "<img src=x onerror=alert(1)>|*&"


class Hostile(nn.Module):
    """Module names are strings that anybody may choose."""

    def __init__(self) -> None:
        super().__init__()
        self.add_module(HOSTILE, nn.Linear(4, 8))
        self.last = nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.get_submodule(HOSTILE)(x).relu())


@pytest.fixture(scope="module")
def residual() -> tuple[nn.Module, nn.Module, pk.PruneResult]:
    torch.manual_seed(0)
    model, x = Residual().eval(), torch.randn(1, 3, 8, 8)
    original = copy.deepcopy(model)
    return original, model, pk.prune(model, x, 0.5)


def flops(model: nn.Module) -> dict[str, float]:
    counter = FlopCounterMode(display=False)
    with counter:
        model(torch.randn(1, 3, 8, 8))
    return {name.partition(".")[2]: sum(counts.values()) for name, counts in counter.get_flop_counts().items()}


def test_layers_are_those_of_the_models(residual: tuple[nn.Module, nn.Module, pk.PruneResult]) -> None:
    original, pruned, result = residual
    data = report_data(result)
    before, after = flops(original), flops(pruned)
    own = {
        name: (list(module.parameters(recurse=False)), list(pruned.get_submodule(name).parameters(recurse=False)))
        for name, module in original.named_modules()
    }
    assert [layer.name for layer in data.layers] == [name for name, (parameters, _) in own.items() if parameters]
    for layer in data.layers:
        old, new = own[layer.name]
        assert layer.kind == type(original.get_submodule(layer.name)).__name__
        assert layer.params == (sum(p.numel() for p in old), sum(p.numel() for p in new))
        largest = max(range(len(old)), key=lambda place: old[place].numel())
        assert (layer.before, layer.after) == (tuple(old[largest].shape), tuple(new[largest].shape))
        assert layer.macs == (before.get(layer.name, 0) / 2, after.get(layer.name, 0) / 2)
    assert sum(layer.macs[0] for layer in data.layers) == data.costs["macs"][0] > 0
    assert sum(layer.params[1] for layer in data.layers) == data.costs["params"][1]


def test_groups_are_those_of_the_plan(residual: tuple[nn.Module, nn.Module, pk.PruneResult]) -> None:
    _, _, result = residual
    data = report_data(result)
    assert [group.name for group in data.groups] == [group.name for group in result.graph.groups()]
    for group in data.groups:
        known = result.graph.analysis.groups[group.name]
        assert (group.before, group.kept) == (known.size, result.plan.kept.get(group.name, ()))
        assert group.after == len(group.kept)
        assert [(m.parameter, m.dim, m.role) for m in group.members] == [
            (m.parameter, m.dim, m.role.value) for m in known.members
        ]
        assert group.ties == result.graph.explain("").operations[group.name]
        assert group.ties[0].startswith("aten::conv2d in ")
    assert data.pinned == result.report.pinned
    assert data.protocol["versions"]["torch"] == torch.__version__


def test_positions_of_units_inside_of_packed_dims() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), nn.Linear(16, 3))
    original = copy.deepcopy(model)
    result = pk.prune(model, torch.randn(2, 5, 16))
    data = report_data(result)
    found = 0
    for group in data.groups:
        for member in group.members:
            if group.kept and member.removed is not None:
                size = original.get_parameter(member.parameter).shape[member.dim]
                gone = [position for start, stop in member.removed for position in range(start, stop)]
                alone = {group.name: group.kept}
                stay = result.graph.analysis.parameters[member.parameter].positions(alone)[member.dim].tolist()
                assert sorted([*gone, *stay]) == list(range(size))
                found += 1
    assert found >= 4  # queries and keys share one group, packed rows and biases


def test_an_inspection_before_anything_is_pruned() -> None:
    model, x = Residual().eval(), torch.randn(1, 3, 8, 8)
    graph = pk.DependencyGraph().build_dependency(model, x)
    data = inspection_data(graph)
    assert not data.pruned
    size = float(sum(p.numel() for p in model.parameters()))
    assert data.costs == {"params": (size, size)}
    assert all(layer.before == layer.after for layer in data.layers)
    assert all(group.before == group.after and not group.kept for group in data.groups)
    assert "inspected" in to_markdown(data).splitlines()[0]


def test_json_holds_everything(residual: tuple[nn.Module, nn.Module, pk.PruneResult]) -> None:
    curves = {"a": {0.25: 0.5}}
    data = report_data(residual[2], title="mine", sensitivity=curves, metric="error")
    loaded = json.loads(to_json(data))
    assert loaded["format"] == 1
    assert (loaded["title"], loaded["metric"], loaded["sensitivity"]) == ("mine", "error", {"a": {"0.25": 0.5}})
    assert loaded["groups"][0]["kept"] == list(data.groups[0].kept)
    assert loaded["layers"][0]["before"] == list(data.layers[0].before or ())
    assert loaded.keys() == {"format", *ReportData.__annotations__}


def test_a_measured_sensitivity(residual: tuple[nn.Module, nn.Module, pk.PruneResult]) -> None:
    curves = (plugin.Curve(("a", "b"), (0.25, 0.5), (0.1, 0.4)), plugin.Curve(("c",), (0.5,), (2.0,)))
    measured = pk.Sensitivity(curves, "output error", {"a": 4, "b": 4, "c": 8}, 16)
    data = report_data(residual[2], sensitivity=measured)
    assert data.sensitivity == {"a": {0.25: 0.1, 0.5: 0.4}, "b": {0.25: 0.1, 0.5: 0.4}, "c": {0.5: 2.0}}
    assert data.metric == "output error"
    assert report_data(residual[2], sensitivity=measured, metric="mine").metric == "mine"
    (section,) = [section for section in sections(data) if section.key == "sensitivity"]
    assert section.rows == (("a", "0.1", "0.4"), ("b", "0.1", "0.4"), ("c", "-", "2"))


def test_every_section_is_in_every_form(
    residual: tuple[nn.Module, nn.Module, pk.PruneResult], capsys: pytest.CaptureFixture[str]
) -> None:
    data = report_data(residual[2], sensitivity={"first": {0.5: 1.25}})
    page, text = to_html(data), to_markdown(data)
    print_report(data)
    printed = capsys.readouterr().out
    titles = [section.title for section in sections(data)]
    assert titles == ["Cost", "Where the MACs went", "Layers", "Groups", "Pinned", "Sensitivity", "Protocol"]
    for section in sections(data):
        assert f"## {section.title}\n" in text
        assert f"{section.title}\n" in printed
        assert f'id="{section.key}"' in page
        for row in section.rows:
            assert row[0].replace("_", "_<wbr>").replace(".", ".<wbr>") in page or row[0] in page


def test_markdown_tables_have_as_many_cells_in_every_line(
    residual: tuple[nn.Module, nn.Module, pk.PruneResult],
) -> None:
    widths: dict[str, set[int]] = {}
    part = ""
    for line in to_markdown(report_data(residual[2])).splitlines():
        if line.startswith("## "):
            part = line
        elif line.startswith("|"):
            widths.setdefault(part, set()).add(len(re.findall(r"(?<!\\)\|", line)))
    assert len(widths) >= 5
    assert all(len(found) == 1 for found in widths.values())


def test_names_are_escaped() -> None:
    model = Hostile()
    result = pk.prune(model, torch.randn(1, 4))
    data = report_data(result, title=HOSTILE)
    page = to_html(data)
    assert "<img" not in page
    assert "&lt;img src=x onerror=alert(1)&gt;|*&amp;" in page
    text = to_markdown(data)
    assert "<img" not in text
    assert r"&lt;img src=x onerror=alert(1)>\|\*&amp;" in text
    assert "</script>" not in page.partition("<script>")[0]


def test_the_page_needs_nothing_else(residual: tuple[nn.Module, nn.Module, pk.PruneResult]) -> None:
    page = to_html(report_data(residual[2]))
    assert not re.search(r"https?:|src=|@import|url\(", page)
    assert "default-src 'none'" in page
    assert "prefers-color-scheme: dark" in page


def test_long_tables_are_folded_away() -> None:
    layers: list[nn.Module] = []
    for _ in range(45):
        layers += [nn.Linear(4, 4), nn.ReLU()]
    data = report_data(pk.prune(nn.Sequential(*layers), torch.randn(1, 4)))
    text, page = to_markdown(data), to_html(data)
    assert text.count("<details><summary>45 rows</summary>") == 1
    assert "| {2,4,6,8,10," in text  # the layers: those that are alike share a line
    assert re.search(r'id="groups" open><summary>', page)
    assert re.search(r'id="macs" open><summary>', page)
    assert page.count('class="filter"') == 2


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [(1234567, "", "1,234,567"), (0.01234567, "s", "0.01235 s"), (12, "", "12"), (0, "", "0")],
)
def test_numbers_in_words(value: float, unit: str, text: str) -> None:
    assert number(value, unit) == text


def test_shapes_and_shares_in_words() -> None:
    assert (shape((3, 4)), shape(()), shape(None)) == ("3 x 4", "1", "-")
    assert (share(1, 4), share(0, 0)) == ("25.0%", "-")


def test_files_by_their_suffix(residual: tuple[nn.Module, nn.Module, pk.PruneResult], tmp_path: Path) -> None:
    for name, start in (("a.html", "<!DOCTYPE html>"), ("a.md", "# "), ("a.json", "{"), ("a.HTML", "<!DOCTYPE")):
        write_report(residual[2], tmp_path / name)
        assert (tmp_path / name).read_text().startswith(start)
    assert len(list(tmp_path.iterdir())) == 4
    with pytest.raises(pk.ArgumentError, match="A report is"):
        write_report(residual[2], tmp_path / "a.pdf")


def test_plots(residual: tuple[nn.Module, nn.Module, pk.PruneResult], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="needs prunekit[plots]")
    from prunekit_plugins.reports import draw_group, plot_macs, plot_sensitivity, save_plots

    data = report_data(residual[2], sensitivity={"a": {0.25: 0.1, 0.5: 0.3}}, metric="error")
    written = save_plots(data, tmp_path)
    assert [path.name for path in written] == ["macs.png", "widths.png", "sensitivity.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written)
    (axis,) = plot_macs(data).axes
    before, after = ([bar.get_width() for bar in bars] for bars in axis.containers)
    assert sum(before) == data.costs["macs"][0]
    assert sum(after) == data.costs["macs"][1]
    (line,) = plot_sensitivity(data).axes[0].lines
    assert line.get_xydata().tolist() == [[0.0, 0.0], [25.0, 0.1], [50.0, 0.3]]
    group = data.groups[0]
    figure: Any = draw_group(data, group.name)
    assert len(figure.axes) == min(12, len(group.members))
    gone = sum(patch.get_height() for patch in figure.axes[0].patches[1:])
    assert gone / figure.axes[0].patches[0].get_height() == pytest.approx(1 - group.after / group.before)
    with pytest.raises(pk.ArgumentError, match="no such group"):
        draw_group(data, "nothing")
    with pytest.raises(pk.ArgumentError, match="no sensitivity"):
        plot_sensitivity(report_data(residual[2]))
