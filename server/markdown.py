"""A reply's Markdown as HTML that is safe to put on the page. Text in, text out: nothing is fetched, nothing is kept.

Three walls. The parser knows no HTML, so what looks like a tag is text. A link is one only when its address begins with
an allowed scheme, and an image is a link, too. At the end nh3 parses what came out as a browser would, and drops
whatever the lists below do not name. Not here: the page's own wall, the content security policy (`server.app`).

It is CommonMark with tables and strikethrough, and with three differences for the sake of chat: a line break is one;
a line that is not indented ends a list; and "12." is the answer to a sum, not an empty twelfth item.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from functools import cache
from typing import Any

import nh3
from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.rules_block import StateBlock, list_block, table
from markdown_it.rules_core import StateCore
from markdown_it.token import Token
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_by_name
from pygments.token import STANDARD_TYPES

log = logging.getLogger("kudos.markdown")

MAX_CHARS = 20_000
"""A longer reply stays plain text: what a hostile one costs grows faster than its length."""

MAX_CELLS = 5_000
"""A larger table is not one: two characters can be a row of a thousand empty cells."""

_MAX_HIGHLIGHTED_CHARS = 10_000

# Named one by one, because each lexer is a set of regular expressions that meets hostile text.
_LANGUAGES = frozenset({
    "bash", "c", "c++", "console", "cpp", "css", "diff", "go", "html", "ini", "java", "javascript", "js",
    "json", "py", "python", "rs", "rust", "sh", "shell", "sql", "toml", "ts", "typescript", "xml", "yaml", "yml",
})  # fmt: skip

TAGS = frozenset({
    "a", "blockquote", "br", "code", "div", "em", "h1", "h2", "h3", "h4", "h5", "h6", "hr", "li", "ol", "p",
    "pre", "s", "span", "strong", "table", "tbody", "td", "th", "thead", "tr", "ul",
})  # fmt: skip
ATTRIBUTES = {"*": {"dir"}, "a": {"href"}, "ol": {"start"}, "td": {"align"}, "th": {"align"}}
CLASSES = {"div": {"table-box"}, "span": {f"hl-{name}" for name in STANDARD_TYPES.values() if name}}

_SAFE_ADDRESS = re.compile(r"(?:https?://|mailto:)[^\s]", re.IGNORECASE)
_NUMBERED = re.compile(r"(\d{1,9})[.)][ \t]*(\S?)")
_WORDS = RendererHTML()
_FORMATTER = HtmlFormatter(nowrap=True, classprefix="hl-")
_CLEANER = nh3.Cleaner(
    tags=set(TAGS),
    attributes=ATTRIBUTES,
    allowed_classes=CLASSES,
    url_schemes={"http", "https", "mailto"},
    url_relative="deny",
    link_rel="noopener noreferrer nofollow",
    set_tag_attribute_values={"a": {"target": "_blank"}},
)


def to_html(text: str) -> str | None:
    """Clean HTML. None for what is shown as the plain text that it is: too long, or more than the parser takes."""
    if len(text) > MAX_CHARS:
        return None
    try:
        return clean(str(_PARSER.render(text)))
    except Exception:  # isolates: one strange reply must not close its conversation
        log.exception("a reply of %d characters could not be rendered", len(text))
        return None


def clean(html: str) -> str:
    """The last wall, on its own: whatever comes in, only the tags, attributes and schemes above come out."""
    return _CLEANER.clean(html).strip()


class _Parser(MarkdownIt):
    def validateLink(self, url: str) -> bool:
        return _SAFE_ADDRESS.match(url) is not None


def _highlighted(code: str, language: str, attributes: str) -> str:
    """Spans with classes; nothing for what is not to be highlighted, which the parser then escapes."""
    if language.lower() not in _LANGUAGES or len(code) > _MAX_HIGHLIGHTED_CHARS:
        return ""
    return str(highlight(code, _lexer(language.lower()), _FORMATTER))


@cache
def _lexer(language: str) -> Any:
    return get_lexer_by_name(language, stripnl=False)


def _begins_table(state: StateBlock, line: int, end_line: int, silent: bool) -> bool:
    if line + 1 >= end_line:
        return False
    columns = state.src.count("|", state.bMarks[line + 1], state.eMarks[line + 1])
    return columns * (end_line - line) <= MAX_CELLS and table(state, line, end_line, silent)


def _begins_list(state: StateBlock, line: int, end_line: int, silent: bool) -> bool:
    """A numbered list has something in it, and begins with 1, or goes on with one that was before it."""
    begin = state.bMarks[line] + state.tShift[line]
    number = _NUMBERED.match(state.src, begin, state.eMarks[line])
    if number and (not number[2] or (int(number[1]) > 1 and "numbered" not in state.env)):
        return False
    found = list_block(state, line, end_line, silent)
    if found and number and not silent:
        state.env["numbered"] = True
    return found


def _leaves_list(state: StateBlock, line: int, end_line: int, silent: bool) -> bool:
    """CommonMark would draw an unindented line into the item above it, even the sentence that follows the list."""
    return silent and state.sCount[line] < state.blkIndent


def _adapt(state: StateCore) -> None:
    for token in state.tokens:
        if token.type == "inline":
            token.children = _without_images(token.children or [])
        elif token.nesting == 1:
            if token.level == 0:  # a block that finds its direction does not look into those that find their own
                token.attrSet("dir", "auto")
            style = str(token.attrs.pop("style", ""))  # the policy forbids styles; an attribute says the same
            if style.startswith("text-align:"):
                token.attrSet("align", style.removeprefix("text-align:"))


def _without_images(tokens: Sequence[Token]) -> list[Token]:
    """Images as links, or, within a link, as their words. A link that has no words shows its address."""
    adapted: list[Token] = []
    depth = 0
    for token in tokens:
        if token.type == "image":
            words = _WORDS.renderInlineAsText(token.children, _PARSER.options, {})
            address = str(token.attrs["src"])
            link = [Token("link_open", "a", 1, attrs={"href": address}), Token("link_close", "a", -1)]
            said = Token("text", "", 0, content=words.strip() or address)
            adapted += [said] if depth else [link[0], said, link[1]]
            continue
        if token.type == "link_open":
            depth += 1
        elif token.type == "link_close":
            depth -= 1
            if adapted[-1].type == "link_open":
                adapted.append(Token("text", "", 0, content=str(adapted[-1].attrs["href"])))
        adapted.append(token)
    return adapted


def _table_open(renderer: RendererHTML, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
    return f'<div class="table-box">{renderer.renderToken(tokens, index, options, env)}'


def _table_close(renderer: RendererHTML, tokens: Sequence[Token], index: int, options: Any, env: Any) -> str:
    return f"{renderer.renderToken(tokens, index, options, env)}</div>\n"


def _parser() -> _Parser:
    parser = _Parser("commonmark", {"html": False, "breaks": True, "highlight": _highlighted})
    parser.enable(["table", "strikethrough"])
    parser.block.ruler.at("table", _begins_table, {"alt": ["paragraph", "reference"]})
    parser.block.ruler.at("list", _begins_list, {"alt": ["paragraph", "reference", "blockquote"]})
    parser.block.ruler.before("paragraph", "leave_list", _leaves_list, {"alt": ["paragraph"]})
    parser.core.ruler.push("adapt", _adapt)
    parser.add_render_rule("table_open", _table_open)
    parser.add_render_rule("table_close", _table_close)
    return parser


_PARSER = _parser()
