"""A worked example of `qvl.outputs.actions.Executor`: a model's tool calls, carried out in a real browser.

Needs `pip install playwright` and a Chromium (Debian: apt install chromium, or `playwright install chromium`).

    python examples/browser_agent.py page.html "reply of the model" --family qwen3_vl [--dry-run out.png]

Only the page that was opened is acted on, and only actions that `parse_actions` found safe to place reach it.
Whether a page may be trusted with what an agent types is yours to decide: ask before each action where it counts.
"""

from __future__ import annotations

import argparse
import io
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from PIL import Image

from qvl.errors import OutputError, QvlError
from qvl.geometry import Size
from qvl.outputs.actions import (
    Action,
    Click,
    Drag,
    Keys,
    LongPress,
    Move,
    Reply,
    Scroll,
    Swipe,
    Terminate,
    TypeText,
    Wait,
    carry_out,
    describe,
    parse_actions,
)
from qvl.outputs.draw import DryRun, save
from qvl.outputs.mapping import picture_map

# names that models use → names that Playwright knows; single characters are the same in both
KEY_NAMES = {
    "ctrl": "Control", "control": "Control", "shift": "Shift", "alt": "Alt", "cmd": "Meta", "super": "Meta",
    "enter": "Enter", "return": "Enter", "esc": "Escape", "escape": "Escape", "tab": "Tab", "space": " ",
    "backspace": "Backspace", "delete": "Delete", "up": "ArrowUp", "down": "ArrowDown", "left": "ArrowLeft",
    "right": "ArrowRight", "home": "Home", "end": "End", "pageup": "PageUp", "page_up": "PageUp",
    "pagedown": "PageDown", "page_down": "PageDown", **{f"f{n}": f"F{n}" for n in range(1, 13)},
}  # fmt: skip


def key_name(key: str) -> str:
    """Raises: OutputError for a key that is neither a single character nor known by name."""
    if len(key) == 1:
        return key
    if key.lower() not in KEY_NAMES:
        raise OutputError(
            f"no key is named {key!r}; known: single characters, {', '.join(sorted(KEY_NAMES))}"
        )
    return KEY_NAMES[key.lower()]


class PlaywrightExecutor:
    """Carries out computer_use actions on one Playwright page; the page's viewport is the screen."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.replies: list[str] = []

    def screen(self) -> Size:
        view = self.page.viewport_size
        return Size(view["height"], view["width"])

    def screenshot(self) -> Image.Image:
        """What the model is to be shown: the viewport, one pixel a CSS pixel."""
        return Image.open(io.BytesIO(self.page.screenshot(scale="css"))).convert("RGB")

    def execute(self, action: Action) -> None:
        mouse, keyboard = self.page.mouse, self.page.keyboard
        match action:
            case Click(x, y, button, count):
                mouse.click(x, y, button=button, click_count=count)
            case LongPress(x, y, seconds):
                mouse.move(x, y)
                mouse.down()
                self.page.wait_for_timeout(seconds * 1000)
                mouse.up()
            case Move(x, y):
                mouse.move(x, y)
            case Drag(x, y):
                mouse.down()
                mouse.move(x, y, steps=8)
                mouse.up()
            case Swipe(x, y, to_x, to_y):
                mouse.move(x, y)
                mouse.down()
                mouse.move(to_x, to_y, steps=8)
                mouse.up()
            case Scroll(up, right):
                mouse.wheel(right, -up)  # a browser counts down and right as positive
            case Keys(keys):
                keyboard.press("+".join(key_name(k) for k in keys))
            case TypeText(text):
                keyboard.type(text)
            case Wait(seconds):
                self.page.wait_for_timeout(seconds * 1000)
            case Reply(text):
                self.replies.append(text)
            case Terminate():
                pass
            case _:
                raise OutputError(f"a browser can't do this: {describe(action)}")


def open_browser(playwright: Any) -> Any:
    """A headless Chromium: the system's if there is one, else the one Playwright installed."""
    path = next(
        (p for n in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(n))), None
    )
    return playwright.chromium.launch(executable_path=path, args=["--no-sandbox"] if path else [])


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("page", type=Path, help="a local HTML file")
    parser.add_argument("reply", help="the model's reply with its tool calls")
    parser.add_argument("--family", default="qwen3_vl")
    parser.add_argument("--dry-run", metavar="PNG", help="draw the actions instead of carrying them out")
    options = parser.parse_args(argv)
    if not options.page.is_file():
        print(f"{options.page}: no such file", file=sys.stderr)
        return 2
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        print("playwright is not installed: pip install playwright", file=sys.stderr)
        return 2
    with sync_playwright() as playwright:
        browser = open_browser(playwright)
        page = browser.new_page(viewport={"width": 1280, "height": 720})
        page.goto(options.page.resolve().as_uri())
        executor = PlaywrightExecutor(page)
        try:
            found = parse_actions(
                options.reply, options.family, picture_map(executor.screen(), options.family)
            )
            for line in (*found.warnings, *found.repairs):
                print(f"note: {line}")
            for action in found.items:
                print(describe(action))
            if options.dry_run:
                dry = DryRun(executor.screenshot())
                carry_out(found.items, dry)
                save(dry.drawing(), options.dry_run)
            else:
                carry_out(found.items, executor)
                time.sleep(0.1)
            if found.refused:
                print(
                    f"refused: {found.refused} ({found.not_reached} calls after it not reached)",
                    file=sys.stderr,
                )
                return 1
        except QvlError as e:
            print(e, file=sys.stderr)
            return 2
        finally:
            browser.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
