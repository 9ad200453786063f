"""The page's files as text: nothing inline, nothing remote, nothing that turns text into markup, every word twice."""

import re
from pathlib import Path

import pytest

WEB = Path(__file__).parents[3] / "server" / "web"
SCRIPTS = sorted(WEB.glob("*.js"))
PAGES = sorted(WEB.glob("*.html"))
WORDS = [WEB / "words.js", WEB / "words_ops.js"]
SVG_NAMESPACE = "http://www.w3.org/2000/svg"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_no_inline_script_style_or_handler(path: Path) -> None:
    page = path.read_text()
    assert not re.search(r"<style|\sstyle=|\son\w+=|javascript:", page)
    assert all("src=" in tag for tag in re.findall(r"<script[^>]*>", page))


def test_nothing_is_remote() -> None:
    for path in WEB.iterdir():
        text = path.read_text().replace(SVG_NAMESPACE, "")
        assert not re.search(r"(https?:)?//\w+[.\w]*\.\w", re.sub(r"^\s*//.*$", "", text, flags=re.M)), path.name


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_no_script_turns_text_into_markup_or_code(path: Path) -> None:
    for sink in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function", "srcdoc"):
        assert sink not in path.read_text()


def test_markup_enters_in_one_place() -> None:
    parsing = [
        path.name for path in SCRIPTS if re.search("DOMParser|createContextualFragment|setHTML", path.read_text())
    ]
    assert parsing == ["markup.js"]


def test_every_file_that_the_page_names_is_there() -> None:
    names = set()
    for path in PAGES:
        names |= set(re.findall(r'(?:src|href)="([\w.]+?)(?:#\w+)?"', path.read_text()))
    names -= {"."}
    for path in SCRIPTS:
        names |= set(re.findall(r'from "\./([\w.]+)"', path.read_text()))
    assert len(names) > 10
    assert {name for name in names if not (WEB / name).is_file()} == set()


def test_every_icon_that_is_used_is_drawn() -> None:
    drawn = set(re.findall(r'<symbol id="([\w-]+)"', (WEB / "icons.svg").read_text()))
    used = set()
    for path in PAGES:
        used |= set(re.findall(r"icons\.svg#([\w-]+)", path.read_text()))
    for path in SCRIPTS:
        used |= set(re.findall(r'\b(?:icon|iconButton)\("([\w-]+)"', path.read_text()))
    assert len(used) > 10
    assert used <= drawn


def words_of(language: str) -> set[str]:
    found = set()
    for path in WORDS:
        text = path.read_text()
        block = text[text.index(f"  {language}: {{") :].split("\n  },", 1)[0]
        found |= set(re.findall(r'^    "?([\w ]+)"?:', block, flags=re.M))
    return found


def test_both_languages_have_the_same_words() -> None:
    assert words_of("en") == words_of("zh")
    assert len(words_of("en")) > 80


def test_every_word_that_is_asked_for_is_in_the_dictionary() -> None:
    asked = set()
    for path in PAGES:
        asked |= set(re.findall(r'data-i18n(?:-\w+)?="(\w+)"', path.read_text()))
    for path in SCRIPTS:
        text = path.read_text()
        asked |= set(re.findall(r'\b(?:word|label|placeholder): \[?"(\w+)"', text))
        asked |= set(re.findall(r'\b(?:t|notice)\("(\w+)"', text))
        asked |= set(re.findall(r'\bsay\([^,]+, "(\w+)"', text))
        asked |= set(re.findall(r'\biconButton\("[\w-]+", "(\w+)"', text))
        asked |= set(re.findall(r'\b(?:card|nothing|table|strength)\("(\w+)"', text))
        asked |= set(re.findall(r'^ {6,}\["([a-z_]+)", ', text, flags=re.M)) if path.name.startswith("ops_") else set()
        for heads in re.findall(r'\btable\("\w+", \[([^\]]*)\]', text):
            asked |= set(re.findall(r'"(\w+)"', heads))
    places = {"i18n", "i18nLabel", "i18nPlaceholder"}
    assert len(asked) > 60
    assert asked - places <= words_of("en")


def test_no_word_is_left_over() -> None:
    text = "".join(path.read_text() for path in [*SCRIPTS, *PAGES] if path not in WORDS)
    composed = re.compile(
        r"(stage|reason|choice|why|error|view|share|state|verdict|measure|standing|alarm|plan|do|title|done|kind|reply"
        r"|series|action|limit)_.+"
    )
    left_over = {word for word in words_of("en") if f'"{word}"' not in text and not composed.fullmatch(word)}
    assert left_over == set()


def luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(first: str, second: str) -> float:
    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", [":root {", ':root[data-theme="dark"] {', ':root:not([data-theme="light"]) {'])
def test_text_is_readable_in_every_theme(theme: str) -> None:
    """WCAG AA for text, 4.5 to 1, for every pair of ink and ground that the page draws."""
    style = (WEB / "style.css").read_text()
    block = style[style.index(theme) :].split("}", 1)[0]
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", block))
    pairs = [("text", ground) for ground in ("ground", "surface", "sunken", "hover", "accent-soft", "danger-soft")]
    pairs += [("text-quiet", ground) for ground in ("ground", "surface", "sunken", "hover")]
    pairs += [("accent", "surface"), ("accent", "ground"), ("on-accent", "accent"), ("accent-strong", "accent-soft")]
    pairs += [("danger", "danger-soft"), ("danger", "surface"), ("danger", "sunken")]
    pairs += [(f"code-{kind}", "sunken") for kind in ("keyword", "string", "number", "name")]
    weak = {pair: contrast(colours[pair[0]], colours[pair[1]]) for pair in pairs}
    assert {pair: ratio for pair, ratio in weak.items() if ratio < 4.5} == {}
