"""`report.html`, `comparison.html`, `history.html` in Debian's headless Chromium, from disk as a reader opens them."""

from __future__ import annotations

import csv
import io
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from sample_runs import RUN, environment, latency, sample, sample_comparison

from reports import Metric, Run, page
from reports.core.history import look
from reports.core.history_index import Filter, Index
from reports.core.history_page import as_page as history_page
from reports.core.records import RunDirectory, load_run
from reports.core.units import with_bounds
from reports.core.verdict_page import as_page

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium (apt install chromium)")

PUBLISHED = ROOT / "reports" / "published" / "amd-epyc-2-cores" / "quick"
HOSTILE = "<img src=x onerror=alert(1)><b>my op</b>"
WIDTHS = (400, 1400)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


class Opened:
    """A page from disk, with all that it logged and asked for."""

    def __init__(self, browser: Any, file: Path, width: int, scheme: str = "light") -> None:
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        context.add_init_script(
            "const clipboard = {writeText: async text => { window.copied = text; }};"
            "Object.defineProperty(navigator, 'clipboard', {value: clipboard})"
        )
        self.tab = context.new_page()
        self.said: list[str] = []
        self.asked: list[str] = []
        self.tab.on("console", lambda message: self.said.append(message.text))
        self.tab.on("pageerror", lambda error: self.said.append(str(error)))
        self.tab.on("request", lambda request: self.asked.append(request.url))
        began = time.perf_counter()
        self.tab.goto(file.as_uri())
        self.seconds = time.perf_counter() - began
        self.address = file.as_uri()

    def rows(self, table: int) -> list[list[str]]:
        """The texts of a table's cells."""
        found: list[list[str]] = self.tab.locator(f'[data-table="{table}"]').evaluate(
            "e => [...e.querySelectorAll('tbody tr')].map(r => [...r.cells].map(c => c.textContent.trim()))"
        )
        return found


