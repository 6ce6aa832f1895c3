from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from prunekit_plugins.cli.commands.demo import data, networks, training
from tests.cli.conftest import Cli

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def result() -> Any:
    code = "import sys; from prunekit_plugins.cli.entry import main; sys.exit(main(['demo', '--json']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["conv net", "transformer"])
def test_demo_halves_the_macs_and_keeps_the_accuracy(result: Any, name: str) -> None:
    model = result["models"][name]
    assert 0.4 <= model["macs"]["after"] / model["macs"]["before"] <= 0.5
    assert model["params"]["after"] < 0.6 * model["params"]["before"]
    assert model["exact"] is True
    assert model["error"] <= model["tolerance"] == 1e-10
    accuracy = model["accuracy"]
    assert accuracy["trained"] >= 0.95
    assert accuracy["distilled"] >= accuracy["trained"] - 0.01
    assert accuracy["after_cut"] < accuracy["distilled"]
    assert model["latency_seconds"]["before"] > 0
    assert (result["train_images"], result["held_out_images"], result["threads"]) == (1198, 599, 1)


def test_the_split_is_whole_and_has_no_image_twice() -> None:
    digits = data.load(0)
    images = torch.cat([digits.images, digits.held_out_images])
    assert images.shape == (1797, 1, 8, 8)
    assert len(torch.unique(images.flatten(1), dim=0)) == 1797
    assert abs(float(images.mean())) < 0.1
    assert float(images.min()) == pytest.approx(data.BLANK)
    assert sorted(set(digits.held_out_labels.tolist())) == list(range(10))


def test_shifts_move_by_at_most_a_pixel() -> None:
    image = torch.full((1, 1, 8, 8), data.BLANK)
    image[0, 0, 3, 4] = 1.0
    torch.manual_seed(0)
    moved = training.shifted(image.expand(200, 1, 8, 8))
    places = {tuple(place) for place in (moved[:, 0] == 1.0).nonzero()[:, 1:].tolist()}
    assert places == {(row, column) for row in (2, 3, 4) for column in (3, 4, 5)}
    assert set(moved.flatten().tolist()) == {1.0, image[0, 0, 0, 0].item()}


def test_a_teacher_is_matched_instead_of_the_labels() -> None:
    digits = data.load(0)
    torch.manual_seed(0)
    teacher, pupil = networks.ConvNet(8).eval(), networks.ConvNet(8)
    course = training.Course(2, 1e-2, shifts=False)
    done: list[int] = []
    inputs = digits.held_out_images[:100]
    training.heal(pupil, teacher, digits, course, seed=0, progress=lambda now, total: done.append(now))
    pupil.eval()
    with torch.inference_mode():
        wanted, found = teacher(inputs).softmax(1), pupil(inputs).softmax(1)
    assert done == list(range(1, 39))
    assert float((wanted - found).abs().mean()) < 0.02
    assert training.accuracy(teacher, digits) < 0.5  # so the labels were not what was learnt


def test_without_scikit_learn_the_demo_says_what_to_install(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    called = cli("demo")
    assert called.code == 1
    assert 'pip install "prunekit[demo]"' in called.err
