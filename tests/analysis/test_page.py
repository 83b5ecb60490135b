"""The HTML page says what the runs say, in a real browser, whatever the runs hold."""

import dataclasses
import itertools
import json
import math
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import sync_playwright
from test_runs import epoch, stats, write_run

import report
from conftest import REPOSITORY
from debugnn import records
from debugnn.records import Layers, LrPoint, Step

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
LAYERS = ("conv1", "fc1")
HOSTILE = "</script><b>&'\""


def training(seed, learns, epochs=10):
    rng = np.random.default_rng(seed)
    for step in range(0, 200, 10):
        decay = 1.0 if learns else 10.0 ** (-step / 50)
        gradients = {f"{layer}.weight": stats(decay * rng.normal(size=99)) for layer in LAYERS}
        plain = stats(rng.normal(size=99), dead_units=0.0)
        act = dataclasses.replace(plain, dead_units=step / 200, saturated=0.25)
        active = {"conv1": plain, "act1": act, "fc1": plain}  # act1 belongs to conv1
        yield Layers(0, step, gradients, {}, active)
        yield Step(0, step, 2.3, 50.0, 1e-3, decay)
    for number in range(epochs):
        loss = 2.3 / (number + 1) if learns else 2.3
        yield epoch(number, loss, (90.0 if learns else 10.0) + rng.random())


def said(cause, summary=""):
    finding = {"severity": "error", "cause": cause, "summary": summary, "fix": f"mend {HOSTILE}"}
    return records.dump({"main_cause": cause, "healthy": cause == "healthy", "reason": "seen",
                         "findings": [] if cause == "healthy" else [finding]})  # fmt: skip


@pytest.fixture
def reported(monkeypatch, capsys):
    """`reported(RUN, …)`: `scripts/report.py` in this process: exit code, output, errors."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["report.py", *map(str, arguments)])
        return report.main(), *capsys.readouterr()

    return run


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The page of runs of every sort: sound, failing, range tests, hostile names, useless ones."""
    root = tmp_path_factory.mktemp("runs")
    vanishing = {"experiment": "vanishing_gradient", "data": "mnist"}
    for seed in range(20):
        for model, learns in (("relu_net", True), ("sigmoid_net", False)):
            arm = {"data": "mnist", "model": model}
            directory = write_run(root, arm, training(seed, learns, 40), seed=seed, **vanishing)
            cause = "healthy" if learns else "vanishing_gradient"
            (directory / "findings.json").write_text(said(cause, f"conv1 {HOSTILE}"))
    points = [
        LrPoint(t, i, 10.0 ** (i / 5 - 9), 1.0, 2.3, 2.3 + i) for t in (0, 1) for i in range(50)
    ]
    write_run(root, {"task": "lr_find", "data": "mnist"}, points, experiment="lr_finder",
              data="mnist", task="lr_find")  # fmt: skip
    for number in range(12):
        arm = {"model": f"net{number:02d}", "optim.lr": "0.1"}
        write_run(root, arm, training(0, number % 2, 3), experiment="many")
    lone = write_run(root, {"init": "kaiming", "model.activation": "GELU"}, training(0, True, 3),
                     experiment="adhoc")  # fmt: skip
    config = records.load((lone / "config.yaml").read_text())
    config |= {"report": None, "model": {"activation": {"_target_": "torch.nn.GELU"}}}
    (lone / "config.yaml").write_text(records.dump(config))
    lost = [epoch(0, math.nan, None), epoch(1, math.inf, None)]
    write_run(root, {"clip": HOSTILE}, lost, experiment="nan_loss", data="regression")
    write_run(root, {"reg": "bn"}, status="failed")
    torn = write_run(root, {"reg": "none"}, [epoch(0)]) / "metrics.jsonl"
    torn.write_text(torn.read_text() + "{nothing}\n")
    output = root / "report.html"
    shown = subprocess.run(
        [sys.executable, str(REPOSITORY / "scripts" / "report.py"), str(root)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout == f"55 runs in {output}\n"
    return output


def test_the_page_is_one_file_that_asks_for_nothing(page):
    text = page.read_text(encoding="utf-8")
    assert len(text) < 5e6
    loaded = re.findall(r"<(?:link|img|script|iframe|source)\b[^>]*\b(?:src|href)=", text)
    assert loaded == []
    assert re.findall(r"url\(|@import", text) == []


def test_what_runs_hold_is_text(page):
    text = page.read_text(encoding="utf-8")
    assert HOSTILE not in text
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1])
    assert list(data) == ["lr_finder", "vanishing_gradient", "nan_loss", "many-embedded",
                          "adhoc-embedded"]  # fmt: skip