def write(folder: Path, html: str | bytes) -> Path:
    file = folder / "page.html"
    file.write_text(str(html), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = load_run(PUBLISHED)
    made = latency(HOSTILE, "torch", 56, 1e-3, threads=2)
    run.records.append(made)
    return write(tmp_path_factory.mktemp("published"), page.serialize([run])["report.html"])


@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_is_quiet_whole_and_no_wider_than_its_window(browser: Any, published: Path, width: int) -> None:
    opened = Opened(browser, published, width)
    assert opened.said == []
    assert [url for url in opened.asked if not url.startswith("data:")] == [opened.address]
    assert opened.tab.evaluate("document.documentElement.scrollWidth") == width
    drawn = opened.tab.evaluate(
        "[...document.querySelectorAll('.plot > .canvas > svg')].map(e => e.querySelectorAll('.mark').length)"
    )
    assert len(drawn) > 8
    assert min(drawn) > 0
    assert opened.tab.locator("img").count() == 0, "an op name with markup stays text"
    assert opened.tab.get_by_role("button", name=HOSTILE).first.is_visible()


@pytest.mark.parametrize("width", WIDTHS)
def test_series_are_toggled_by_their_legend(browser: Any, published: Path, width: int) -> None:
    plot = Opened(browser, published, width).tab.locator(".plot").first
    before = plot.locator(".canvas .mark").count()
    button = plot.get_by_role("button", name="dwconv/torch")
    button.click()
    assert button.get_attribute("aria-pressed") == "false"
    assert plot.locator(".canvas .mark").count() == before - 4
    button.click()
    assert plot.locator(".canvas .mark").count() == before


@pytest.mark.parametrize("width", WIDTHS)
def test_tables_are_filtered_and_sorted(browser: Any, published: Path, width: int) -> None:
    opened = Opened(browser, published, width)
    table = opened.tab.locator('[data-table="0"]')
    table.get_by_label("filter").fill("ddf_op nat")
    assert [row[0] for row in opened.rows(0)] == ["ddf_op/native"] * 4
    table.get_by_role("button", name="latency_wall").click()
    assert [row[1] for row in opened.rows(0)] == ["7×7", "14×14", "28×28", "56×56"]
    table.get_by_role("button", name="latency_wall").click()
    assert [row[1] for row in opened.rows(0)] == ["56×56", "28×28", "14×14", "7×7"]
    table.get_by_label("filter").fill("")
    table.get_by_label("status").select_option("skipped")
    assert {row[0] for row in opened.rows(0)} == {"dyfilter/composite"}
    assert table.get_by_role("columnheader", name="latency_wall").get_attribute("aria-sort") == "descending"


def test_claims_are_filtered_by_verdict_and_show_their_command(browser: Any, published: Path) -> None:
    opened = Opened(browser, published, 1400)
    claims = opened.tab.locator(".table", has=opened.tab.get_by_label("source"))
    claims.get_by_label("verdict").select_option("not reproduced")
    rows = opened.rows(int(claims.get_attribute("data-table")))
    assert len(rows) == 2
    assert all(row[4] == "not reproduced" and row[-1].startswith("python runner.py --suite") for row in rows)


def test_a_table_is_copied_as_csv_and_as_markdown(browser: Any, published: Path) -> None:
    opened = Opened(browser, published, 1400)
    table = opened.tab.locator('[data-table="0"]')
    table.get_by_label("filter").fill("ddf_op/native 56×56")
    table.get_by_role("button", name="copy as CSV").click()
    (row,) = csv.DictReader(io.StringIO(opened.tab.evaluate("window.copied")))
    stored = next(
        made
        for made in load_run(PUBLISHED).records
        if made.case.startswith("latency:ddf_op/native") and "h56" in made.case
    ).metric("latency_wall")
    assert stored is not None
    assert [float(row[name]) for name in ("latency_wall (s)", "latency_wall low", "latency_wall high")] == [
        pytest.approx(value, 1e-6) for value in (stored.value, stored.low, stored.high)
    ]
    table.get_by_role("button", name="copy as markdown").click()
    head, _, line = opened.tab.evaluate("window.copied").splitlines()
    assert head.startswith("| case | resolution | status |")
    assert "| ddf\\_op/native | 56×56 | ok |" in line


def test_a_point_tells_its_value_interval_and_samples_and_opens_them_by_process(browser: Any, published: Path) -> None:
    opened = Opened(browser, published, 1400)
    plot = opened.tab.locator(".plot").first
    plot.locator(".canvas").scroll_into_view_if_needed()
    box = plot.locator('.series[style*="#009E73"] .mark').last.bounding_box()
    opened.tab.mouse.move(box["x"] + 3, box["y"] + 3)
    told = plot.locator(".tip").inner_text()
    for part in ("ddf_op/native", "56", "178 µs (178 to 182)", "35.9 % of the fma roof", "3 processes"):
        assert part in told
    opened.tab.mouse.click(box["x"] + 3, box["y"] + 3)
    dialog = opened.tab.locator("dialog")
    assert dialog.is_visible()
    assert "latency:ddf_op/native@cpu" in dialog.inner_text()
    assert dialog.locator("svg").first.get_by_text("process").count() == 3
    assert dialog.locator("svg").first.locator("circle").count() > 100
    opened.tab.keyboard.press("Escape")
    assert not dialog.is_visible()


def test_points_are_reached_by_the_keyboard(browser: Any, published: Path) -> None:
    opened = Opened(browser, published, 1400)
    plot = opened.tab.locator(".plot").first
    plot.locator(".canvas > svg").focus()
    opened.tab.keyboard.press("ArrowRight")
    assert "/" in plot.locator(".tip").inner_text()
    opened.tab.keyboard.press("Enter")
    assert opened.tab.locator("dialog").is_visible()


def test_numbers_are_told_as_in_the_other_formats(browser: Any, published: Path) -> None:
    opened = Opened(browser, published, 1400)
    told = {
        (m.name, m.unit, m.value, m.low, m.high): with_bounds(m) for r in load_run(PUBLISHED).records for m in r.metrics
    }
    rest = [0.0, 1e-12, 999.5e-6, 0.99999, 5e9, 1234567, 3.2e-5, -0.5]
    for unit in ("1", "s", "B", "MAC/s", "W"):
        told |= {("x", unit, value, None, None): with_bounds(Metric("x", unit, value)) for value in rest}
    told = {key: text for key, text in told.items() if key[2] is not None}
    assert len(told) > 500
    shown = opened.tab.evaluate(
        "all => all.map(([name, unit, ...cell]) => cellText(cell, {name, unit}))", [list(key) for key in told]
    )
    assert dict(zip(told, shown, strict=True)) == told


@pytest.mark.parametrize(("width", "scheme"), [(400, "dark"), (1400, "light")])
def test_axe_finds_no_serious_issue(browser: Any, history: Path, tmp_path: Path, width: int, scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed")
    opened = Opened(browser, write(tmp_path, page.serialize([sample()])["report.html"]), width, scheme)
    opened.tab.locator('[data-table="0"] tbody button').first.click()
    assert serious(axe, opened) == [], "with a case open"
    opened.tab.keyboard.press("Escape")
    assert serious(axe, opened) == []
    assert serious(axe, Opened(browser, history, width, scheme)) == []


def serious(axe: Any, opened: Opened) -> list[tuple[str, str]]:
    """What axe calls serious or worse, and where."""
    found = axe.Axe().run(opened.tab).response
    assert found["passes"]
    grave = [issue for issue in found["violations"] if issue["impact"] in ("serious", "critical")]
    return [(issue["id"], issue["nodes"][0]["html"]) for issue in grave]


def test_five_thousand_records_open_at_once(browser: Any, tmp_path: Path) -> None:
    """In under two seconds and ten megabytes, with as many metrics and samples as real records have."""
    records = []
    for i in range(5_000):
        op, size = ("conv", "dwconv", "ddf_op", "ddf", "dyfilter")[i % 5], 7 * 2 ** (i // 5 % 5)
        made = latency(op, "torch", size, 1e-6 * size**2 * (1 + i % 5), batch=1 + i // 25)
        made.metrics += [Metric(f"reading_{j}", "1", i + j / 7, i + j / 8, i + j / 6) for j in range(6)]
        for block in made.samples:
            block.values = [block.values[0] * (1 + j / 1e3) for j in range(60)]
        records.append(made)
    file = write(tmp_path, page.serialize([Run(Path("runs") / RUN, environment(), records)])["report.html"])
    assert file.stat().st_size < 10e6
    opened = Opened(browser, file, 1400)
    loaded = opened.tab.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd")
    assert loaded < 2000, f"{loaded} ms"
    assert opened.said == []
    assert len(opened.rows(0)) == 20
    opened.tab.locator('[data-table="0"]').get_by_label("filter").fill("no such words")
    assert opened.rows(0) == []


@pytest.mark.parametrize("width", WIDTHS)
def test_a_comparison_is_drawn_and_quiet(browser: Any, tmp_path: Path, width: int) -> None:
    opened = Opened(browser, write(tmp_path, as_page(sample_comparison())), width)
    assert opened.said == []
    assert opened.tab.evaluate("document.documentElement.scrollWidth") == width
    opened.tab.get_by_label("2 panels").select_option("latency_wall")
    assert opened.tab.locator(".canvas .mark").count() == 4
    opened.tab.locator("thead").get_by_role("button", name="change").click()
    assert opened.rows(0)[0][5] == "-90.0 %"


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page whose messages, device and op are markup; the slow-down came with commit 6."""
    folder = tmp_path_factory.mktemp("history")
    with Index.open(folder / "h", create=True) as index:
        for number in range(12):
            seconds = 1e-3 * (1.5 if number >= 6 else 1) * (1 + number % 3 / 100)
            project = {"revision": f"{number:04x}" * 10, "dirty": False, "subject": f"{HOSTILE} {number}"}
            directory = RunDirectory.create(
                folder / f"r{number}",
                environment(f"r{number}", HOSTILE) | {"project": project | {"ancestors": number}, "load": number},
            )
            for made in (latency(HOSTILE, "native", 56, seconds), latency("dwconv", "torch", 56, 1e-3)):
                directory.append(made)
            index.add(directory.path)
        (folder / "r6" / "report.html").write_text("<title>of commit 6</title>")
        told = look(str(folder / "h"), index.series(Filter(["latency_wall", "latency_wall_over_dwconv"])))
    (folder / "shown").mkdir()
    return write(folder / "shown", history_page(told, folder / "shown"))


@pytest.mark.parametrize("width", WIDTHS)
def test_a_history_is_drawn_quiet_and_all_text_stays_text(browser: Any, history: Path, width: int) -> None:
    opened = Opened(browser, history, width)
    assert opened.said == []
    assert [url for url in opened.asked if not url.startswith("data:")] == [opened.address]
    assert opened.tab.evaluate("document.documentElement.scrollWidth") == width
    assert opened.tab.locator("img, b:not(.tip b)").count() == 0
    plot = opened.tab.locator(".plot")
    assert plot.locator(".canvas .mark").count() == 12
    assert plot.locator("svg text.change").text_content() == "+50.0 %"
    marks = [plot.locator(".canvas .mark").nth(at).bounding_box()["x"] for at in (5, 6)]
    assert marks[0] < plot.locator("svg line.change").bounding_box()["x"] < marks[1]
    plot.locator(".canvas > svg").focus()
    for _ in range(7):
        opened.tab.keyboard.press("ArrowRight")
    told = plot.locator(".tip").inner_text()
    for part in (f"{HOSTILE} 6", "1.50 ms", "+50.0 % with 0005000500..0006000600"):
        assert part in told


def test_a_history_is_sorted_and_filtered_and_leads_to_the_runs(browser: Any, history: Path) -> None:
    opened = Opened(browser, history, 1400)
    points = opened.tab.locator(".table", has=opened.tab.get_by_role("button", name="runs"))
    points.get_by_label("metric").select_option("latency_wall_over_dwconv")
    points.get_by_role("button", name="value").click()
    values = [float(row[2]) for row in opened.rows(int(points.get_attribute("data-table")))]
    assert len(values) == 12
    assert values == sorted(values)
    points.get_by_role("link", name="0006000600").click()
    assert opened.tab.title() == "of commit 6"


def test_several_runs_are_drawn_side_by_side(browser: Any, tmp_path: Path) -> None:
    second = sample()
    second.environment = environment("another", "Other CPU")
    opened = Opened(browser, write(tmp_path, page.serialize([sample(), second])["report.html"]), 400)
    assert opened.said == []
    assert opened.tab.evaluate("document.documentElement.scrollWidth") == 400
    assert opened.tab.locator(".plot").first.get_by_role("button", name="cpu: Other CPU").is_visible()


def test_it_prints_without_what_only_works_on_a_screen(browser: Any, published: Path) -> None:
    opened = Opened(browser, published, 1400, "dark")
    opened.tab.emulate_media(media="print")
    assert not opened.tab.get_by_role("button", name="copy as CSV").first.is_visible()
    assert opened.tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
