"""The page in a real browser: no errors on the console, the tables are there and have a size, sorting sorts."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from torch import nn

import prunekit as pk
from prunekit_plugins.reports import report_data, to_html
from prunekit_plugins.reports.sections import sections

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed")

PROBE = """
<script>
window.addEventListener("load", () => {
  const found = { tables: {}, wide: document.documentElement.scrollWidth > window.innerWidth };
  for (const table of document.querySelectorAll("table")) {
    const box = table.getBoundingClientRect();
    found.tables[table.id] = [table.tBodies[0].rows.length, Math.round(box.width), Math.round(box.height)];
  }
  const names = () => [...document.getElementById("table-macs").tBodies[0].rows].map(row => row.cells[0].textContent);
  const button = document.querySelector("#table-macs th button");
  button.click();
  found.up = names();
  button.click();
  found.down = names();
  found.background = getComputedStyle(document.body).backgroundColor;
  const note = document.createElement("p");
  note.id = "probe";
  note.textContent = JSON.stringify(found);
  document.body.append(note);
});
</script>
"""


def browse(*arguments: str) -> subprocess.CompletedProcess[str]:
    assert BROWSER is not None
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--hide-scrollbars"]
    return subprocess.run(
        [BROWSER, *options, *arguments], capture_output=True, text=True, timeout=120, check=True, errors="replace"
    )


def page(folder: Path) -> tuple[Path, list[str]]:
    torch.manual_seed(0)
    net = nn.Sequential(*[part for k in range(12) for part in (nn.Linear(8 + k, 9 + k), nn.ReLU())], nn.Linear(20, 3))
    data = report_data(pk.prune(net, torch.randn(1, 8)), sensitivity={"0": {0.5: 1.0}})
    path = folder / "report.html"
    path.write_text(to_html(data).replace("</body>", PROBE + "</body>"))
    return path, [f"table-{section.key}" for section in sections(data) if section.key != "costs"]


@pytest.mark.slow
@pytest.mark.parametrize(("width", "dark"), [(1200, False), (500, True)])
def test_the_page_in_a_browser(tmp_path: Path, width: int, dark: bool) -> None:
    path, tables = page(tmp_path)
    options = [f"--window-size={width},900", *(["--blink-settings=preferredColorScheme=0"] if dark else [])]
    shown = browse(*options, "--enable-logging=stderr", "--dump-dom", path.as_uri())
    complaints = [line for line in shown.stderr.splitlines() if "CONSOLE" in line]
    assert complaints == []
    note = re.search(r'<p id="probe">(.*?)</p>', shown.stdout)
    assert note is not None
    found = json.loads(note[1])
    assert list(found["tables"]) == tables
    assert all(rows > 0 and wide > 200 and high > 20 for rows, wide, high in found["tables"].values())
    assert not found["wide"], "the page itself scrolls sideways"
    assert found["up"] == sorted(found["up"], key=int)
    assert found["down"] == found["up"][::-1]
    assert found["background"] == ("rgb(20, 24, 31)" if dark else "rgb(255, 255, 255)")


def test_a_console_error_would_be_seen(tmp_path: Path) -> None:
    path = tmp_path / "broken.html"
    path.write_text("<script>console.error('broken'); undefined.nothing;</script>")
    shown = browse("--enable-logging=stderr", "--dump-dom", path.as_uri())
    assert sum("CONSOLE" in line for line in shown.stderr.splitlines()) == 2


def test_a_screenshot_shows_the_bars(tmp_path: Path) -> None:
    image = pytest.importorskip("matplotlib.image", reason="needs prunekit[plots]")
    path, _ = page(tmp_path)
    picture = tmp_path / "report.png"
    browse("--window-size=1200,900", f"--screenshot={picture}", path.as_uri())
    pixels = (255 * image.imread(picture)[..., :3]).round().astype(int)
    assert pixels.shape == (900, 1200, 3)
    for colour, least in (((255, 255, 255), 500_000), ((0x0B, 0x6E, 0x99), 2000), ((0xE3, 0xC9, 0xA8), 2000)):
        assert (pixels == colour).all(axis=-1).sum() > least