def test_claims_have_their_verdicts_and_useless_runs_their_reasons(page):
    text = re.sub(r"\s+", " ", page.read_text(encoding="utf-8"))
    assert 'Claim 5b <span class="badge" data-outcome="holds">' in text
    assert 'Claim 5c <span class="badge" data-outcome="does not hold">' in text
    assert '<p class="quiet">Measured: test accuracy after epoch 10 (%).</p>' in text
    assert "<li>sigmoid net: 20 of 20 seeds (84 to 100 %)</li>" in text
    assert '<th scope="col">arm: model</th>' in text
    assert "failed: no error was recorded" in text
    assert "metrics.jsonl: not strict JSON lines (line 2: " in text


def test_a_directory_without_a_run_is_an_error(reported, tmp_path):
    write_run(tmp_path, {"reg": "bn"}, status="failed")
    code, _, errors = reported(tmp_path)
    assert code == 1
    assert errors.startswith(f"error: {tmp_path}: no finished run")
    assert "seed=0: failed" in errors
    assert "Traceback" not in errors


def test_runs_without_an_experiment_have_the_command_that_makes_them(page):
    text = page.read_text(encoding="utf-8")
    said = "python train.py init=kaiming model.activation._target_=torch.nn.GELU seed=0"
    assert f"<code>{said}</code>" in text


def test_arms_that_differ_in_their_epochs_alone_are_two(reported, tmp_path):
    for model, epochs in (("a", 2), ("b", 2), ("b", 3)):
        arm = {"model": model, "trainer.epochs": str(epochs)}
        write_run(tmp_path, arm, training(0, True, epochs))
    assert reported(tmp_path)[0] == 0
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert re.findall('<th scope="row">(.*)</th>', text) == ["a, 2", "b, 2", "b, 3"]


def test_a_page_of_one_run_stands_in_its_directory(reported, tmp_path):
    write_run(tmp_path, {"reg": "none"}, training(0, True))
    chosen = write_run(tmp_path, {"reg": "bn"}, training(0, True))
    _, shown, _ = reported(chosen)
    assert shown == f"1 run in {chosen / 'report.html'}\n"
    text = (chosen / "report.html").read_text(encoding="utf-8")
    assert '<th scope="row">reg=bn</th>' in text
    assert "reg=none" not in text
    _, both, _ = reported(chosen, tmp_path / "trial")  # one of them twice
    assert both == f"2 runs in {tmp_path / 'trial' / 'report.html'}\n"


# --- in a browser ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser():
    if BROWSER is None:
        pytest.skip("no Chromium on this machine")
    with sync_playwright() as library:
        running = library.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture
def opened(browser, page):
    """Open the page and bring all of it into view; whatever it complains of fails the test."""
    complaints = []

    def open_page(**options):
        tab = browser.new_page(**{"viewport": {"width": 1200, "height": 900}, **options})
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        tab.on("console", lambda message: complaints.append(message.text))
        tab.on("request", lambda request: complaints.append(request.url)
               if not request.url.startswith("file:") else None)  # fmt: skip
        tab.goto(page.as_uri())
        for place in tab.locator("[data-kind]").all():
            place.scroll_into_view_if_needed()
            place.locator("> *").first.wait_for()
        return tab

    yield open_page
    assert complaints == []


slow = pytest.mark.slow  # a browser starts


