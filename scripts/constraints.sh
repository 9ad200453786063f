#!/bin/sh
# Recompiles constraints/: every package of the cpu and the gpu engine, and what developing adds, pinned with hashes.
#
# For x86-64 Linux and Python 3.11. Pins that still fit stay; give --upgrade to move all of them. No address of
# any package index is written. Needs uv, and network to read metadata (nothing large is downloaded).
set -eu
cd "$(dirname "$0")/.."
uv=${UV:-uv}

compile() { # compile OUTPUT FIND_LINKS ARGUMENTS...
    output=$1 links=$2
    shift 2
    UV_FIND_LINKS=$links "$uv" pip compile --quiet pyproject.toml constraints/build.in "$@" \
        --python-version 3.11 --python-platform x86_64-manylinux_2_28 --generate-hashes \
        --no-header --no-annotate --no-emit-index-url --no-emit-find-links --output-file "$output"
}

torch_links=${UV_FIND_LINKS:-${PIP_FIND_LINKS:-https://download.pytorch.org/whl/cpu/torch/}}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# Without its own pin the override in pyproject.toml keeps CUDA's torchvision and its kin away from both engines.
compile constraints/cpu.txt "$torch_links" --extra cpu "$@"
compile constraints/gpu.txt "" --extra gpu "$@"
compile "$scratch/both.txt" "$torch_links" --extra cpu --extra dev --constraint constraints/cpu.txt "$@"
python3 scripts/added_pins.py constraints/cpu.txt "$scratch/both.txt" >"$scratch/dev.txt"
mv "$scratch/dev.txt" constraints/dev.txt
# What developing adds must fit the other engine too; this fails where it does not.
compile "$scratch/gpu-dev.txt" "" --extra gpu --extra dev --constraint constraints/gpu.txt --constraint constraints/dev.txt
