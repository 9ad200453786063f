"""The files of a training run that hold people's words, and how the words are taken out of them.

The trainer writes these files (`trainer.checkpoint`, `trainer.report`); an erasure must reach them without knowing the
trainer. So their names, and the marks around quotations in the report, are agreed on here.
"""

import os
import re
from pathlib import Path

EXAMPLES = "examples.json"  # the votes' prompts and replies
CHECKPOINT = "checkpoint.pt"  # of no use without the examples
ERROR = "error.txt"  # a traceback may quote what it failed on
REPORT = "report.html"
PART = ".part"  # after the name of a file that is being written

# No blank beside the dashes: matplotlib writes the words of a plot as comments too, and always with blanks.
WORDS_BEGIN, WORDS_END = "<!--people's-words-->", "<!--end-of-people's-words-->"
_QUOTED = re.compile(re.escape(WORDS_BEGIN) + ".*?" + re.escape(WORDS_END), re.DOTALL)
_REMOVED = f'{WORDS_BEGIN}<p class="muted">Removed: a conversation that was quoted here is gone.</p>{WORDS_END}'


def marked(html: str) -> str:
    """Marks a part of the report that may quote people. What it quotes must be escaped."""
    return f"{WORDS_BEGIN}{html}{WORDS_END}"


def forget_words(folder: Path) -> None:
    """Takes people's words out of a run's folder. Doing it again, or where there is no such folder, is no error."""
    for name in (EXAMPLES, CHECKPOINT, ERROR):
        for path in (folder / name, folder / (name + PART)):
            path.unlink(missing_ok=True)
    report = folder / REPORT
    if not report.exists():
        return
    text = report.read_text(encoding="utf-8")
    if WORDS_BEGIN not in text:
        report.unlink()  # older than the marks: nobody can tell what in it is a quotation
        return
    cleaned = _QUOTED.sub(_REMOVED, text)
    if cleaned != text:
        temporary = folder / (REPORT + PART)
        temporary.write_text(cleaned, encoding="utf-8")
        os.replace(temporary, report)
