#!/usr/bin/env bash
# Builds hothouse-init, the static PID 1 of every sandbox, and prints its path.
set -euo pipefail
cd "$(dirname "$0")/.."

# A target folder of its own: the flag makes a static program, and would rebuild every other crate. Naming the target,
# even the host's own, keeps the flag from macros, which are never static.
folder=${CARGO_TARGET_DIR:-target}/init
triple=$(rustc -vV | sed -n 's/^host: //p')
RUSTFLAGS="-C target-feature=+crt-static" cargo build --quiet --locked --package hothouse-init --profile init \
    --target "$triple" --target-dir "$folder" </dev/null >&2
echo "$(cd "$folder/$triple/init" && pwd -P)/hothouse-init"
