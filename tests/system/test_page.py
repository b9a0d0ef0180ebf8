"""The page at / in a real browser: clicked, typed into, and looked at."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest

from browser import Browser, Page
from processes import EVIDENCE, ROOT, Service, Services, environment

pytestmark = pytest.mark.system

SIGN = ROOT / "docs" / "sign.png"  # 384 x 192
TOKEN = "s3cret-token"
DONE = (
    "document.querySelector('#score-form').ariaBusy != 'true' && "
    "document.querySelector('#result:not([hidden]), #error.failed:not([hidden])')"
)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    services = Services(tmp_path_factory.mktemp("services"))
    yield services
    services.stop()


@pytest.fixture(scope="module")
def lines(shared: Services) -> Service:
    gate = str(shared.folder / "gate")
    return shared.start(EVIDENCE, "--kind", "lines", EVIDENCE_GATE=gate)


@pytest.fixture(scope="module")
def objects(shared: Services) -> Service:
    return shared.start(EVIDENCE, "--kind", "objects")


@pytest.fixture(scope="module")
def guarded(shared: Services) -> Service:
    return shared.start(EVIDENCE, REWARD_TOKEN=TOKEN)


def open_page(browser: Browser, service: Service, **look: int | bool) -> Page:
    page = browser.open(f"{service.http}/", **look)  # pyright: ignore[reportArgumentType]
    page.wait_for("document.querySelector('#about').textContent")
    return page


def choose(page: Page, path: Path = SIGN) -> None:
    page.choose_file("#file", path)
    page.wait_for(f"document.querySelector('#image-facts').innerText.includes('{path.name}')")


def score(page: Page, prompt: str = 'a sign that says "open"') -> None:
    page.replace("#prompt", prompt)
    page.click("#submit")
    page.wait_for(DONE)


def check_behaviour(page: Page, service: Service) -> None:
    """The page broke no rule of its policy, threw nothing, and asked nobody but its service."""
    assert page.complaints == []
    elsewhere = [u for u in page.requests if not u.startswith((f"{service.http}/", "data:"))]
    assert elsewhere == []


def test_recognised_lines_are_drawn_where_they_stand(browser: Browser, lines: Service) -> None:
    page = open_page(browser, lines)
    assert page.text("#name") == "evidence"
    assert not page.is_visible("#metadata-field")
    choose(page)
    score(page)
    assert page.text("#score-value") == "0.75"
    assert page.text("#score-description") == "share found"
    assert page.texts("#sub-scores dt") == [
        "exact 0 to 1\n\nwhether all is found",
        "distance at least 0, lower is better\n\nhow far it is",
    ]
    assert page.texts("#sub-scores dd") == ["0", "1234.5"]
    assert page.evaluate("document.querySelectorAll('.bar').length") == 2  # not of the open range
    assert page.text("#timing").startswith("queue ")
    assert "round trip" in page.text("#timing")
    assert page.texts("#facts dd") == ["open", "OPEN", 'a sign that says "open"']
    assert page.texts(".tag") == ["OPEN0.98"]
    assert page.texts("#evidence-list li") == ["OPEN\n0.98"]
    image, shape = page.box("#preview"), page.box("polygon.edge")
    scale = image["width"] / 384
    assert shape["x"] == pytest.approx(image["x"] + 94 * scale, abs=2)
    assert shape["y"] == pytest.approx(image["y"] + 48 * scale, abs=2)
    assert shape["width"] == pytest.approx(194 * scale, abs=4)
    assert shape["height"] == pytest.approx(84 * scale, abs=4)
    page.click("#show-boxes")
    assert not page.is_visible(".tag")
    check_behaviour(page, lines)
    page.close()


def test_objects_have_classes_scores_and_colors(browser: Browser, objects: Service) -> None:
    page = open_page(browser, objects)
    metadata = json.loads(page.evaluate("document.querySelector('#metadata').value"))
    assert metadata == {"tag": "color_attr", "include": [{"class": "dog", "count": 1}]}
    choose(page)
    score(page, "a red dog")
    assert page.texts("#evidence-list li") == ["dog\nred\n0.91", "car\n0.76"]  # none without area
    assert page.texts(".tag") == ["red dog0.91", "car0.76"]
    hues = "[...document.querySelectorAll('.edge')].map((e) => getComputedStyle(e).stroke)"
    assert len(set(page.evaluate(hues))) == 2
    assert page.texts("#facts dd p") == [
        "color_attr",
        "class: dog · count: 1",
        "class: car · count: 2 · failure: 2 car expected, 1 found · soft: 0.5, 0",
        "a red dog",
    ]
    page.click("#details summary")
    details = json.loads(page.text("#details-json"))
    assert details["metadata"] == metadata
    assert "[20, 20, 120, 180]" in page.text("#details-json")
    check_behaviour(page, objects)
    page.close()


def test_a_reward_without_evidence(browser: Browser, services: Services) -> None:
    jpeg = services.start("-m", "reward_services", "jpeg")
    page = open_page(browser, jpeg)
    assert page.text("#prompt-hint") == "not required"
    choose(page)
    score(page, "")
    assert page.text("#score-range") == "at most 0"
    assert float(page.text("#score-value")) < 0
    assert not page.is_visible("#details")
    assert not page.is_visible("#evidence")
    check_behaviour(page, jpeg)
    page.close()


def test_errors_name_their_reason(browser: Browser, lines: Service, tmp_path: Path) -> None:
    page = open_page(browser, lines)
    choose(page)
    score(page)
    score(page, "failure")
    assert page.text("#error").startswith("JUDGE_PARSE\n\nno number in the judge's answer")
    assert "Trying again may help." in page.text("#error")
    assert not page.is_visible("#result")
    assert page.texts(".tag") == []
    broken = tmp_path / "broken.png"
    broken.write_bytes(SIGN.read_bytes()[:600])
    choose(page, broken)
    score(page)
    assert page.text("#error").startswith("IMAGE_DECODE")
    score_calls = [url for url in page.requests if url.endswith("/v1/score")]
    assert len(score_calls) == 3
    page.close()


def test_calls_that_fail_as_a_whole(browser: Browser, services: Services) -> None:
    service = services.start(EVIDENCE, "--max-request-bytes", "1000")
    page = open_page(browser, service)
    choose(page)
    score(page)
    assert page.text("#error").startswith("REQUEST_TOO_LARGE")
    service.stop()
    page.click("#submit")
    page.wait_for("document.querySelector('#error').innerText.startsWith('NO ANSWER')")
    page.close()


def test_what_is_missing_is_said_at_its_field(browser: Browser, objects: Service) -> None:
    page = open_page(browser, objects)
    page.click("#submit")
    assert page.text("#image-error") == "Choose an image first."
    choose(page)
    assert not page.is_visible("#image-error")
    for text, message in (("{", "Not JSON"), ("[1]", "Metadata is a JSON object")):
        page.replace("#metadata", text)
        page.click("#submit")
        assert page.text("#metadata-error").startswith(message)
        assert page.evaluate("document.activeElement.id") == "metadata"
        assert page.evaluate("document.activeElement.getAttribute('aria-invalid')") == "true"
    assert not [url for url in page.requests if url.endswith("/v1/score")]
    page.close()


def test_the_token_is_asked_for_and_stays_in_the_tab(browser: Browser, guarded: Service) -> None:
    page = browser.open(f"{guarded.http}/")
    page.wait_for("!document.querySelector('#token-form').hidden")
    assert not page.is_visible("#error")
    for token in ("wrong", TOKEN):
        page.wait_for("document.activeElement.id == 'token'")
        page.type(token)
        page.press("Enter")
        page.wait_for(
            "document.querySelector('#about').textContent"
            if token == TOKEN
            else "document.querySelector('#error').innerText.startsWith('AUTH')"
        )
    assert not page.is_visible("#error")
    choose(page)
    score(page)
    assert page.text("#score-value") == "0.75"
    assert TOKEN not in page.text("body")
    assert "$REWARD_TOKEN" in page.text("#curl")
    assert 'token=os.environ["REWARD_TOKEN"]' in page.text("#python")
    assert page.evaluate("localStorage.length + document.cookie.length") == 0
    page.call("Page.reload")
    page.wait_for("document.querySelector('#about')?.textContent")
    page.close()
    stranger = browser.open(f"{guarded.http}/")
    stranger.wait_for("!document.querySelector('#token-form').hidden")
    stranger.close()


def test_everything_works_by_keyboard(browser: Browser, lines: Service) -> None:
    page = open_page(browser, lines)
    page.press("Tab")
    assert page.evaluate("document.activeElement.id") == "file"
    assert (
        page.evaluate("getComputedStyle(document.querySelector('#drop')).outlineStyle") == "solid"
    )
    choose(page)
    page.press("Tab")
    assert page.evaluate("document.activeElement.id") == "prompt"
    page.type('"open"')
    page.press("Enter", ctrl=True)
    page.wait_for(DONE)
    assert page.text("#status") == "found: 0.75"
    for expected in ("show-boxes", "file"):
        page.press("Tab", shift=True)
        if expected == "show-boxes":
            assert page.evaluate("document.activeElement.className").startswith("box")
            assert page.evaluate("document.querySelector('g').classList.contains('on')")
            page.press("Tab", shift=True)
        assert page.evaluate("document.activeElement.id") == expected
    assert not page.evaluate("document.querySelector('g').classList.contains('on')")
    page.close()


def test_controls_have_names(browser: Browser, objects: Service) -> None:
    page = open_page(browser, objects)
    choose(page)
    score(page)
    nodes = page.call("Accessibility.getFullAXTree")["nodes"]
    named = {"button", "textbox", "checkbox", "image", "region", "heading"}
    controls = [n for n in nodes if not n["ignored"] and n["role"]["value"] in named]
    assert len(controls) > 10
    assert [n["role"]["value"] for n in controls if not n["name"]["value"]] == []
    page.close()


def test_dropped_and_pasted_images(browser: Browser, lines: Service, tmp_path: Path) -> None:
    page = open_page(browser, lines)
    other = tmp_path / "other.png"
    other.write_bytes(SIGN.read_bytes())
    page.drop_file("#description", other)
    page.wait_for("document.querySelector('#image-facts').innerText.startsWith('other.png')")
    page.evaluate(
        "(async () => { const blob = await new Promise((done) => Object.assign("
        "document.createElement('canvas'), {width: 40, height: 30}).toBlob(done));"
        "const data = new DataTransfer(); data.items.add(new File([blob], 'image.png'));"
        "document.querySelector('#prompt').dispatchEvent("
        "new ClipboardEvent('paste', {clipboardData: data, bubbles: true, cancelable: true})) })()"
    )
    page.wait_for("document.querySelector('#image-facts').innerText.includes('40 × 30')")
    score(page)
    assert page.text("#score-value") == "0.75"
    page.close()


def test_a_call_can_be_waited_for_and_cancelled(
    browser: Browser, lines: Service, shared: Services
) -> None:
    page = open_page(browser, lines)
    choose(page)
    page.replace("#prompt", "wait")
    page.click("#submit")
    page.wait_for("document.querySelector('#status').textContent == 'Scoring'")
    assert page.text("#submit") == "Scoring"
    page.click("#submit")  # a second click sends nothing
    page.click("#cancel")
    page.wait_for("document.querySelector('#status').textContent == 'Cancelled'")
    assert page.text("#submit") == "Score"
    assert not page.is_visible("#cancel")
    page.click("#submit")
    page.wait_for("document.querySelector('#status').textContent == 'Scoring'")
    (shared.folder / "gate").touch()
    page.wait_for(DONE)
    assert page.text("#score-value") == "0.75"
    assert len([url for url in page.requests if url.endswith("/v1/score")]) == 2
    page.close()


def test_the_page_waits_for_the_model(browser: Browser, services: Services, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    service = services.start(EVIDENCE, wait_ready=False, EVIDENCE_LOAD_GATE=str(gate))
    page = browser.open(f"{service.http}/")
    page.wait_for("document.querySelector('#error').innerText.startsWith('The model is loading')")
    gate.touch()
    page.wait_for("document.querySelector('#about').textContent")
    assert not page.is_visible("#error")
    page.close()


def test_the_copied_calls_give_the_same(browser: Browser, objects: Service, tmp_path: Path) -> None:
    image = tmp_path / "it's a $sign.png"
    image.write_bytes(SIGN.read_bytes())
    prompt = 'say "$HOME" and `id` \\n é 🐕'
    metadata = {"tag": "it's \\ $(id)", "include": [], "really": True, "nothing": None}
    page = open_page(browser, objects)
    page.choose_file("#file", image)
    page.wait_for("!document.querySelector('#picture').hidden")
    page.replace("#metadata", json.dumps(metadata))
    page.replace("#prompt", prompt)
    shell, python = page.text("#curl"), page.text("#python")
    page.close()
    python += "\nimport json; print(json.dumps(batch.details[0]))"
    for command in (["bash", "-c", shell], [sys.executable, "-c", python]):
        done = subprocess.run(
            command, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=True
        )
        answer = json.loads(done.stdout.splitlines()[-1])
        details = answer["results"][0]["score"]["details"] if "results" in answer else answer
        assert details["prompt"] == prompt
        assert details["metadata"] == metadata


GROUND = "Number(getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0])"
CONTRAST = """(() => {
  const parse = (color) => color.match(/[\\d.]+/g).map(Number);
  const ground = (e) => {
    for (; e; e = e.parentElement) {
      const color = parse(getComputedStyle(e).backgroundColor);
      if (color.length == 3) return color;
    }
  };
  const light = (color) => color.slice(0, 3).map((c) => c / 255)
    .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  return [...document.querySelectorAll("body *")]
    .filter((e) => e.checkVisibility() && !e.closest("svg") &&
      [...e.childNodes].some((n) => n.nodeType == 3 && n.data.trim()))
    .map((e) => {
      const [a, b] = [light(parse(getComputedStyle(e).color)), light(ground(e))];
      return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), e.outerHTML];
    })
    .filter(([contrast]) => contrast < 4.5);
})()"""


def test_light_and_dark_wide_and_narrow(browser: Browser, objects: Service) -> None:
    page = open_page(browser, objects)
    choose(page)
    score(page)
    for dark, width in product((False, True), (1100, 360)):
        page.emulate(width=width, height=800, dark=dark)
        assert page.evaluate(CONTRAST) == []
        assert (page.evaluate(GROUND) < 64) == dark
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        columns = page.box(".call")["x"] > page.box(".image")["x"]
        assert columns == (width > 1000)
    page.close()
