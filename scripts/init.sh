#!/usr/bin/env bash
# Builds hothouse-init, the static PID 1 of every sandbox, and prints its path.
set -euo pipefail
cd "$(dirname "$0")/.."

# A target folder of its own: the flag makes a static program, and would rebuild every other crate.
target=${CARGO_TARGET_DIR:-target}/init
RUSTFLAGS="-C target-feature=+crt-static" cargo build --quiet --locked --package hothouse-init --profile init \
    --target-dir "$target" </dev/null >&2
echo "$(cd "$target/init" && pwd -P)/hothouse-init"
