#!/usr/bin/env bash
# All tiers of `make test`, in the order in which a failure costs least. Says what each took, and what was skipped and why.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

PROFILE=${PROFILE:-dev}
TARGET=${CARGO_TARGET_DIR:-$PWD/target}
BIN=$TARGET/$([ "$PROFILE" = dev ] && echo debug || echo "$PROFILE")
FUZZ_SECONDS=${FUZZ_SECONDS:-10}
SUMMARY=()

tier() {
    local name=$1 began=$SECONDS
    shift
    echo "==> $name"
    if ! "$@"; then
        printf '%s\n' "${SUMMARY[@]}"
        echo "FAILED tier $name after $((SECONDS - began)) s"
        exit 1
    fi
    SUMMARY+=("PASS tier $name ($((SECONDS - began)) s)")
    echo "${SUMMARY[-1]}"
}

skip() {
    SUMMARY+=("SKIPPED tier $1: $2")
    echo "${SUMMARY[-1]}"
}

unit_tests() { cargo test --locked --workspace --lib --bins --profile "$PROFILE" -q; }
# Programs and tests in one go: the features of what both need are then the same, and nothing is compiled twice. The root
# package's tests/ hold whole agents; they find mesh-control and meshctl beside mesh-agent.
build_programs() { cargo build --locked --workspace --bins --tests --profile "$PROFILE"; }
whole_tests() { cargo test --locked --workspace --tests --profile "$PROFILE" -q; }
doc_tests() { cargo test --locked --workspace --doc --profile "$PROFILE" -q; }
demo() { MESH_BIN=$BIN DEMO_MEGABYTES=64 tests/demo/demo.sh; }

say_interop() {
    [ -n "${ZTUNNEL:-}" ] || skip "interop (ztunnel)" "ZTUNNEL names no binary"
    [ -n "${ENVOY:-}" ] || skip "interop (Envoy as waypoint and as gateway)" "ENVOY names no binary"
}

has_root() { [ "$(id -u)" = 0 ]; }
has_tun() { [ -c /dev/net/tun ]; }

if has_root; then tier packages packaging/needs.sh test demo lint package systemd; fi
tier lint make --no-print-directory lint
tier build build_programs
if has_root && has_tun; then
    tier "tests (unit and whole agents)" whole_tests
    say_interop
    tier demo demo
else
    why="needs root and /dev/net/tun"
    tier "tests (unit)" unit_tests
    skip "tests (whole agents)" "$why"
    skip demo "$why"
fi
tier "tests (documentation)" doc_tests
tier "fuzz ($FUZZ_SECONDS s a target)" env CARGO_TARGET_DIR= fuzz/run.sh "$FUZZ_SECONDS"
tier package packaging/build.sh
if has_root && has_tun; then
    tier "package, installed" packaging/check.sh
    tier "package, under systemd" tests/systemd/life.sh
else
    skip "package, installed" "needs root"
    skip "package, under systemd" "needs root and /dev/net/tun"
fi

printf '%s\n' "${SUMMARY[@]}"
echo "ALL TIERS PASSED in $SECONDS s"
