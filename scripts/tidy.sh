#!/usr/bin/env bash
# What no compiler checks: the size of files, unfinished notes, ignored tests, and which crate may know what.
# One line for each finding; exit 1 when there is one. It reads what git tracks, and files not yet added.
set -euo pipefail
cd "$(dirname "$0")/.."

found=0
finding() {
    echo "$*"
    found=$((found + 1))
}

lines_max=400
mapfile -t sources < <(git ls-files --cached --others --exclude-standard -- '*.rs')
for file in "${sources[@]}"; do
    [ -e "$file" ] || continue
    case "$file" in */tests/* | */tests.rs) continue ;; esac
    lines=$(awk '/^#\[cfg\(test\)\]$/ { exit } { n++ } END { print n + 0 }' "$file")
    [ "$lines" -le "$lines_max" ] || finding "$file: $lines lines without its tests, at most $lines_max: split it"
done

# The words are put together here, so that this file does not find itself.
note='TO''DO'
while IFS= read -r line; do
    finding "$line: write $note(#number), or do it"
done < <(git grep -nIwE --untracked "$note|FIX""ME|X""XX" -- '*.rs' '*.sh' '*.lua' '*.sql' '*.toml' Makefile .ci |
    grep -vE "$note\(#[0-9]+\)" || true)
while IFS= read -r line; do
    finding "$line: a test that does not run proves nothing"
done < <(git grep -nIE --untracked '#\[ignore' -- '*.rs' || true)

# only CRATE_REGEX MEMBER...: no other member depends on such a crate, except for its tests.
only() {
    local crate=$1 manifest member
    shift
    for manifest in $(git ls-files --cached --others --exclude-standard -- '*/Cargo.toml'); do
        member=$(dirname "$manifest")
        case " $* " in *" $member "*) continue ;; esac
        if awk '/^\[/ { on = ($0 == "[dependencies]" || $0 ~ /^\[target.*dependencies\]$/) } on' "$manifest" |
            grep -qE "^($crate)[ .=]"; then
            finding "$manifest: only $* may depend on $crate"
        fi
    done
}
only 'redis|deadpool-redis|sqlx' common
only 'axum|axum-extra|tower-http|utoipa-axum' api
only 'bollard' worker
only 'cron' scheduler
only 'api|worker|scheduler' cli

if [ "$found" -gt 0 ]; then
    echo "$found findings"
    exit 1
fi
