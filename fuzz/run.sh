#!/usr/bin/env bash
# Builds the fuzz targets on the stable toolchain, with the flags that libFuzzer needs, and runs each for SECONDS (10).
#   fuzz/run.sh [SECONDS [TARGET...]]
# A crash is written to fuzz/artifacts/TARGET; run that input again with fuzz/target/.../TARGET FILE.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
SECONDS_EACH=${1:-10}
shift || true

HOST=$(rustc -vV | sed -n 's/^host: //p')
export CARGO_TARGET_DIR=$PWD/target
# What cargo-fuzz passes without a sanitizer; nothing of it needs a nightly compiler.
export RUSTFLAGS="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
-Cllvm-args=-sanitizer-coverage-trace-compares --cfg fuzzing -Cdebug-assertions"

cargo build --locked --release --target "$HOST"

targets=("$@")
[ ${#targets[@]} -gt 0 ] || mapfile -t targets < <(sed -n '/^\[\[bin\]\]/,/^$/s/^name = "\(.*\)"/\1/p' Cargo.toml)
for target in "${targets[@]}"; do
    mkdir -p "corpus/$target" "artifacts/$target"
    log=$(mktemp)
    # The first corpus directory receives what is found new; committed seeds are read beside it.
    seeds=()
    [ ! -d "seeds/$target" ] || seeds=("seeds/$target")
    if ! "target/$HOST/release/$target" -max_total_time="$SECONDS_EACH" -timeout=10 -rss_limit_mb=2048 \
        -artifact_prefix="artifacts/$target/" "corpus/$target" "${seeds[@]}" >"$log" 2>&1; then
        tail -n 40 "$log" >&2
        echo "FAILED fuzz $target; the input is in fuzz/artifacts/$target" >&2
        exit 1
    fi
    echo "PASS fuzz $target: $(grep -E '^Done ' "$log" || tail -n 1 "$log")"
    rm -f "$log"
done
