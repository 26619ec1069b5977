#!/bin/sh
# Writes docs/configuration.md from the documented defaults, which are the reference; `--check` compares instead.
set -eu
cd "$(dirname "$0")/.."
generate() {
    cat <<'HEAD'
# Configuration

Generated from the documented defaults by `scripts/config-docs.sh`; do not edit.

Each process reads its defaults, then the TOML file that `--config` or `HOTHOUSE_CONFIG` names, then environment variables:
`HOTHOUSE_SECTION__KEY` sets `key` of `[section]`, and `HOTHOUSE_SECTION__PART__KEY` that of `[section.part]`. Durations are
texts such as `90s` or `5m`; a variable gives the items of a list with commas between them. An unknown key is an error; a
section that a process does not have is left to those that do.
`hothouse config check` prints the merged result without its secrets.
HEAD
    for part in "Shared by all:common/src/config/shared.default.toml" "API:api/src/config.default.toml" \
        "Worker:worker/src/config.default.toml" "Scheduler:scheduler/src/config.default.toml"; do
        printf '\n## %s\n\n```toml\n' "${part%%:*}"
        cat "${part#*:}"
        printf '```\n'
    done
}
if [ "${1:-}" = --check ]; then
    generate | cmp -s - docs/configuration.md || {
        echo "docs/configuration.md is not what the defaults say: run scripts/config-docs.sh" >&2
        exit 1
    }
else
    generate >docs/configuration.md
fi
