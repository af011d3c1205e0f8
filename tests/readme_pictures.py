"""The pictures of the README, of a committed run: `python tests/readme_pictures.py`, with chromium installed."""

from __future__ import annotations

import re
import shutil
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

from playwright.sync_api import sync_playwright  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.text import Text  # noqa: E402

from reports import page  # noqa: E402
from reports.core.records import load_run  # noqa: E402
from reports.core.summary import terminal_summary  # noqa: E402

RUN = ROOT / "reports" / "published" / "amd-epyc-2-cores" / "quick"
TARGET = ROOT / "docs" / "pictures"


def terminal() -> str:
    """What a terminal shows at the end of the run, as SVG without the fonts that rich would have fetched."""
    with open("/dev/null", "w") as nowhere:
        console = Console(record=True, width=132, file=nowhere)
        console.print(Text(terminal_summary(load_run(RUN))), soft_wrap=False)
        return re.sub(
            r"@font-face\s*{[^}]*}\s*", "", console.export_svg(title="python runner.py", unique_id="ddfbench")
        )


def screens() -> None:
    """The top of `report.html`, light and dark."""
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as started:
        file = Path(folder) / "report.html"
        file.write_text(str(page.serialize([load_run(RUN)])["report.html"]), encoding="utf-8")
        browser = started.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for scheme in ("light", "dark"):
            tab = browser.new_page(viewport={"width": 1100, "height": 1640}, color_scheme=scheme)  # type: ignore[arg-type]
            tab.goto(file.as_uri())
            tab.screenshot(path=TARGET / f"report-{scheme}.png")
        browser.close()


if __name__ == "__main__":
    (TARGET / "terminal.svg").write_text(terminal(), encoding="utf-8")
    screens()