@slow
def test_curves_are_drawn_with_a_switch_for_each_arm(opened):
    tab = opened()
    section = tab.locator("section#vanishing_gradient")
    assert section.locator(".uplot").count() == 3
    chart = section.locator(".chart").nth(2)
    canvas = chart.locator("canvas")
    before = canvas.screenshot()
    chart.get_by_label("sigmoid_net (20 seeds)").uncheck()
    assert canvas.screenshot() != before
    chart.get_by_label("sigmoid_net (20 seeds)").check()
    button = chart.get_by_role("button", name="logarithmic axis: Test accuracy (%)")
    linear = chart.locator("canvas").screenshot()
    button.click()
    assert button.get_attribute("aria-pressed") == "true"
    assert chart.locator("canvas").screenshot() != linear


@slow
def test_the_cursor_reads_values_by_the_keyboard(opened):
    tab = opened()
    chart = tab.locator("section#vanishing_gradient .chart").nth(1)
    plot = chart.get_by_role("img")
    assert "relu_net: from 2.3 to 0.0575" in plot.get_attribute("aria-label")
    plot.focus()
    for _ in range(3):
        tab.keyboard.press("ArrowRight")
    shown = [output.text_content() for output in chart.locator("output").all()]
    assert shown == ["0.7667", "2.3", "epoch 2"]


@slow
def test_the_network_plays_the_training(opened):
    tab = opened()
    network = tab.locator("section#vanishing_gradient .network")
    network.get_by_label("arm").select_option(label="sigmoid_net")
    slider = network.get_by_label("step of the training")
    tiles = network.locator(".tile")
    assert tiles.count() == 2
    first = tiles.first.evaluate("tile => tile.style.background"), tiles.first.text_content()
    slider.focus()
    tab.keyboard.press("End")
    assert slider.get_attribute("aria-valuetext") == "step 190"
    last = tiles.first.evaluate("tile => tile.style.background"), tiles.first.text_content()
    assert first[0] != last[0]
    sizes = [float(text.removeprefix("|g| ")) for _, text in (first, last)]
    assert sizes[1] < 1e-3 * sizes[0]
    told = network.locator(".units")
    assert "dead 95 %" in told.nth(0).text_content()
    assert "dead 0 %" in told.nth(1).text_content()
    network.get_by_label("colour").select_option(label="saturated values")
    assert tiles.all_text_contents() == ["saturated 25 %", "–"]
    network.get_by_role("button", name="Play").click()
    tab.wait_for_function("document.querySelector('.network input').value > 2")


@slow
def test_heatmaps_show_their_shares(opened):
    tab = opened()
    part = tab.locator("section#vanishing_gradient .heatmaps")
    part.get_by_label("arm").select_option(label="sigmoid_net")
    canvas = part.locator("canvas").first
    label = canvas.get_attribute("aria-label")
    start, end = (float(power) for power in re.findall(r"10\^(-?[\d.]+)", label))
    assert end < start - 3  # the gradients shrink by 3.8 decades
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    for share in (0.1, 0.3, 0.5, 0.7):
        tab.mouse.move(box["x"] + box["width"] / 2, box["y"] + share * box["height"])
        assert "% of the values at" in part.locator(".readout").text_content()
    canvas.focus()
    for key in ("ArrowRight", "ArrowRight", "ArrowLeft", "ArrowRight"):
        tab.keyboard.press(key)
    assert "conv1.weight, step 10: " in part.locator(".readout").text_content()


@slow
def test_large_shares_stand_out_from_light_and_from_dark_paper(opened):
    """What is dark on light paper is light on dark paper."""
    canvas = "section#vanishing_gradient .heatmaps canvas"
    light, dark = (np.array(opened(color_scheme=scheme).evaluate(LIGHTNESS, canvas))
                   for scheme in ("light", "dark"))  # fmt: skip
    cells = (light >= 0) & (dark >= 0)
    assert np.corrcoef(light[cells], dark[cells])[0, 1] < -0.9


# The lightness of each pixel of a canvas, −1 where it shows the paper.
LIGHTNESS = """(selector) => {
  const canvas = document.querySelector(selector);
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  return Array.from({ length: data.length / 4 }, (_, i) => data[4 * i + 3] < 255 ? -1 :
    0.2126 * data[4 * i] + 0.7152 * data[4 * i + 1] + 0.0722 * data[4 * i + 2]);
}"""


