"""The report as a person meets it: opened from disk in a real Chromium, clicked, typed at, linked to."""

from __future__ import annotations

import os
import re
import shutil
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
import xarray as xr

from reported import HOSTILE, renamed, small_sweep
from ropescope.base.selections import SCALES
from ropescope.base.tables import Section, Table
from ropescope.display.report import render
from ropescope.measurement.results import mean_over_sequences, stream_data
from ropescope.measurement.summary import counts
from synthetic import synthetic_result

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

WIDTHS = (1280, 390)
FIRST_VIEW_LIMIT, CLICK_LIMIT = 2000, 100
SWITCHES = [
    f"--{switch}"
    for switch in (
        "headless",
        "no-sandbox",
        "disable-gpu",
        "disable-quic",
        "no-first-run",
        "disable-background-networking",
        "disable-component-update",
        "disable-sync",
    )
]
# The moment the map has colour in its middle, and the time from an event to the second frame after it.
CLOCKS = """
window.firstView = null;
window.answers = [];
const glass = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
const canvases = (node) => {
  const inside = [...node.children, ...(node.shadowRoot?.children ?? [])].flatMap(canvases);
  return node.tagName === "CANVAS" && node.width > 50 ? [node, ...inside] : inside;
};
window.pixel = (id, x, y) => canvases(document.getElementById(id)).map((one) => {
  const ratio = one.width / one.getBoundingClientRect().width;
  glass.clearRect(0, 0, 1, 1);
  glass.drawImage(one, -Math.round(x * ratio), -Math.round(y * ratio));
  return [...glass.getImageData(0, 0, 1, 1).data];
}).find((colour) => colour[3] > 0) ?? null;
const look = () => {
  const map = document.getElementById("overview-map");
  const drawn = map?.clientWidth && pixel("overview-map", map.clientWidth / 2, map.clientHeight / 2);
  if (drawn) window.firstView = performance.now();
  else requestAnimationFrame(look);
};
requestAnimationFrame(look);
for (const kind of ["pointerup", "keydown", "input"]) addEventListener(kind, ({ timeStamp }) => {
  requestAnimationFrame(() => requestAnimationFrame(() => answers.push(performance.now() - timeStamp)));
}, { capture: true });
"""
CELL = """([id, x, y]) => {
  const map = document.getElementById(id);
  const { frame } = [...Bokeh.index.roots].find((root) => map.contains(root.el));
  return [frame.x_scale.compute(x), frame.y_scale.compute(y)];
}"""

# A part out of sight is drawn when it is scrolled to.
DRAWN = """(id) => [...Bokeh.index.roots].some((root) => document.getElementById(id).contains(root.el))"""

SETTLED = """() => new Promise((resolve) => {
  setTimeout(() => requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(resolve))), 250);
})"""

# What the Tab key stops at, shadow trees included, and what each is called.
TAB_STOPS = """() => {
  const found = [];
  const walk = (node) => {
    for (const one of [...node.children, ...(node.shadowRoot?.children ?? [])]) {
      const labelled = (one.getAttribute("aria-labelledby") ?? "").split(" ").map((id) => document.getElementById(id));
      const words = [one.getAttribute("aria-label"), ...labelled.map((each) => each?.textContent)];
      words.push(...[...(one.labels ?? [])].map((label) => label.textContent));
      if (["A", "BUTTON", "SUMMARY"].includes(one.tagName)) words.push(one.textContent);
      if (one.tabIndex >= 0 && one.checkVisibility()) found.push({ tag: one.tagName, name: words.join(" ") });
      walk(one);
    }
  };
  walk(document.body);
  return found;
}"""
# Whether the picture of a chart for paper has any colour.
INKED = """(id) => {
  const canvas = document.getElementById(id).querySelector(".printed");
  const data = canvas?.width ? canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data : [];
  return data.some((value) => value > 0);
}"""


