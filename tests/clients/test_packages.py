"""OpenAI's JavaScript package and LangChain, each in its own environment, by a script in its own language."""

import os
import shutil

from tests.clients.conftest import HERE, INSTALLED, passes


def test_openai_for_javascript(addresses: dict[str, str]) -> None:
    folder = INSTALLED / "js"
    shutil.copy(HERE / "openai_client.mjs", folder)  # node looks for packages beside the script
    passes(["node", "--test", "openai_client.mjs"], addresses, folder)


def test_langchain(addresses: dict[str, str]) -> None:
    folder = INSTALLED / "langchain"
    shutil.copy(HERE / "langchain_client.py", folder)
    python = str(folder / "venv" / "bin" / "python")
    alone = ["-c", os.devnull, "-p", "no:cacheprovider"]  # not by this project's settings, whose plugins are not there
    passes([python, "-m", "pytest", "-q", *alone, "langchain_client.py"], addresses, folder)
