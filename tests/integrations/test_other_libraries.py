"""The page on other libraries: its code is run, section by section, where the library is installed."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
from PIL import Image

from tests.docs.snippets import ROOT, blocks_of

PAGE = ROOT / "docs/other-libraries.md"
SECTIONS = {
    "PEFT": "peft",
    "sentence-transformers": "sentence_transformers",
    "ultralytics": "ultralytics",
    "torchao": "torchao",
}


def sections() -> dict[str, str]:
    """Returns the text of each section by the library in its heading."""
    parts = re.split(r"^## .*?\((\S+?)[,)].*$", PAGE.read_text(), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def pictures(place: Path) -> None:
    """Makes four pictures with a thing in the middle."""
    for part in ("images", "labels"):
        (place / part).mkdir()
    generator = numpy.random.default_rng(0)
    for number in range(4):
        pixels = generator.integers(0, 255, (64, 64, 3), dtype=numpy.uint8)
        Image.fromarray(pixels).save(place / f"images/{number}.png")
        (place / f"labels/{number}.txt").write_text("0 0.5 0.5 0.4 0.4\n")
    (place / "data.yaml").write_text(f"path: {place}\ntrain: images\nval: images\nnames:\n  0: thing\n")


def test_every_section_is_about_a_library_and_has_code() -> None:
    assert sections().keys() == SECTIONS.keys()
    for text in sections().values():
        assert any(block.language == "python" for block in blocks_of(text))


@pytest.mark.slow
@pytest.mark.parametrize("library", SECTIONS)
def test_the_code_of_the_page_runs_and_prints_what_it_says(library: str, tmp_path: Path) -> None:
    if importlib.util.find_spec(SECTIONS[library]) is None:
        pytest.skip(f"{library} isn't installed")
    pictures(tmp_path)
    blocks = blocks_of(sections()[library])
    code = "\nprint('-' * 9)\n".join(block.text for block in blocks if block.language == "python")
    (tmp_path / "code.py").write_text(code)
    aside = {"YOLO_CONFIG_DIR": str(tmp_path), "YOLO_OFFLINE": "1", "YOLO_AUTOINSTALL": "false", "HF_HUB_OFFLINE": "1"}
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH", ""))))
    command = [sys.executable, "-W", "ignore", "code.py"]
    ran = subprocess.run(
        command,
        cwd=tmp_path,
        env={**os.environ, **aside, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    lines = ran.stdout.splitlines()
    for block in blocks:
        for line in block.text.splitlines() if block.language == "text" else ():
            assert line in lines, ran.stdout[-2000:]
