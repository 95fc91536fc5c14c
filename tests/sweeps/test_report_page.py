"""The page of a report: nothing in it runs or loads but its two scripts, and a browser shows it without a network."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from in_browser import chromium, wait_until

from sweeps.ledger import Ledger
from sweeps.report import write_report
from sweeps.report.document import Document, Section, Table, Text
from sweeps.report.page import page

BENCHMARK = Path(__file__).parents[1] / "benchmarks" / "report_speed.py"
LARGEST = 5_000_000
"bytes of a page, also of a thousand trials"
VOID = ("meta",)
TAGS = {"html", "head", "meta", "title", "style", "body", "a", "header", "h1", "p", "nav", "ul", "li", "main", "td"}
TAGS |= {"section", "h2", "dl", "dt", "dd", "code", "div", "table", "caption", "thead", "tr", "th", "button", "tbody"}
TAGS |= {"strong", "figure", "figcaption", "noscript", "template", "script"}
ATTRIBUTES = {"lang", "charset", "http-equiv", "content", "name", "id", "class", "href", "tabindex", "role", "scope"}
ATTRIBUTES |= {
    "type",
    "data-value",
    "data-height",
    "data-width",
    "data-first",
    "aria-label",
    "aria-labelledby",
    "aria-sort",
}


class Reader(HTMLParser):
    """Tags, attributes, scripts and styles of a page."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {"script": [], "style": []}
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == [], "every element is closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)
            if tag in self.texts:
                self.texts[tag].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] in self.texts:
            self.texts[self._open[-1]][-1] += data


def check_page(text: str) -> Reader:
    """Fails where anything foreign could run, load or lead away."""
    reader = Reader(text)
    for tag, attributes in reader.tags:
        assert tag in TAGS
        assert attributes.keys() <= ATTRIBUTES, f"{tag} {attributes}"
        assert (attributes.get("href") or "#").startswith("#")
        if tag == "script":
            assert attributes.get("type") in (None, "application/json", "application/octet-stream")
    assert len(reader.texts["script"]) == 3
    policies = [a["content"] for tag, a in reader.tags if a.get("http-equiv") == "Content-Security-Policy"]
    rules = dict(rule.split(" ", 1) for rule in str(policies[0]).split("; "))
    assert rules["default-src"] == "'none'"
    assert "unsafe" not in rules["script-src"] + rules["style-src"]
    figures, packed, script = reader.texts["script"]
    plotly = gzip.decompress(base64.b64decode(packed)).decode()
    assert rules["script-src"].split() == [digest(script), digest(plotly)]
    assert set(rules["style-src"].split()) == {digest(style) for style in reader.texts["style"]}
    assert "<" not in figures
    return reader


def digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


