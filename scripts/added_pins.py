"""Print the pins of the second requirements file whose names the first one lacks: what a set of extras adds."""

import re
import sys
from pathlib import Path


def pins(path: str) -> dict[str, str]:
    """Package name: its pin with all its hashes, as written."""
    text = Path(path).read_text(encoding="utf-8")
    blocks = re.findall(r"^[A-Za-z0-9].*?(?=^[A-Za-z0-9]|\Z)", text, flags=re.MULTILINE | re.DOTALL)
    return {block.split("==", 1)[0]: block for block in blocks}


if __name__ == "__main__":
    already, everything = (pins(path) for path in sys.argv[1:3])
    sys.stdout.write("".join(block for name, block in everything.items() if name not in already))
