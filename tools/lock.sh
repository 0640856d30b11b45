#!/bin/sh
# Resolve pyproject.toml into the lock files, with hashes and without naming an index.
# `make lock` runs it; the lock files are never edited by hand.
set -eu
cd "$(dirname "$0")/.."
unset PIP_FIND_LINKS UV_FIND_LINKS || true
compile() {
    uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
        --no-emit-index-url --no-emit-find-links \
        --custom-compile-command "make lock" "$@"
}
compile --output-file requirements.lock pyproject.toml
compile --group tools --output-file requirements-tools.lock
compile --extra dev --group tools --output-file requirements-dev.lock pyproject.toml
