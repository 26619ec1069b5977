#!/usr/bin/env bash
# Fuzzes the protocol between a worker and the init of its sandboxes, from both ends: see docs/testing.md.
#
#   SECONDS_LONG  how long each of the three goes on; 300
#
# The reader of frames is fuzzed with coverage (libFuzzer, with the stable compiler), both ends as a whole with random
# sequences: the worker's against inits, the real init in bubblewrap against workers.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh

seconds=${SECONDS_LONG:-300}
target=${CARGO_TARGET_DIR:-target}
export SQLX_OFFLINE=true RUST_BACKTRACE=0
if [ -z "${HOTHOUSE_TEST_INIT:-}" ]; then
    HOTHOUSE_TEST_INIT=$(scripts/init.sh)
    export HOTHOUSE_TEST_INIT
fi

# What cargo-fuzz would pass, without the sanitizer that only a nightly compiler has: there is no unsafe code in it.
RUSTFLAGS="--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1 -Cdebug-assertions -Coverflow-checks" \
    cargo build --quiet --release --manifest-path sandbox/fuzz/Cargo.toml --target-dir "$target/fuzz" \
    --target "$(rustc -vV | sed -n 's/^host: //p')"
mkdir -p "$target/fuzz/corpus" "$target/fuzz/found"
frames=$(echo "$target"/fuzz/*/release/frames)
"$frames" -max_total_time="$seconds" -max_len=4096 -print_final_stats=1 -artifact_prefix="$target/fuzz/found/" \
    "$target/fuzz/corpus" 2>&1 | grep -E '^(stat::|Done|SUMMARY|==)|panicked|DONE' || true
[ -z "$(ls -A "$target/fuzz/found")" ] || die "there are findings in $target/fuzz/found"

HOTHOUSE_FUZZ_SECONDS=$seconds exec cargo test --locked --quiet -p worker --test it -- --nocapture hostile_
