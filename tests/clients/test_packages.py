"""OpenAI's JavaScript package and LangChain, each in its own environment, by a script in its own language."""

import shutil

from tests.clients.conftest import HERE, INSTALLED, passes


def test_openai_for_javascript(addresses: dict[str, str]) -> None:
    folder = INSTALLED / "js"
    shutil.copy(HERE / "openai_client.mjs", folder)  # node looks for packages beside the script
    passes(["node", "--test", "openai_client.mjs"], addresses, folder)


def test_langchain(addresses: dict[str, str]) -> None:
    folder = INSTALLED / "langchain"
    shutil.copy(HERE / "langchain_client.py", folder)  # beside no project whose settings pytest would take
    python = str(folder / "venv" / "bin" / "python")
    passes([python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "langchain_client.py"], addresses, folder)