class Reader:
    """One open page, and all that it asked for and complained of."""

    def __init__(self, browser: Any, path: Path, hash: str = "", **context: Any) -> None:
        self.context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **context})
        self.page = self.context.new_page()
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: self.complaints.append(dialog.message))
        self.page.on("console", lambda line: self.complaints.append(line.text) if line.type != "log" else None)
        self.page.add_init_script(CLOCKS)
        self.page.goto(path.as_uri() + hash)
        self.wait(lambda: self.page.evaluate("firstView") is not None and self.text("facts"))

    def wait(self, condition: Callable[[], object]) -> None:
        for _ in range(200):
            if condition():
                return
            self.page.wait_for_timeout(25)
        raise AssertionError(f"waited for 5 s in vain; the page says {self.complaints}")

    def text(self, id: str) -> str:
        return str(self.page.locator(f"#{id}").inner_text())

    def number(self, id: str) -> int:
        return int(self.text(id).replace(",", ""))

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)
        self.settle()

    def settle(self) -> None:
        """Until the view is drawn and its address written.

        The page itself keeps the time: however busy the machine, what was to happen before has happened then.
        """
        self.page.evaluate(SETTLED)

    def click(self, map: str, x: float, y: float) -> None:
        self.page.locator(f"#{map}").scroll_into_view_if_needed()
        self.wait(lambda: self.page.evaluate(DRAWN, map))
        box = self.page.locator(f"#{map}").bounding_box()
        left, top = self.page.evaluate(CELL, [map, x, y])
        self.page.mouse.click(box["x"] + left, box["y"] + top)
        self.settle()

    def view(self) -> dict[str, str]:
        return {id: self.text(id) for id in ("head-title", "pair", "overview-title", "band-count", "band-value")}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("chromium is not installed; the test set-up of the Makefile installs it")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=chromium, args=SWITCHES)
        yield opened
        opened.close()


@pytest.fixture
def read(browser: Any) -> Iterator[Callable[..., Reader]]:
    """Open pages; in the end none of them asked for anything but itself, or complained."""
    readers: list[Reader] = []

    def opened(path: Path, hash: str = "", **context: Any) -> Reader:
        readers.append(Reader(browser, path, hash, **context))
        return readers[-1]

    yield opened
    for reader in readers:
        reader.context.close()
    for reader in readers:
        assert not reader.complaints
        assert len({url.split("#")[0] for url in reader.requests}) == 1 and reader.requests[0].startswith("file:")


@pytest.fixture(scope="module")
def result() -> xr.DataTree:
    return synthetic_result(kept=[(0, 1), (1, 0)], cells=64, kv_heads=2)


