"""A package of somebody else: built as a wheel, installed into a fresh environment, used, and removed."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.thirdparty.environment import Environment, build_wheel

ROOT = Path(__file__).resolve().parents[2]
SOURCE = Path(__file__).parent / "prunekit-example"
CONSOLE = "import sys; from prunekit_plugins.cli.entry import main; sys.exit(main())"


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package's source: building writes into it."""
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info", "build")
    return Path(shutil.copytree(SOURCE, tmp_path_factory.mktemp("source") / "package", ignore=ignored))


@pytest.fixture(scope="module")
def wheel(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(package, tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """An environment with prunekit itself, which is installed from its wheel as well."""
    source = tmp_path_factory.mktemp("prunekit")
    for name in ("prunekit", "prunekit_core", "prunekit_plugins"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, source)
    made = Environment.create(tmp_path_factory.mktemp("environment") / "venv")
    made.pip("install", "--no-deps", "--no-index", build_wheel(source, source / "dist"), cwd=source)
    return made


@pytest.fixture(scope="module")
def installed(empty: Environment, wheel: Path) -> Iterator[Environment]:
    """The environment with the package; when it is removed again, nothing stays."""
    before = empty.files()
    empty.pip("install", "--no-deps", "--no-index", wheel, cwd=wheel.parent)
    assert any("prunekit_example-0.3.1.dist-info" in name for name in empty.files() - before)
    yield empty
    empty.pip("uninstall", "--yes", "prunekit-example", cwd=wheel.parent)
    assert empty.files() == before
    assert not list(empty.root.rglob("prunekit_example*"))
    listed = json.loads(empty.python("-c", CONSOLE, "plugins", "--json", cwd=wheel.parent))
    assert {plugin["distribution"] for plugin in listed["plugins"]} == {"prunekit"}


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    assert wheel.name == "prunekit_example-0.3.1-py3-none-any.whl"
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {"prunekit_example", "prunekit_example-0.3.1.dist-info"}
    sources = {f"prunekit_example/{path.name}" for path in (SOURCE / "src/prunekit_example").glob("*.py")}
    assert {name for name in names if name.endswith(".py")} == sources


def test_prunekit_is_that_of_the_environment(installed: Environment, tmp_path: Path) -> None:
    program = "import prunekit_core, prunekit_plugins; print(prunekit_core.__file__); print(prunekit_plugins.__file__)"
    found = [Path(line) for line in installed.python("-c", program, cwd=tmp_path).splitlines()]
    assert all(path.is_relative_to(installed.root) for path in found)
    folder = found[0].parents[1]
    for package in ("prunekit_core", "prunekit_plugins"):
        own = {path.relative_to(ROOT) for path in (ROOT / package).rglob("*.py*") if path.suffix != ".pyc"}
        assert own == {path.relative_to(folder) for path in (folder / package).rglob("*.py*") if path.suffix != ".pyc"}


def test_its_own_tests_pass_where_it_is_installed(installed: Environment, package: Path) -> None:
    printed = installed.python("-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", cwd=package)
    assert "12 passed" in printed


PROGRAM = """
import json
import torch
import prunekit as pk
from prunekit_example import Net
from prunekit_example.scoring import LargestRow

torch.manual_seed(0)
registry = pk.Registry.from_config("pyproject.toml")
criterion = registry.options()["importance"]
model, example = Net(16), torch.randn(3, 8)
original = Net(16)
original.load_state_dict(model.state_dict())
graph = pk.DependencyGraph(registry).build_dependency(model, example)
shrink = registry.named("prunekit_regularizers", "shrink")(graph.get_all_groups, strength=0.5)
(model(example).sum() * 0).backward()
shrink.regularize()
decayed = torch.equal(model.clip.limit.grad, 0.5 * model.clip.limit)
result = pk.prune(model, example, **registry.options())
check = pk.check_exact(original, model, result.plan, example, registry=registry)
pk.save(model, "small.safetensors", plan=result.plan)
loaded = pk.load(Net(16), "small.safetensors", registry=registry)
rows = original.first.weight.detach().abs().amax(1)
print(json.dumps({
    "criterion": [type(criterion) is LargestRow, criterion.floor],
    "decayed": decayed,
    "kept": list(result.plan.cuts[0].kept),
    "largest": sorted(rows.argsort(descending=True)[: model.first.width].tolist()),
    "width": model.first.width,
    "cost": result.preview.costs["int8_bytes"],
    "exact": check.exact,
    "same": torch.equal(loaded.eval()(example), model.eval()(example)),
}))
"""

CONFIG = """
[tool.prunekit]
importance = { name = "largest_row", floor = 0.01 }
target = { int8_bytes = 200 }
"""


def test_what_it_brings_is_used_end_to_end(installed: Environment, tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text(CONFIG)
    found = json.loads(installed.python("-W", "error", "-c", PROGRAM, cwd=tmp_path))
    assert found["criterion"] == [True, 0.01]
    assert found["decayed"] is True
    # by hand for w units: 8w + w weights and gains, w limits, 4w + 4 in the last layer, 4w + 16 for scales of rows
    assert found["cost"] == [18 * 16 + 20, 18 * 10 + 20]
    assert (found["width"], found["exact"], found["same"]) == (10, True, True)
    assert found["kept"] == found["largest"]


def test_the_command_line_knows_it(installed: Environment, tmp_path: Path) -> None:
    program = f"""
from prunekit_plugins.cli.entry import main
for arguments in (["plugins", "--json"], ["example", "--width", "12"],
                  ["inspect", "prunekit_example:Net", "--input", "2,8", "--rules", "--json"]):
    print({"=" * 8!r})
    assert main(arguments) == 0
"""
    _, plugins, example, inspected = installed.python("-c", program, cwd=tmp_path).split("=" * 8 + "\n")
    states = {plugin["name"]: (plugin["version"], plugin["state"]) for plugin in json.loads(plugins)["plugins"]}
    assert states["prunekit-example:model"] == ("0.3.1", "loaded")
    assert states["prunekit-example:pruning"] == ("0.3.1", "loaded")
    assert example == "12 -> 6\n"
    rules = {rule["operation"]: rule for rule in json.loads(inspected)["rules"]}
    clip, swish = rules["opaque::prunekit_example.layers.SoftClip"], rules["prunekit_example::swish"]
    assert (clip["plugin"], swish["plugin"]) == ("prunekit-example:model", "prunekit-example:model")
    assert (clip["modules"], swish["modules"]) == (["clip"], ["first"])
    assert "prunekit_example/layer_types.py:" in clip["site"].replace("\\", "/")
    assert "prunekit_example/operations.py:" in swish["site"].replace("\\", "/")
    assert json.loads(inspected)["not_understood"] == []


REST = """
import json
import torch
from torch import nn
import prunekit as pk
from prunekit_example.repairing import LabelledScale, Scale
from prunekit_example.storing import write

registry = pk.Registry()
torch.manual_seed(0)
batch = torch.randn(32, 4)


def chain():
    return nn.Sequential(nn.Linear(4, 12), LabelledScale(12), nn.ReLU(), nn.Linear(12, 3))


options = {"target": {"params": 0.6}, "allocation": "widest_first", "calibration": [batch], "compensation": "louder"}
model = chain()
result = pk.prune(model, batch, registry=registry, **options)
stepped = chain()
make = registry.named("prunekit_pruners", "even")
pruner = make(stepped, batch, iterative_steps=2, iterative_pruning_ratio_scheduler="quadratic", registry=registry)
widths = []
for _ in range(2):
    pruner.step()
    widths.append(stepped[0].out_features)
whole = chain()
write("whole.example", whole.state_dict())
with torch.device("meta"):
    empty = chain()
found = pk.prune(empty, batch.to("meta"), 0.5, weights="whole.example", registry=registry).plan
print(json.dumps({
    "swapped": [type(model[1]) is Scale, [swap.replacement for swap in result.plan.swaps]],
    "tried": sorted({repair.method for repair in result.compensation.layers}
                    | {why.split()[0] for why in result.compensation.left.values()}),
    "widths": widths,
    "met": result.preview.costs["params"][1] <= 0.6 * result.preview.costs["params"][0],
    "same": found.kept == pk.prune(whole, batch, 0.5, registry=registry).plan.kept,
}))
"""


def test_the_rest_of_what_it_brings_is_used(installed: Environment, tmp_path: Path) -> None:
    found = json.loads(installed.python("-W", "error", "-c", REST, cwd=tmp_path))
    assert found == {
        "swapped": [True, ["example_scale"]],
        "tried": ["louder"],
        "widths": [10, 6],
        "met": True,
        "same": True,
    }


@pytest.mark.slow
def test_a_new_plugin_is_written_installed_and_passes_its_own_tests(empty: Environment, tmp_path: Path) -> None:
    """From an empty folder, with the wheel of prunekit: written, built, installed, tested, checked, used by name."""
    before = empty.files()
    empty.python("-c", CONSOLE, "new-plugin", "brand-new", "--with", "all", cwd=tmp_path)
    wheel = build_wheel(tmp_path / "brand-new", tmp_path / "dist")
    empty.pip("install", "--no-deps", "--no-index", wheel, cwd=tmp_path)
    try:
        options = ("-q", "-p", "no:cacheprovider", "-p", "no:xdist")
        printed = empty.python("-m", "pytest", *options, cwd=tmp_path / "brand-new")
        assert "26 passed" in printed
        checks = json.loads(empty.python("-c", CONSOLE, "plugins", "brand-new", "--check", "--json", cwd=tmp_path))
        assert {check["outcome"] for check in checks["checks"]} == {"passed"}
        pruned = empty.python(
            "-c", CONSOLE, "prune", "torchvision:resnet18", "--input", "1,3,32,32",
            "--importance", "brand_new_largest_row", "--trace", "--json", cwd=tmp_path,
        )  # fmt: skip
        decided = {(entry["what"], entry["plugin"]) for entry in json.loads(pruned)["trace"]}
        assert ("criterion", "brand-new:plugin") in decided
    finally:
        empty.pip("uninstall", "--yes", "brand-new", cwd=tmp_path)
    assert empty.files() == before
