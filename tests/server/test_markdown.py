"""Markdown to HTML: what it looks like, and that nothing but words, links and a few tags ever comes out of it."""

import re
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.markdown import ATTRIBUTES, CLASSES, MAX_CHARS, TAGS, clean, to_html
from tests.server.hostile import CORPUS, RUN

VOID = {"br", "hr"}
SET_ON_LINKS = {"rel": "noopener noreferrer nofollow", "target": "_blank"}
SAFE_ADDRESS = re.compile(r"(https?://|mailto:)[\x21-\x7e]+", re.IGNORECASE)


class Walk(HTMLParser):
    """Collects what is not allowed, and the words."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.wrong: list[str] = []
        self.words = ""
        self.open: list[str] = []
        self.tags: list[str] = []
        self.feed(html)
        self.close()
        self.wrong += [f"<{tag}> is not closed" for tag in self.open]

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        if tag not in TAGS:
            self.wrong.append(f"<{tag}>")
        given = dict(attributes)
        assert len(given) == len(attributes)
        if tag == "a":
            if {name: given.pop(name, None) for name in SET_ON_LINKS} != SET_ON_LINKS:
                self.wrong.append(f"a link without its rel and target: {attributes}")
            if not SAFE_ADDRESS.fullmatch(given.get("href", "https://nowhere.example") or ""):
                self.wrong.append(f"a link to {given.get('href')!r}")
        for name, value in given.items():
            if name == "class":
                if not set((value or "").split()) <= CLASSES.get(tag, set()):
                    self.wrong.append(f"<{tag} class={value}>")
            elif name not in ATTRIBUTES["*"] | ATTRIBUTES.get(tag, set()):
                self.wrong.append(f"<{tag} {name}={value!r}>")

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.wrong.append(f"</{tag}> closes something else")

    def handle_data(self, data: str) -> None:
        self.words += data

    def handle_comment(self, data: str) -> None:
        self.wrong.append(f"a comment: {data}")

    def handle_decl(self, decl: str) -> None:
        self.wrong.append(f"a declaration: {decl}")

    def handle_pi(self, data: str) -> None:
        self.wrong.append(f"an instruction: {data}")


def test_the_corpus_is_large_and_all_of_it_is_rendered() -> None:
    assert len(CORPUS) >= 60
    assert all(len(text) <= MAX_CHARS for text in CORPUS.values())


@pytest.mark.parametrize("name", CORPUS)
def test_a_hostile_reply_is_words_and_safe_links(name: str) -> None:
    html = to_html(CORPUS[name])
    assert html is not None
    assert Walk(html).wrong == []
    assert clean(html) == html, "parsed again, it is something else"


@pytest.mark.parametrize("name", [name for name in CORPUS if name.startswith(("tag", "parsed again"))])
def test_even_if_the_parser_let_tags_through_the_last_wall_holds(name: str) -> None:
    html = clean(f'<p dir="auto">{CORPUS[name]}</p>')
    assert Walk(html).wrong == []
    assert clean(html) == html


@settings(max_examples=100, deadline=None)
@given(
    st.text(
        alphabet=st.one_of(
            st.sampled_from("[]()<>!*_~`#|-:>\"'\\&;\n\t 1.xj/@\u202e\x00"), st.characters(codec="utf-8")
        )
    )
)
def test_any_text_comes_out_safe(text: str) -> None:
    html = to_html(text)
    assert html is not None
    assert Walk(html).wrong == []


def test_what_looks_like_a_tag_can_be_read() -> None:
    words = Walk(to_html(f"Write <script>{RUN}</script> & <b>.") or "").words
    assert words == f"Write <script>{RUN}</script> & <b>."


@pytest.mark.parametrize(
    ("text", "html"),
    [
        ("Hello", '<p dir="auto">Hello</p>'),
        ("one\ntwo", '<p dir="auto">one<br>\ntwo</p>'),
        ("one\n\ntwo", '<p dir="auto">one</p>\n<p dir="auto">two</p>'),
        ("*a* **b** ~~c~~ `d`", '<p dir="auto"><em>a</em> <strong>b</strong> <s>c</s> <code>d</code></p>'),
        ("## a", '<h2 dir="auto">a</h2>'),
        ("    x < y", "<pre><code>x &lt; y\n</code></pre>"),
        ("你好\n- 一", '<p dir="auto">你好</p>\n<ul dir="auto">\n<li>一</li>\n</ul>'),
        ("3. c", '<p dir="auto">3. c</p>'),
        ("12.", '<p dir="auto">12.</p>'),
        ("12. Anything else?", '<p dir="auto">12. Anything else?</p>'),
        ("- 12.", '<ul dir="auto">\n<li>12.</li>\n</ul>'),
        ("1.", '<p dir="auto">1.</p>'),
    ],
)  # fmt: skip
def test_what_a_reply_looks_like(text: str, html: str) -> None:
    assert to_html(text) == html


def test_the_sentence_after_a_list_is_not_in_its_last_item() -> None:
    """The built-in model ends a list so, on a line of its own without an empty one before it."""
    assert to_html("We have:\n- mugs.\n- hats.\nAnything else?") == (
        '<p dir="auto">We have:</p>\n<ul dir="auto">\n<li>mugs.</li>\n<li>hats.</li>\n</ul>\n'
        '<p dir="auto">Anything else?</p>'
    )
    assert (to_html("- a\n  b\nc") or "").count("<li") == 1
    assert to_html("- a\n  b\nc") == '<ul dir="auto">\n<li>a<br>\nb</li>\n</ul>\n<p dir="auto">c</p>'


def test_a_numbered_list_goes_on_after_something_else() -> None:
    html = to_html("1. a\n2. b\n\nThen\n\n3. c") or ""
    assert html.count("<ol") == 2
    assert '<ol start="3"' in html.replace(' dir="auto"', "")


@pytest.mark.parametrize(
    ("text", "address", "words"),
    [
        ("[x](https://a.example/b?c=1&d=2)", "https://a.example/b?c=1&amp;d=2", "x"),
        ("<http://a.example>", "http://a.example", "http://a.example"),
        ("<a@b.example>", "mailto:a@b.example", "a@b.example"),
        ("![a *picture*](https://a.example/p.png)", "https://a.example/p.png", "a picture"),
        ("![](https://a.example/p.png)", "https://a.example/p.png", "https://a.example/p.png"),
        ("[](https://a.example)", "https://a.example", "https://a.example"),
        ("[![words](https://a.example/p.png)](https://b.example)", "https://b.example", "words"),
        ('[x](https://a.example "title")', "https://a.example", "x"),
    ],
)  # fmt: skip
def test_links_and_images_are_links(text: str, address: str, words: str) -> None:
    html = to_html(text) or ""
    assert re.findall(r'href="([^"]*)"', html) == [address]
    assert Walk(html).words == words
    assert Walk(html).wrong == []


def test_a_table_is_a_table_with_its_alignment() -> None:
    html = to_html("| a | b | c |\n|:--|:-:|--:|\n| 1 | 2 | 3 |") or ""
    assert Walk(html).tags == ["div", "table", "thead", "tr", "th", "th", "th", "tbody", "tr", "td", "td", "td"]
    assert re.findall(r'align="(\w+)"', html) == ["left", "center", "right"] * 2
    assert "style" not in html


def test_code_is_highlighted_by_classes_and_its_text_is_whole() -> None:
    code = 'def f(x):\n    """<b>"""\n    return x + 1  # why\n'
    html = to_html(f"```python\n{code}```") or ""
    assert '<span class="hl-k">def</span>' in html
    assert Walk(html).wrong == []
    assert Walk(html).words == code
    plain = to_html(f"```klingon\n{code}```") or ""
    assert "<span" not in plain
    assert Walk(plain).words == code


def test_every_language_that_is_named_can_be_highlighted() -> None:
    from server.markdown import _LANGUAGES

    for language in _LANGUAGES:
        html = to_html(f"```{language}\nlet x = 1;\n```")
        assert html is not None, language
        assert Walk(html).words == "let x = 1;\n"


def test_a_reply_that_is_too_long_stays_plain() -> None:
    assert to_html("x" * MAX_CHARS) is not None
    assert to_html("x" * (MAX_CHARS + 1)) is None


@pytest.mark.parametrize(("columns", "rows", "drawn"), [(10, 100, True), (100, 10, True), (250, 260, False)])
def test_a_small_text_does_not_become_a_huge_table(columns: int, rows: int, drawn: bool) -> None:
    html = to_html("|" + "a|" * columns + "\n|" + "-|" * columns + "\n" + "|\n" * rows) or ""
    assert ("<table" in html) is drawn
    assert len(html) < 200_000


PATTERNS = {
    "[": "[",
    "![": "![",
    "[](": "[](",
    "[a](": "[a](",
    "[]((": "[]((",
    "[x](<": "[x](<",
    "*": "*",
    "*a ": "*a ",
    "*a_ ": "*a_ ",
    "_": "_",
    "a**b": "a**b",
    "**a *b ": "**a *b ",
    "~~a": "~~a",
    ">": ">",
    "> a lines": "> a\n",
    "- a lines": "- a\n",
    "1. a lines": "1. a\n",
    "`": "`",
    "growing backticks": "`a``b```c````d",
    "<": "<",
    "<a:": "<a:",
    "<!--": "<!--",
    "&": "&",
    "&#": "&#",
    "\\": "\\",
    "|": "|",
    "table rows": "|a|b|\n|-|-|\n",
    "references": "[a]: b\n",
    "long reference": "[a]: <",
    "quotes in titles": '[]( "',
    "headings": "# a\n",
    "setext": "a\n=\n",
    "spaces": " \n",
    "fences": "```\n",
}


@pytest.mark.timeout(120)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_what_is_made_to_be_slow_ends(pattern: str) -> None:
    """Some of these cost the square of their length; the limit on the length is what bounds them."""
    text = (PATTERNS[pattern] * MAX_CHARS)[:MAX_CHARS]
    html = to_html(text)
    assert html is None or Walk(html).wrong == []


@pytest.mark.timeout(120)
def test_nested_blocks_end() -> None:
    deep = "\n".join("  " * depth + "- x" for depth in range(190))
    assert Walk(to_html(deep) or "").wrong == []
    assert Walk(to_html("> " * (MAX_CHARS // 2)) or "").wrong == []


@pytest.mark.timeout(120)
@pytest.mark.parametrize("language", ["python", "html", "js", "sql", "bash", "yaml", "cpp"])
@pytest.mark.parametrize("piece", ["'", '"', "(", "<", "/*", "a ", "{", "\\", "0", "${", "<!--", "\n "])
def test_code_that_is_made_to_be_slow_ends(language: str, piece: str) -> None:
    text = f"```{language}\n{(piece * 10_000)[:10_000]}\n```"
    assert Walk(to_html(text) or "").wrong == []
