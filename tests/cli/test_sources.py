"""Where models come from; timm is played by a module of its name, since nothing else here needs it."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path

import pytest
import safetensors.torch
import torch

import prunekit as pk
from prunekit_plugins.cli import models, sources
from prunekit_plugins.cli.arguments import TensorSpec, read_inputs, read_targets
from tests.cli import toys


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("squeezenet1_1", [(1, 3, 224, 224)]),
        ("mc3_18", [(1, 3, 16, 112, 112)]),
        ("lraspp_mobilenet_v3_large", [(1, 3, 224, 224)]),
    ],
)
def test_torchvision_models_come_without_a_download(
    name: str, shapes: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a download was tried")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", refuse)
    source = sources.from_torchvision(name)
    assert [spec.shape for spec in source.inputs] == shapes


def test_torchvision_families_that_take_no_plain_tensor_are_refused() -> None:
    with pytest.raises(pk.ArgumentError, match="detection models can't be named"):
        sources.from_torchvision("ssdlite320_mobilenet_v3_large")


def test_the_same_name_gives_the_same_weights_and_inputs() -> None:
    first, second = (models.build("tests.cli.toys:perceptron", [TensorSpec((2, 4))]) for _ in range(2))
    assert first.model is not second.model
    for a, b in zip(first.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert isinstance(first.inputs, tuple)
    assert isinstance(second.inputs, tuple)
    assert torch.equal(first.inputs[0], second.inputs[0])
    assert not first.model.training


def test_a_module_object_is_taken_as_it_is() -> None:
    assert sources.from_code("tests.cli.toys:INSTANCE").model is toys.INSTANCE


def test_modules_in_the_working_directory_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_models.py").write_text("import torch\ndef small(): return torch.nn.Linear(2, 3)\n")
    (tmp_path / "my_broken.py").write_text("1 / 0\n")
    (tmp_path / "my_importer.py").write_text("import no_such_dependency\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("my_models", "my_broken", "my_importer"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    model = sources.from_code("my_models:small").model
    assert isinstance(model, torch.nn.Linear)
    assert model.out_features == 3
    with pytest.raises(sources.BuildError, match="can't be imported") as broken:
        sources.from_code("my_broken:small")
    assert broken.value.why == "ZeroDivisionError: division by zero"
    with pytest.raises(sources.BuildError) as importer:
        sources.from_code("my_importer:small")
    assert "no_such_dependency" in importer.value.why
    sys.modules.pop("my_models")


def test_timm_models_bring_their_input_size(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = types.ModuleType("timm")
    model = torch.nn.Conv2d(3, 4, 1)
    model.default_cfg = {"input_size": (3, 176, 176)}  # type: ignore[assignment]
    made: list[tuple[str, bool]] = []

    def create_model(name: str, pretrained: bool) -> torch.nn.Module:
        made.append((name, pretrained))
        return model

    fake.create_model = create_model  # type: ignore[attr-defined]
    fake.is_model = lambda name: name == "resnet10t"  # type: ignore[attr-defined]
    fake.list_models = lambda: ["resnet10t"]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "timm", fake)
    source = sources.from_timm("resnet10t")
    assert source.model is model
    assert source.inputs == (TensorSpec((1, 3, 176, 176)),)
    assert made == [("resnet10t", False)]
    with pytest.raises(pk.ArgumentError, match="timm has no model") as wrong:
        sources.from_timm("resnet10")
    assert wrong.value.hint == "did you mean 'resnet10t'?"


@pytest.mark.parametrize(("name", "make"), [("timm", sources.from_timm), ("transformers", sources.from_transformers)])
def test_a_missing_package_is_told(name: str, make: object, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(sources.BuildError, match=f"{name} can't be imported") as missing:
        make(str(tmp_path))  # type: ignore[operator]
    assert missing.value.hint == f'pip install "{name}"'


def test_transformers_models_come_from_a_local_folder(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is an extra of its own")
    config = transformers.BertConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=10
    )
    config.architectures = ["Trainer"]  # no model
    config.save_pretrained(str(tmp_path))
    assert type(models.build(f"hf:{tmp_path}", []).model).__name__ == "BertModel"
    config.architectures = ["BertForSequenceClassification"]
    config.save_pretrained(str(tmp_path))
    subject = models.build(f"hf:{tmp_path}", [])
    assert type(subject.model).__name__ == "BertForSequenceClassification"
    assert isinstance(subject.inputs, dict)
    assert list(subject.inputs) == ["input_ids"]
    assert tuple(subject.inputs["input_ids"].shape) == (1, 16)


def tiny_bert(folder: Path) -> torch.nn.Module:
    transformers = pytest.importorskip("transformers", reason="transformers is an extra of its own")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    torch.manual_seed(3)
    model: torch.nn.Module = transformers.BertForSequenceClassification(transformers.BertConfig(vocab_size=10, **sizes))
    model.save_pretrained(str(folder))  # type: ignore[operator]
    return model


def test_weights_that_lie_in_a_transformers_folder_are_read(tmp_path: Path) -> None:
    model = tiny_bert(tmp_path)
    subject = models.build(f"hf:{tmp_path}", [])
    assert (subject.weights, subject.random) == (str(tmp_path), False)
    for name, value in model.state_dict().items():
        assert torch.equal(subject.model.state_dict()[name], value), name
    empty = models.build(f"hf:{tmp_path}", [], empty=True)
    assert {parameter.device.type for parameter in empty.model.parameters()} == {"meta"}


def test_weights_for_another_model_in_a_transformers_folder_are_told(tmp_path: Path) -> None:
    tiny_bert(tmp_path)
    stored = safetensors.torch.load_file(tmp_path / "model.safetensors")
    del stored["bert.pooler.dense.bias"]
    safetensors.torch.save_file(stored, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(pk.CheckpointError) as wrong:
        models.build(f"hf:{tmp_path}", [])
    assert wrong.value.where == str(tmp_path)
    assert wrong.value.why == "bert.pooler.dense.bias is missing"


def test_a_factory_may_return_example_inputs_too() -> None:
    subject = models.build("tests.cli.toys:with_tensor", [])
    assert isinstance(subject.inputs, tuple)
    assert subject.inputs[0].tolist() == [[0.0, 1.0, 2.0, 3.0]]
    assert (subject.weights, str(subject)) == (
        "weights as built",
        "tests.cli.toys:with_tensor, weights as built, input 1,4",
    )
    named = models.build("tests.cli.toys:with_names", [])
    assert isinstance(named.inputs, dict)
    assert {name: tuple(value.shape) for name, value in named.inputs.items()} == {"tokens": (2, 3), "weights": (2, 3)}
    assert named.specs == (TensorSpec((2, 3), "int64"), TensorSpec((2, 3)))
    other = models.build("tests.cli.toys:with_names", [TensorSpec((5, 3), "int64"), TensorSpec((5, 3))])
    assert isinstance(other.inputs, dict)
    assert {name: len(value) for name, value in other.inputs.items()} == {"tokens": 5, "weights": 5}
    with pytest.raises(pk.ArgumentError, match="inputs that can't be read"):
        models.build("tests.cli.toys:with_nothing", [])


def test_code_in_a_transformers_folder_is_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers", reason="transformers is an extra of its own")
    monkeypatch.setattr("builtins.input", lambda _: "yes")  # nobody is asked, either
    auto = {"AutoConfig": "code.Mine", "AutoModel": "code.Model"}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mine", "auto_map": auto}))
    (tmp_path / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(sources.BuildError, match="custom code"):
        models.build(f"hf:{tmp_path}", [])
    assert not (tmp_path / "ran").exists()


def test_arguments_are_read() -> None:
    assert read_inputs(["1,3,8,8", "2, 5:int64"]) == [TensorSpec((1, 3, 8, 8)), TensorSpec((2, 5), "int64")]
    assert [str(spec) for spec in read_inputs(["2, 5:bool"])] == ["2,5:bool"]
    assert read_targets(["macs=0.5", "params=1e6"]) == {"macs": 0.5, "params": 1e6}
    assert read_targets([]) is None
    whole = TensorSpec((4, 5), "int64").tensor(torch.Generator().manual_seed(0))
    assert whole.dtype is torch.int64
    assert set(whole.flatten().tolist()) == {0, 1}