@slow
@pytest.mark.parametrize("width", [360, 768, 1400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_its_window_and_its_scheme(opened, width, scheme):
    tab = opened(viewport={"width": width, "height": 800}, color_scheme=scheme)
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    paper = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", paper))) < 384) is (scheme == "dark")
    lowest = tab.evaluate(CONTRAST)
    assert lowest >= 4.5, "WCAG 2.1, success criterion 1.4.3"


# The lowest contrast of a text with what is behind it.
CONTRAST = """() => {
  const channel = (c) => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
  const behind = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const colour = rgb(getComputedStyle(e).backgroundColor);
      if (colour.length < 4 || colour[3] > 0) return colour;
    }
    return [255, 255, 255];
  };
  const texts = [...document.querySelectorAll("body *")].filter((e) => e.checkVisibility() &&
    !e.matches(".hidden") &&  // text for screen readers
    [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim()));
  return Math.min(...texts.map((e) => {
    const [one, other] = [light(rgb(getComputedStyle(e).color)), light(behind(e))];
    return (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
  }));
}"""


@slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_to_complain_of(opened, scheme):
    tab = opened(color_scheme=scheme)
    for details in tab.locator("details").all():
        details.evaluate("element => element.open = true")
    found = Axe().run(tab).response["violations"]
    assert [(rule["id"], [node["html"] for node in rule["nodes"]]) for rule in found] == []


@slow
def test_of_many_arms_the_best_and_the_worst_are_drawn_at_first(opened):
    section = opened().locator("section#many-embedded")
    chart = section.locator(".chart").nth(2)
    boxes = chart.locator("input")
    assert boxes.count() == 12
    assert sum(box.is_checked() for box in boxes.all()) == 8
    more = chart.get_by_text("4 more arms")
    hidden = chart.get_by_role("checkbox", name="net03", include_hidden=True)
    assert not hidden.is_visible()
    more.click()
    before = chart.locator("canvas").screenshot()
    hidden.check()
    assert chart.locator("canvas").screenshot() != before
    assert section.get_by_label("arm", exact=True).first.locator("option").count() == 8


@slow
def test_every_control_has_a_name_and_headings_come_in_order(opened):
    tab = opened()
    for control in tab.locator("button:visible, select, input").all():
        name = control.evaluate(
            "e => e.getAttribute('aria-label') || e.labels?.[0]?.textContent || e.textContent"
        )
        assert name.strip()
    levels = [int(tag[1]) for tag in tab.evaluate(
        "[...document.querySelectorAll('h1,h2,h3,h4')].map(e => e.tagName)")]  # fmt: skip
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))


@slow
def test_the_command_can_be_copied(opened):
    tab = opened()
    section = tab.locator("section#vanishing_gradient")
    section.get_by_role("button", name="Copy").click()
    section.get_by_role("button", name=re.compile("Copied|Selected")).wait_for()
    command = section.locator(".command code").text_content()
    assert command.startswith("python scripts/reproduce.py --experiments vanishing_gradient --data")


@slow
def test_the_printed_page_has_its_curves_and_its_evidence_on_light_paper(opened):
    tab = opened(color_scheme="dark")
    section = tab.locator("section#vanishing_gradient")
    evidence, curves = section.locator("details").first, section.locator("canvas").first
    on_screen = curves.evaluate("canvas => canvas.toDataURL()")
    paper = "getComputedStyle(document.body).backgroundColor"
    tab.emulate_media(media="print", color_scheme="dark")
    tab.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert tab.evaluate(paper) == "rgb(255, 255, 255)"
    assert curves.evaluate("canvas => canvas.toDataURL()") != on_screen
    assert evidence.get_attribute("open") is not None
    assert not tab.get_by_role("button", name="Play").first.is_visible()
    swatch = section.locator(".controls i").first
    assert swatch.evaluate("e => getComputedStyle(e).printColorAdjust") == "exact"
    tab.emulate_media(media="screen", color_scheme="dark")
    tab.evaluate("dispatchEvent(new Event('afterprint'))")
    assert tab.evaluate(paper) != "rgb(255, 255, 255)"
    assert evidence.get_attribute("open") is None