@pytest.fixture(scope="module")
def report(hostile_sweep: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(Ledger.read(hostile_sweep), tmp_path_factory.mktemp("report")).page


def strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from strings(list(value.values()))
    elif isinstance(value, list):
        for item in value:
            yield from strings(item)


def test_hostile_titles_and_reasons_are_nothing_but_text(report: Path, hostile: tuple[str, ...]) -> None:
    text = report.read_text()
    reader = check_page(text)
    assert all(character.isprintable() or character == "\n" for character in text)
    shown = [found for found in strings(json.loads(reader.texts["script"][0]))]
    assert any("script&gt;" in found or "&lt;script" in found for found in shown), "the titles are in the tree"
    allowed = r"<(br|b|/b|extra|/extra)>"
    assert not any("<" in re.sub(allowed, "", found) for found in shown), "Plotly reads tags in texts"


def test_hostile_names_of_settings_columns_and_sections_are_text_too(hostile: tuple[str, ...]) -> None:
    rows: list[list[Any]] = [[text, text] for text in hostile]
    blocks = [Table(hostile[0], hostile[:2], rows, hostile[2]), *(Text(text) for text in hostile)]
    check_page(page(Document("".join(hostile), hostile[0], [Section("x", "".join(hostile), blocks)])))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_page_of_a_thousand_trials_is_small(tmp_path: Path) -> None:
    words = [sys.executable, str(BENCHMARK), "--trials", "1000", "--storage", str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=550)
    assert done.returncode == 0, done.stderr
    found = tmp_path / "long" / "report" / "report.html"
    assert found.stat().st_size < LARGEST
    assert found.read_text().count("<tr>") > 900


# -- in a browser -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Without a network."""
    with chromium() as found:
        found.set_network_conditions(offline=True, latency=0, throughput=0)
        yield found


STATES = "[...document.querySelectorAll('.picture')].map(place => place.dataset.state)"


MARKS = """[...document.querySelectorAll('.picture')].map(place => [
    place.getAttribute('aria-label'),
    place.querySelectorAll('.trace .point, .trace .js-line, .slice, .contourlayer path').length,
])"""
"title of every picture, and how much of its data it shows: lines, points, bars, boxes"


def open_and_draw(browser: Any, path: Path) -> list[str]:
    """Open the page and have all pictures drawn; what the console says."""
    browser.get(path.as_uri())
    wait_until(browser, "window.Plotly !== undefined")
    wait_until(browser, f"(window.dispatchEvent(new Event('beforeprint')), {STATES}.every(s => s && s !== 'drawing'))")
    return [entry["message"] for entry in browser.get_log("browser")]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_page_draws_its_pictures_and_sorts_its_tables_without_a_network(browser: Any, report: Path) -> None:
    assert open_and_draw(browser, report) == []
    states = browser.execute_script(f"return {STATES}")
    assert len(states) > 8
    assert set(states) == {"drawn"}
    drawn = dict(browser.execute_script(f"return {MARKS}"))
    assert min(drawn.values()) > 0, drawn
    browser.execute_script("Plotly.react(document.querySelector('.picture'), [], {})")
    assert browser.execute_script(f"return {MARKS}")[0][1] == 0, "an empty picture is seen to be empty"
    assert browser.execute_script("return document.querySelectorAll('.modebar-btn').length") > 0
    stops = "[...document.querySelectorAll('.picture a, .picture button')].filter(e => e.tabIndex >= 0).length"
    assert browser.execute_script(f"return {stops}") == 0, "the buttons of the pictures are no stops of the keyboard"
    assert browser.execute_script("return document.querySelectorAll('main a, main script, main img').length") == 0
    assert browser.execute_script("return [...document.querySelectorAll('svg a')].length") == 0

    cells = "[...document.querySelectorAll('#leaderboard tbody tr')].map(row => row.cells[3].textContent)"
    head = "document.querySelectorAll('#leaderboard th')[3]"
    first = browser.execute_script(f"return {cells}")
    assert len(first) == 2
    browser.execute_script(f"{head}.querySelector('button').focus()")
    browser.switch_to.active_element.send_keys("\ue007")  # the Enter key
    best_first = browser.execute_script(f"return {cells}")
    assert best_first == sorted(first, key=float, reverse=True)
    assert browser.execute_script(f"return {head}.ariaSort") == "descending"
    browser.switch_to.active_element.send_keys("\ue007")
    assert browser.execute_script(f"return {cells}") == best_first[::-1]
    assert browser.execute_script(f"return {head}.ariaSort") == "ascending"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_page_is_no_wider_than_a_phone_and_its_first_stop_leads_to_the_content(browser: Any, report: Path) -> None:
    metrics = {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        open_and_draw(browser, report)
        assert browser.execute_script("return document.documentElement.scrollWidth") <= 360
        browser.execute_script("document.activeElement.blur(); window.scrollTo(0, 0)")
        browser.find_element("tag name", "body").send_keys("\ue004")  # the Tab key
        assert browser.switch_to.active_element.get_attribute("href").endswith("#content")
        assert browser.execute_script("return document.activeElement.getBoundingClientRect().left") >= 0
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_stand_out_from_their_ground(browser: Any, report: Path, scheme: str) -> None:
    """The contrast of every text is at least 4.5 to 1."""
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    open_and_draw(browser, report)
    found = browser.execute_script(
        """
        const light = (text) => {
          const [r, g, b] = text.match(/[\\d.]+/g).slice(0, 3).map(Number).map((c) => {
            const s = c / 255;
            return s <= 0.04045 ? s / 12.92 : ((s + 0.055) / 1.055) ** 2.4;
          });
          return 0.2126 * r + 0.7152 * g + 0.0722 * b;
        };
        const ground = (node) => {
          for (; node; node = node.parentElement) {
            const colour = getComputedStyle(node).backgroundColor;
            if (!/, 0\\)$|transparent/.test(colour)) return colour;
          }
          return "rgb(255, 255, 255)";
        };
        const worst = {};
        for (const node of document.querySelectorAll("h1, h2, p, a, td, th button, caption, figcaption, code, dt")) {
          const [a, b] = [light(getComputedStyle(node).color), light(ground(node))];
          const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
          worst[node.tagName] = Math.min(worst[node.tagName] ?? 99, contrast);
        }
        const slices = [...document.querySelectorAll(".picture .slice")].filter((slice) => slice.querySelector("text"));
        for (const node of document.querySelectorAll(".picture text")) {
          const slice = node.closest(".slice");
          const ground_ = slice ? getComputedStyle(slice.querySelector("path")).fill : ground(node.closest(".picture"));
          const [a, b] = [light(getComputedStyle(node).fill), light(ground_)];
          const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
          const kind = slice ? "slice" : "svg text";
          if (node.textContent) worst[kind] = Math.min(worst[kind] ?? 99, contrast);
        }
        return slices.length ? worst : {};
        """
    )
    assert found.keys() >= {"P", "TD", "slice", "svg text"}
    assert min(found.values()) >= 4.5, found
