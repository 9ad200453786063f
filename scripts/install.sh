#!/bin/sh
# Makes .venv hold what constraints/ pins, hashes checked, and kudos itself: scripts/install.sh run|test
#
# Does nothing when nothing has changed since the last time. Finds uv, or installs it into .uv beside this project.
# KUDOS_EXTRA=cpu|gpu overrides the choice of engine (gpu where nvidia-smi works).
set -eu
cd "$(dirname "$0")/.."

purpose=${1:-run}
if [ -n "${KUDOS_EXTRA:-}" ]; then extra=$KUDOS_EXTRA
elif nvidia-smi >/dev/null 2>&1; then extra=gpu
else extra=cpu; fi
pins=$extra
[ "$purpose" = run ] || pins="$extra dev"

# What was installed is remembered file by file: a change of pyproject.toml does not touch the engine of a kudos that
# runs from here, and `make test` after `make run` only adds.
digest() { sha256sum | cut -d' ' -f1; }
pin_key() { echo "$1 $(digest <"constraints/$1.txt")"; }
stale=""
for pin in $pins; do
    [ "$(cat ".venv/.pinned-$pin" 2>/dev/null)" = "$(pin_key "$pin")" ] || stale="$stale $pin"
done
# The folder is part of the key, because a moved checkout leaves an editable install that points nowhere.
project_key="$(digest <pyproject.toml) $PWD"
project_stamp=.venv/.installed
if [ -z "$stale" ] && [ "$(cat "$project_stamp" 2>/dev/null)" = "$project_key" ]; then exit 0; fi

find_uv() {
    for candidate in uv "$HOME/.local/bin/uv" .uv/bin/uv; do
        if "$candidate" --version >/dev/null 2>&1; then echo "$candidate"; return; fi
    done
    echo "Installing uv" >&2
    # A private environment, because many systems refuse to install into their own Python.
    if python3 -m venv .uv >&2 && .uv/bin/python -m pip install --quiet uv >&2; then echo .uv/bin/uv; return; fi
    rm -rf .uv
    if python3 -m pip install --quiet --user uv >&2 || python3 -m pip install --quiet --user --break-system-packages uv >&2
    then echo "$HOME/.local/bin/uv"; return; fi
    echo "uv could not be installed: install it by hand, then try again" >&2
    exit 1
}
uv=$(find_uv)

# uv reads none of pip's settings, so those that say where packages come from are handed on.
if [ -n "${PIP_INDEX_URL:-}" ]; then export UV_DEFAULT_INDEX="${UV_DEFAULT_INDEX:-$PIP_INDEX_URL}"; fi
if [ -z "${UV_FIND_LINKS:-}" ]; then
    if [ -n "${PIP_FIND_LINKS:-}" ]; then
        UV_FIND_LINKS=$(echo "$PIP_FIND_LINKS" | tr ' ' ',')
        export UV_FIND_LINKS
    elif [ "$extra" = cpu ]; then # where PyTorch keeps its CPU builds; a plain list of links, so nothing else is taken from it
        export UV_FIND_LINKS="${TORCH_FIND_LINKS:-https://download.pytorch.org/whl/cpu/torch/}"
    fi
fi
export UV_HTTP_TIMEOUT="${UV_HTTP_TIMEOUT:-180}"

if [ "$extra" = cpu ]; then other=gpu; else other=cpu; fi
if [ -e ".venv/.pinned-$other" ]; then
    echo "Removing .venv, which holds the $other engine: the two exclude one another"
    rm -rf .venv
    stale=$pins
fi
[ -x .venv/bin/python ] || "$uv" venv --quiet --python 3.11 .venv
for pin in $stale; do
    echo "Installing what constraints/$pin.txt lists into .venv"
    rm -f ".venv/.pinned-$pin"
    # The pins are complete, so nothing is resolved (--no-deps), and a file whose hash is not listed is refused.
    "$uv" pip install --python .venv/bin/python --no-deps --require-hashes -r "constraints/$pin.txt"
    pin_key "$pin" >".venv/.pinned-$pin"
done
"$uv" pip install --quiet --python .venv/bin/python --no-deps --no-build-isolation --editable .
echo "$project_key" >"$project_stamp"
