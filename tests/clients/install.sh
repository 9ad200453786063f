#!/bin/sh
# Clients that no one here wrote, each in its own environment below .clients/ (or KUDOS_CLIENTS): `make test-clients`.
# Needs node and npm, uv as scripts/install.sh finds it, and 3 GB of disk, nearly all of it Open WebUI's.
set -eu
cd "$(dirname "$0")/../.."

openai_js=7.59.0
langchain_openai=1.7.4
open_webui=0.12.4

folder=${KUDOS_CLIENTS:-.clients}
mkdir -p "$folder/js" "$folder/langchain" "$folder/open-webui"
uv=$(command -v uv || echo .uv/bin/uv)
UV_FIND_LINKS=${UV_FIND_LINKS:-$(echo "${PIP_FIND_LINKS:-https://download.pytorch.org/whl/cpu/torch/}" | tr ' ' ',')}
export UV_FIND_LINKS
if [ -n "${PIP_INDEX_URL:-}" ]; then export UV_DEFAULT_INDEX="${UV_DEFAULT_INDEX:-$PIP_INDEX_URL}"; fi

environment() { # environment FOLDER PACKAGE...
    [ -x "$1/venv/bin/python" ] || "$uv" venv --quiet --python 3.11 "$1/venv"
    python=$1/venv/bin/python
    shift
    "$uv" pip install --quiet --python "$python" --override tests/clients/overrides.txt "$@"
}

environment "$folder/langchain" "langchain-openai==$langchain_openai" pytest
environment "$folder/open-webui" "open-webui==$open_webui"
if ! grep -qs "\"version\": \"$openai_js\"" "$folder/js/node_modules/openai/package.json"; then
    echo '{"private": true}' >"$folder/js/package.json"
    (cd "$folder/js" && npm install --silent --no-audit --no-fund --no-package-lock "openai@$openai_js")
fi
