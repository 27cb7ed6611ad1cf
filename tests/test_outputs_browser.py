"""examples/browser_agent.py in a real headless Chromium: the action does what it says. Skipped only where
playwright or a Chromium is missing."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from pathlib import Path

import pytest

from qvl.errors import OutputError
from qvl.outputs.actions import OpenApp, carry_out, parse_actions
from qvl.outputs.mapping import picture_map

EXAMPLE = Path(__file__).parent.parent / "examples" / "browser_agent.py"
HTML = """<!DOCTYPE html><html><body style="margin:0;height:3000px">
<button id="ok" style="position:absolute;left:100px;top:80px;width:120px;height:40px" onclick="log('ok '+event.detail)"
 oncontextmenu="log('menu');return false">OK</button>
<button id="no"
 style="position:absolute;left:400px;top:80px;width:120px;height:40px" onclick="log('no')">Cancel</button>
<input id="name" style="position:absolute;left:100px;top:200px;width:300px;height:30px">
<div id="pad" style="position:absolute;left:600px;top:300px;width:300px;height:200px;background:#eee"
 onmousedown="log('down '+event.offsetX)" onmouseup="log('up '+event.offsetX)"></div>
<script>window.seen=[]; function log(t){window.seen.push(t)}</script></body></html>"""


def example():
    spec = importlib.util.spec_from_file_location("browser_agent", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    sys.modules["browser_agent"] = module
    spec.loader.exec_module(module)
    return module


agent = example()


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api")
    if not any(shutil.which(n) for n in ("chromium", "chromium-browser", "google-chrome")):
        pytest.skip("no chromium on this machine")
    with sync_api.sync_playwright() as playwright:
        browser = agent.open_browser(playwright)
        yield browser
        browser.close()


@pytest.fixture
def executor(browser):
    page = browser.new_page(viewport={"width": 1000, "height": 600})
    page.set_content(HTML)
    yield agent.PlaywrightExecutor(page)
    page.close()


def call(action, **arguments):
    body = {"name": "computer_use", "arguments": {"action": action, **arguments}}
    return f"<tool_call>{json.dumps(body)}</tool_call>"


def act(executor, text, family="qwen3_vl"):
    found = parse_actions(text, family, picture_map(executor.screen(), family))
    carry_out(found.items, executor)
    executor.page.wait_for_timeout(50)
    return found, executor.page.evaluate("window.seen")


def written(x, y, family, executor):
    """Where a place of the screen is in the numbers of a family."""
    from qvl.outputs.actions import screen_convention

    screen = picture_map(executor.screen(), family)
    return [
        round(n)
        for n in screen.seen_to_written(*screen.to_seen(x, y), screen_convention(family, "computer_use"))
    ]


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5"])
def test_a_click_hits_the_button_it_names_in_every_convention(executor, family):
    _, seen = act(executor, call("left_click", coordinate=written(160, 100, family, executor)), family)
    assert seen == ["ok 1"]
    _, seen = act(executor, call("left_click", coordinate=written(460, 100, family, executor)), family)
    assert seen == ["ok 1", "no"]


def test_double_and_right_clicks(executor):
    _, seen = act(
        executor, call("double_click", coordinate=[160, 167]) + call("right_click", coordinate=[160, 167])
    )
    assert seen == ["ok 1", "ok 2", "menu"]


def test_text_goes_where_was_clicked_and_keys_change_it(executor):
    text = (
        call("left_click", coordinate=[200, 358])
        + call("type", text="Größe 안녕")
        + call("key", keys=["Backspace"])
    )
    act(executor, text)
    assert executor.page.input_value("#name") == "Größe 안"


def test_key_combinations(executor):
    text = (
        call("left_click", coordinate=[200, 358]) + call("type", text="abc") + call("key", keys=["ctrl", "a"])
    )
    act(executor, text + call("type", text="x"))
    assert executor.page.input_value("#name") == "x"


def test_scrolling_down_moves_the_page_down(executor):
    act(
        executor,
        call("mouse_move", coordinate=[500, 500]) + call("scroll", pixels=-400) + call("wait", time=0.3),
    )
    assert executor.page.evaluate("window.scrollY") == 400


def test_a_drag_starts_at_the_pointer_and_ends_where_it_says(executor):
    _, seen = act(
        executor, call("mouse_move", coordinate=[650, 667]) + call("left_click_drag", coordinate=[800, 667])
    )
    assert seen == ["down 50", "up 200"]


def test_an_action_outside_the_screen_never_reaches_the_browser(executor):
    text = call("left_click", coordinate=[1500, 100]) + call("left_click", coordinate=[160, 167])
    found, seen = act(executor, text)
    assert found.refused
    assert seen == []


def test_answers_are_kept(executor):
    act(executor, call("answer", text="done") + call("terminate", status="success"))
    assert executor.replies == ["done"]


def test_what_a_browser_cannot_do_is_said(executor):
    with pytest.raises(OutputError, match="open Maps"):
        executor.execute(OpenApp("Maps"))


def test_the_screenshot_has_the_screens_size(executor):
    assert executor.screenshot().size == (1000, 600)


def test_the_command_draws_a_dry_run(browser, tmp_path):
    # sync Playwright runs once a thread, so the command has its own process
    import subprocess

    page, out = tmp_path / "page.html", tmp_path / "out.png"
    page.write_text(HTML, encoding="utf-8")
    command = [
        sys.executable,
        str(EXAMPLE),
        str(page),
        call("left_click", coordinate=[125, 139]),
        "--dry-run",
        str(out),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "click left (160, 100)" in done.stdout
    assert out.stat().st_size > 1000


@pytest.mark.parametrize(
    ("key", "name"), [("ctrl", "Control"), ("Return", "Enter"), ("a", "a"), ("+", "+"), ("F5", "F5")]
)
def test_key_names(key, name):
    assert agent.key_name(key) == name


def test_unknown_keys_are_refused_with_the_known_ones():
    with pytest.raises(OutputError, match=r"Hyper.*backspace"):
        agent.key_name("Hyper")
