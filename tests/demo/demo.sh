#!/usr/bin/env bash
# The main job on real traffic: a control plane and three machines on one switch, two of which join the mesh.
#
#   tests/demo/demo.sh          as root; programs are taken from MESH_BIN (default target/debug), which `make demo` builds
#   LAB_KEEP=1                  leave the working directory (logs, capture) behind
#   DEMO_MEGABYTES=256          size of the large file
#
# One line per step; exit 0 only if every step held. Nothing of the real machine is changed: every machine has its own
# network, mount and process namespace, and two demos may run at once.
set -euo pipefail

LAB_SOURCE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
ROOT=$(cd "$LAB_SOURCE/../.." && pwd)
BIN=$(cd "${MESH_BIN:-$ROOT/target/debug}" && pwd)
MEGABYTES=${DEMO_MEGABYTES:-256}
MARKER=in-plain-$$-$RANDOM$RANDOM
NAME=orders.shop.mesh.internal
WEB=10.77.0.11 ORDERS=10.77.0.12 STRANGER=10.77.0.13 CONTROL=10.77.0.1
STEP=0

# shellcheck source=tests/demo/lab.sh
. "$LAB_SOURCE/lab.sh"
# shellcheck source=tests/demo/steps.sh
. "$LAB_SOURCE/steps.sh"

main() {
    local began=$SECONDS program
    [ "$(id -u)" = 0 ] || { echo "SKIPPED demo: needs root, for network namespaces and a TUN device" >&2; exit 1; }
    [ -c /dev/net/tun ] || { echo "SKIPPED demo: no /dev/net/tun" >&2; exit 1; }
    for program in mesh-agent mesh-control meshctl; do
        [ -x "$BIN/$program" ] || { echo "demo: no $BIN/$program; run 'make demo', which builds it" >&2; exit 1; }
    done
    lab_open
    trap 'failed "$LINENO" "$BASH_COMMAND"' ERR

    build_network
    start_control
    declare_services
    join_before_start web "$WEB"
    join_after_start orders "$ORDERS"
    serve_orders
    capture_wire
    fetch_by_name
    transfer_large_file
    deny_and_allow
    judge_stranger
    show_wire
    stop_and_look
    echo "DEMO PASSED: $STEP steps in $((SECONDS - began)) s"
}

pass() {
    STEP=$((STEP + 1))
    echo "PASS $STEP. $*"
}

# Called on the first command that fails: what was under way, and the last words of everyone involved.
failed() {
    trap - ERR
    {
        echo "FAIL $((STEP + 1)). in ${FUNCNAME[*]:1} (line $1): ${2:0:200}"
        for log in "$LAB"/*/*.log; do
            [ -s "$log" ] || continue
            echo "--- ${log#"$LAB"/}"
            tail -n 25 "$log"
        done
    } >&2
    exit 1
}

# fail TEXT...: a check that did not hold.
fail() {
    echo "     $*" >&2
    return 1
}

say() { echo "     $*"; }

set -E
main "$@"