@pytest.fixture(scope="module")
def report(result: xr.DataTree, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two results, a sweep and a section."""
    path = tmp_path_factory.mktemp("report") / "report.html"
    other = renamed(synthetic_result(layers=6, heads=5, kv_heads=1, seed=3), "other/model")
    section = Section("A finding", ("In words.",), (Table(["what", "number"], [["pairs", "3"]], "Numbers"),))
    path.write_text(render({"tiny": result, "other": other}, sweeps={"s": small_sweep()}, sections=[section]))
    return path


@pytest.mark.slow
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_opens_with_the_counts_of_the_summary_and_fits_the_screen(read, report, result, width, scheme):
    reader = read(report, viewport={"width": width, "height": 800}, color_scheme=scheme)
    expected = counts(result)
    found = [reader.number(f"{name}-count") for name in ("band", "outlier", "periodic")]
    assert found == [expected.bands, expected.outliers, expected.periodic]
    assert f"of {expected.pairs} pairs" in reader.text("band-share")
    assert reader.page.evaluate("document.documentElement.scrollWidth") == width
    assert reader.page.evaluate("document.documentElement.dataset.theme") == scheme
    assert reader.text("head-title") == "Layer 0, query head 1 (RoPE)"
    if folder := os.environ.get("ROPESCOPE_SCREENSHOTS"):
        reader.page.screenshot(path=Path(folder) / f"report-{width}-{scheme}.png", full_page=True)


@pytest.mark.parametrize("width", WIDTHS)
def test_a_click_shows_the_cell_and_its_values(read, report, result, width):
    reader = read(report, viewport={"width": width, "height": 800})
    reader.click("overview-map", 8, 1)
    reader.click("heads-map", 8, 0)
    assert reader.text("head-title") == "Layer 1, query head 0 (RoPE)"
    mean = mean_over_sequences(stream_data(result, "query")).sel(layer=1, head=0, pair=8)
    assert f"SpectrumFE {float(mean.spectrum_fe):.3f} · SequenceFE {float(mean.sequence_fe):.3f}" in reader.text("pair")
    assert reader.text("pair").endswith("outliers") and "pair 8 · wavelength 628 tokens" in reader.text("pair")
    assert f"{float(mean.mean_norm):.3f}" in reader.text("facts") and "64 tokens" in reader.text("facts")


@pytest.mark.slow
@pytest.mark.parametrize("width", WIDTHS)
def test_arrow_keys_move_the_cell_and_brackets_the_head(read, report, width):
    reader = read(report, viewport={"width": width, "height": 800})
    reader.click("overview-map", 3, 1)
    reader.press("ArrowUp", "ArrowUp", "ArrowRight", "]")
    assert reader.text("head-title") == "Layer 3, query head 2 (NoPE)" and "pair 4 · no rotation" in reader.text("pair")
    # layer 2 has no head 2: its last takes over, and the bracket steps down from there
    reader.press("ArrowUp", "ArrowDown", "ArrowLeft", "[")
    assert reader.text("head-title") == "Layer 2, query head 0 (RoPE)" and "pair 3 ·" in reader.text("pair")
    reader.page.locator("#heads-map").focus()
    reader.press("ArrowUp", "PageDown", "ArrowUp")
    assert reader.text("head-title") == "Layer 2, query head 1 (RoPE)"


@pytest.mark.slow
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize(
    ("name", "variable", "below"), [("band", "spectrum_fe", True), ("outlier", "spectrum_fe", False)]
)
def test_a_slider_recounts(read, report, result, width, name, variable, below):
    reader = read(report, viewport={"width": width, "height": 800})
    before = reader.number(f"{name}-count")
    reader.page.locator(f"#{name}").focus()
    reader.press(*["ArrowRight" if below else "ArrowLeft"] * 20)
    threshold = float(reader.text(f"{name}-value"))
    values = mean_over_sequences(stream_data(result, "query"))[variable].values
    expected = int((values < threshold).sum() if below else (values > threshold).sum())
    assert reader.number(f"{name}-count") == expected > before
    assert threshold == pytest.approx(0.3)


def test_clicks_in_quick_succession_all_count(read, report):
    reader = read(report)
    for pair, layer in ((2, 0), (9, 1), (12, 3)):
        left, top = reader.page.evaluate(CELL, ["overview-map", pair, layer])
        box = reader.page.locator("#overview-map").bounding_box()
        reader.page.mouse.click(box["x"] + left, box["y"] + top)
        reader.wait(lambda where=f"layer {layer} · head 1 · pair {pair} ": where in reader.text("pair"))


@pytest.mark.slow
def test_a_slider_recolours_the_map(read, report):
    reader = read(report)
    left, top = reader.page.evaluate(CELL, ["overview-map", 10, 1])
    before = reader.page.evaluate("([x, y]) => pixel('overview-map', x, y)", [left, top])
    reader.page.locator("#band").focus()
    reader.press(*["ArrowRight"] * 40)
    assert reader.page.evaluate("([x, y]) => pixel('overview-map', x, y)", [left, top]) != before


def test_the_map_has_the_colours_of_the_figures(read, report, result):
    reader = read(report)
    mean = mean_over_sequences(stream_data(result, "query")).spectrum_fe.mean("head")
    low, high = SCALES["spectrum_fe"]
    for pair in (1, 3, 6):
        value = float(mean.sel(layer=3, pair=pair))
        assert value < 0.2
        left, top = reader.page.evaluate(CELL, ["overview-map", pair, 3])
        shown = reader.page.evaluate("([x, y]) => pixel('overview-map', x, y)", [left, top])
        expected = 255 * np.array(mpl.colormaps["viridis"](int(256 * (value - low) / (high - low))))
        np.testing.assert_allclose(shown, expected, atol=2)


@pytest.mark.slow
def test_the_link_brings_the_same_view_back(read, report):
    first = read(report)
    first.page.locator("#map").select_option("lowest")
    first.page.locator("label", has_text="Keys").click()
    first.click("overview-map", 6, 3)
    first.page.locator("#band").focus()
    first.press("ArrowLeft", "ArrowLeft")
    first.page.locator("#theme").click()
    first.settle()
    address = first.page.evaluate("location.href")
    second = read(report, "#" + address.split("#")[1])
    assert second.view() == first.view()
    assert second.text("band-value") == "0.190" and "of keys, lowest head" in second.text("overview-title")
    assert second.page.evaluate("document.documentElement.dataset.theme") == "dark"
    second.page.locator("#copy-link").click()
    second.settle()
    assert second.page.evaluate("location.href") == address


@pytest.mark.slow
def test_back_and_forward_go_through_the_views(read, report):
    reader = read(report)
    reader.click("overview-map", 3, 1)
    reader.click("overview-map", 5, 3)
    third = reader.view()
    reader.page.go_back()
    reader.settle()
    assert reader.text("head-title") == "Layer 1, query head 1 (RoPE)"
    reader.page.go_forward()
    reader.settle()
    assert reader.view() == third


@pytest.mark.slow
@pytest.mark.parametrize(
    "hash",
    [
        "#result=9&stream=value&entropy=x&map=y&layer=77&head=88&pair=99&band=2&outlier=-1&periodic=NaN&theme=pink",
        "#layer=-1&head=1e9&pair=1.5&band=&outlier=.&%E0%A4%A",
        "#<img src=x onerror=alert(1)>",
        "#layer=__proto__&stream=constructor",
    ],
)
def test_a_bad_link_opens_the_first_view(read, report, hash):
    view = read(report, hash).view()
    assert view["head-title"] == "Layer 0, query head 1 (RoPE)" and view["band-value"] == "0.200"
    assert view["overview-title"] == "SpectrumFE of queries, mean over heads"


@pytest.mark.slow
def test_the_norms_of_a_head_are_shown_or_said_how_to_get(read, report):
    reader = read(report)
    reader.page.locator("#norms").scroll_into_view_if_needed()
    reader.settle()
    assert not reader.page.locator("#norms-missing").is_visible() and "brightest" in reader.text("norms-note")
    reader.press("]")
    assert "--norm-heads 0:2" in reader.text("norms-missing")
    reader.page.locator("#norms-jump").click()
    reader.settle()
    assert reader.text("head-title") == "Layer 0, query head 1 (RoPE)"


@pytest.mark.slow
def test_another_result_is_picked_with_its_own_card(read, report):
    reader = read(report)
    assert reader.page.locator("h1:visible").inner_text() == "synthetic/tiny-irope"
    reader.page.locator("#result").select_option("1")
    reader.settle()
    assert reader.page.locator("h1:visible").inner_text() == "other/model"
    reader.press("]", "]", "]")
    assert reader.text("head-title") == "Layer 0, query head 4 (RoPE)"


@pytest.mark.slow
def test_the_table_of_values_follows_the_head(read, report, result):
    reader = read(report)
    reader.page.locator("#values summary").click()
    reader.press("[")
    reader.wait(lambda: reader.page.locator("#values-table tr").count() > 1)
    rows = reader.page.locator("#values-table tr").all_inner_texts()
    values = mean_over_sequences(stream_data(result, "query")).spectrum_fe.sel(layer=0, head=0).values
    assert [row.split("\t")[2] for row in rows[1:]] == ["undefined" if np.isnan(v) else f"{v:.3f}" for v in values]


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 390])
def test_the_words_of_charts_have_their_room_before_they_come(read, report, width):
    reader = read(report, viewport={"width": width, "height": 900})
    top = "document.getElementById('values').getBoundingClientRect().top + scrollY"
    for id in ("norms", "spectrum", "periods"):
        reader.wait(lambda id=id: reader.page.evaluate(DRAWN, id) and reader.text(f"{id}-note"))
    drawn = reader.page.evaluate(top)
    reader.page.evaluate(
        "document.querySelectorAll('#explorer figcaption p').forEach((words) => { words.textContent = '' })"
    )
    assert reader.page.evaluate(top) == drawn


@pytest.mark.slow
def test_everything_is_reached_by_tab_and_named(read, report):
    reader = read(report)
    reached = set()
    for _ in range(40):
        reader.page.keyboard.press("Tab")
        reached.add(reader.page.evaluate("document.activeElement.id || document.activeElement.name"))
    wanted = "copy-link theme result stream entropy map band outlier periodic overview-map heads-map next-head"
    assert reached >= set(wanted.split())
    assert not reader.page.locator(".plot:not([aria-labelledby]):not([aria-label])").count()
    assert reader.page.locator("#pair").get_attribute("aria-live") == "polite"


@pytest.mark.slow
def test_every_place_that_tab_stops_at_has_a_name(read, report):
    reader = read(report)
    reader.page.locator("#values summary").scroll_into_view_if_needed()
    reader.wait(lambda: reader.page.evaluate(DRAWN, "periods"))

    def named() -> bool:
        stops = reader.page.evaluate(TAB_STOPS)
        return len(stops) > 15 and all(stop["name"].strip() for stop in stops)

    # A chart that is being drawn out of sight is one for a moment.
    reader.wait(named)


@pytest.mark.slow
def test_the_map_of_lowest_heads_opens_the_head_it_shows(read, report, result):
    reader = read(report)
    reader.page.locator("#map").select_option("lowest")
    lowest = mean_over_sequences(stream_data(result, "query")).spectrum_fe.sel(layer=1).fillna(9)
    for pair in range(16):
        head = int(lowest.sel(pair=pair).argmin("head"))
        if head != 1:
            break
    reader.click("overview-map", pair, 1)
    assert head != 1 and reader.text("head-title") == f"Layer 1, query head {head} (RoPE)"
    reader.page.locator("#map").select_option("mean")
    reader.click("overview-map", pair, 0)
    assert reader.text("head-title") == f"Layer 0, query head {head} (RoPE)"


@pytest.mark.slow
def test_the_share_of_heads_is_drawn_up_to_its_highest(read, report, result):
    reader = read(report)
    reader.page.locator("#map").select_option("outlier")
    reader.settle()
    data = mean_over_sequences(stream_data(result, "query"))
    share = ((data.spectrum_fe > 0.4) & data.mean_norm.notnull()).sum("head") / data.mean_norm.notnull().sum("head")
    assert 0 < float(share.max()) < 1
    assert reader.text("overview-scale").split("\n")[-1] == f"{100 * float(share.max()):.0f} %"


@pytest.mark.slow
def test_silent_pairs_are_counted_named_and_hatched(read, report, result):
    reader = read(report)
    silent = (mean_over_sequences(stream_data(result, "query")).mean_norm == 0).sum(("head", "pair")).values
    assert silent.sum() == 1
    assert "1 pair is silent" in reader.text("missing-note")
    layer = int(silent.argmax())
    place = np.argwhere((mean_over_sequences(stream_data(result, "query")).mean_norm == 0).values)[0]
    reader.click("overview-map", int(place[2]), layer)
    heads = result["query"].sizes["head"]
    reader.press(*["["] * heads, *["]"] * int(place[1]))
    assert f"head {place[1]} " in reader.text("head-title")
    assert reader.text("pair").endswith("silent") and f"{silent[layer]} silent" in reader.text("heads-note")
    reader.page.locator("#heads-map").scroll_into_view_if_needed()
    reader.wait(lambda: reader.page.evaluate(DRAWN, "heads-map"))
    assert (
        reader.page.evaluate("""() => {
      const { model } = [...Bokeh.index.roots].find((root) => document.getElementById("heads-map").contains(root.el));
      const hatched = model.renderers.find((one) => one.glyph.hatch_pattern);
      return [...hatched.data_source.data.x];
    }""").count(int(place[2]))
        == 1
    )


@pytest.mark.slow
def test_another_result_can_stand_beside_on_the_same_scale(read, report):
    reader = read(report)
    assert not reader.page.locator("#beside-map").is_visible()
    reader.page.locator("#beside").select_option("1")
    reader.settle()
    assert reader.text("overview-name") == "tiny" and reader.text("beside-name") == "other"
    reader.click("beside-map", 4, 3)
    assert reader.text("head-title").startswith("Layer 3") and "pair 4 ·" in reader.text("pair")
    reader.settle()
    again = read(report, reader.page.evaluate("location.hash"))
    assert again.text("beside-name") == "other"


@pytest.mark.slow
def test_the_contents_lead_to_every_section_and_leave_the_view(read, report):
    reader = read(report)
    reader.click("overview-map", 3, 1)
    before = reader.page.evaluate("location.hash")
    reader.page.locator("#contents summary").click()
    listed = reader.page.locator("#contents a").all_inner_texts()
    headings = reader.page.locator("main > section > h2").all_inner_texts()
    assert listed[0] == "Explorer" and set(listed[1:-1]) <= set(headings) and "A finding" in listed
    reader.page.locator("#contents a", has_text="A finding").click()
    reader.settle()
    assert reader.page.locator("#section-0").evaluate("(section) => section.getBoundingClientRect().top") < 800
    assert reader.page.evaluate("location.hash") == before


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_prints_whole_and_light_and_is_afterwards_as_before(read, report, scheme):
    reader = read(report, color_scheme=scheme)
    reader.wait(lambda: reader.page.evaluate(DRAWN, "sweep-0-0"))
    reader.settle()
    reader.page.evaluate("dispatchEvent(new Event('beforeprint'))")
    charts = [id for id in reader.page.evaluate("[...document.querySelectorAll('.plot')].map((one) => one.id)")]
    charts.remove("beside-map")
    blank = [id for id in charts if not reader.page.evaluate(INKED, id)]
    assert len(charts) > 8 and blank == []
    assert reader.page.evaluate("document.documentElement.dataset.theme") == "light"
    assert reader.page.locator("details:not([open])").count() == 0
    reader.page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert reader.page.evaluate("document.documentElement.dataset.theme") == scheme
    assert not reader.page.locator(".printed").count() and not reader.page.locator("details[open]").count()


def test_wide_tables_fold_on_a_phone(read, report):
    reader = read(report, viewport={"width": 390, "height": 800})
    table = reader.page.locator("#sweep-0 .fold").first
    table.scroll_into_view_if_needed()
    assert table.evaluate("(one) => one.scrollWidth <= one.clientWidth")
    cell = table.locator("td").first
    assert cell.get_attribute("data-label") == "pairs"
    assert cell.evaluate("(one) => getComputedStyle(one, '::before').content") != "none"


@pytest.mark.slow
def test_sweeps_are_drawn_without_being_scrolled_to_and_controls_are_marks(read, report):
    reader = read(report)
    reader.wait(lambda: reader.page.evaluate(DRAWN, "sweep-0-0"))
    glyphs = reader.page.evaluate("""() => {
      const { model } = [...Bokeh.index.roots].find((root) => document.getElementById("sweep-0-0").contains(root.el));
      return model.renderers.map((one) => [one.glyph.type, one.data_source.data.x?.length ?? 0]);
    }""")
    shown = reader.page.evaluate("""() => {
      const { model } = [...Bokeh.index.roots].find((root) => document.getElementById("sweep-0-0").contains(root.el));
      const [axis] = model.left;
      return axis.formatter.doFormat([30, 35], { loc: 0 });
    }""")
    assert shown == ["30", "35"]
    # three strengths of the selection as a line and its marks; controls at the two below 1
    assert [length for kind, length in glyphs if kind == "Line"] == [3]
    assert sorted(length for kind, length in glyphs if kind == "Scatter") == [2, 2, 3]


def test_names_with_markup_stay_text_in_the_browser(read, tmp_path):
    path = tmp_path / "report.html"
    hostile = renamed(synthetic_result(), HOSTILE)
    path.write_text(render({HOSTILE: hostile, "b": hostile}, sweeps={HOSTILE: small_sweep(HOSTILE)}), encoding="utf-8")
    reader = read(path)
    assert reader.page.locator("h1:visible").text_content() == HOSTILE
    assert reader.page.locator("#result option").first.text_content() == HOSTILE
    assert not reader.page.locator("img[onerror]").count()


EVERY_HEAD = [(layer, head) for layer in range(30) for head in range(9)]


@pytest.mark.slow
def test_a_small_model_stays_small_with_the_norms_of_every_head():
    result = synthetic_result(30, 9, 3, 32, 8, padded=False, kept=EVERY_HEAD, cells=512)
    assert len(render({"SmolLM2-135M": result}).encode()) < 8e6


def fast(answers):
    """The lower quartile: what the page takes while nothing else takes the machine, which a test cannot choose."""
    return statistics.quantiles(answers, n=4)[0]


@pytest.mark.slow
def test_a_model_like_llama_4_scout_stays_usable(read, tmp_path, capsys):
    kept = [(layer, 0) for layer in range(48)]
    still = range(3, 48, 4)
    result = synthetic_result(48, 40, 8, 64, 4, nope_layers=still, padded=False, kept=kept, cells=512)
    path = tmp_path / "llama4.html"
    path.write_text(render({"Llama-4-Scout": result}), encoding="utf-8")
    reader = read(path)
    first_view = reader.page.evaluate("firstView")
    reader.settle()
    reader.page.evaluate("answers.length = 0")
    for step in range(9):
        reader.click("overview-map", 5 + 6 * step, 46 - 5 * step)
        assert reader.text("head-title").startswith(f"Layer {46 - 5 * step}, query head 1")
    clicks = reader.page.evaluate("answers.splice(0)")
    reader.press("ArrowUp", "]", "ArrowRight")
    for _ in range(4):
        reader.press("ArrowUp")
    keys = reader.page.evaluate("answers.splice(0)")
    size = path.stat().st_size / 1e6
    click, key = fast(clicks), fast(keys)
    with capsys.disabled():
        print(
            f"\nLlama-4-sized report: {size:.1f} MB, first view {first_view:.0f} ms, "
            f"click {click:.0f} ms, key {key:.0f} ms"
        )
    assert size < 30
    assert first_view < FIRST_VIEW_LIMIT
    assert click < CLICK_LIMIT
    assert key < CLICK_LIMIT
    assert re.match(r"Layer \d+, query head 2", reader.text("head-title"))
