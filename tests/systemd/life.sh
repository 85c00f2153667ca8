#!/usr/bin/env bash
# The packages on real machines: systemd starts the daemons in their sandbox, two machines join, and what an operator does to
# them every day holds. Three booted machines, the .deb packages of target/package (or those of DIR).
#
#   tests/systemd/life.sh [DIR]      as root; VM_KEEP=1 leaves the machines running on failure
#
# One line per step; exit 0 only if every step held.
set -euo pipefail
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
DEBS=$(cd "${1:-$HERE/../../target/package}" && pwd)
export VM_ID=life$$
NAME=orders.shop.mesh.internal
LOG=$(mktemp)
STEP=0

vm() { "$HERE/vm.sh" "$@"; }
on() { local machine=$1; shift; vm run "$machine" -- "$@"; }
# shellcheck disable=SC2329  # called by the trap
cleanup() {
    local status=$?
    if [ "$status" != 0 ] && [ -n "${VM_KEEP:-}" ]; then echo "kept: VM_ID=$VM_ID"; exit "$status"; fi
    vm down
    rm -f "$LOG"
    exit "$status"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

# step TEXT COMMAND...: says how long it took, or what it printed when it failed.
step() {
    local text=$1 began
    shift
    began=$(date +%s%3N)
    STEP=$((STEP + 1))
    # In the background, or `set -e` would not hold within the functions below.
    "$@" >"$LOG" 2>&1 &
    if wait $!; then
        echo "PASS $STEP. $text ($(($(date +%s%3N) - began)) ms)"
        return
    fi
    echo "FAIL $STEP. $text: $*" >&2
    sed 's/^/    /' "$LOG" >&2
    for machine in control web orders; do
        echo "  the journal of $machine:" >&2
        vm journal "$machine" -u mesh-agent -u mesh-control -n 8 2>&1 | sed 's/^/    /' >&2 || true
    done
    exit 1
}

# within SECONDS COMMAND...: until it succeeds.
within() {
    local end=$((SECONDS + $1))
    shift
    until "$@"; do
        [ "$SECONDS" -lt "$end" ] || return 1
        sleep 0.1
    done
}
not() { ! "$@"; }
property() { on "$1" systemctl show -p "$2" --value "$3"; }
status_text() { property "$1" StatusText mesh-agent | grep -q "$2"; }

install_packages() {
    vm install "$(compgen -G "$DEBS/mesh-control_*.deb")" control
    vm install "$(compgen -G "$DEBS/mesh-agent_*.deb")" web orders
}
neither_runs() { not on web systemctl is-active -q mesh-agent && not on control systemctl is-active -q mesh-control; }
start_control() {
    on control sed -i "s|^# addresses = .*|addresses = [\"$(vm addr control):15012\"]|" /etc/mesh-control/control.toml
    on control systemctl enable --now mesh-control
    vm push control "$HERE/../demo/shop.yaml" /root/shop.yaml
    on control meshctl apply -f /root/shop.yaml
}
exposure() { on "$1" systemd-analyze security --no-pager --threshold="$3" "$2.service"; }
unit_is_clean() {
    # Mistakes are printed and do not fail the command.
    not grep -F "$2" < <(on "$1" systemd-analyze verify --man=no "/lib/systemd/system/$2.service" 2>&1)
}
waits() { on "$1" systemctl enable --now mesh-agent && status_text "$1" 'waiting to be joined'; }
nothing_touched() { not on web ip link show mesh0 && not on web nft list table inet mesh-agent; }
join() {
    on control meshctl token create --group "shop/$1" | on "$1" mesh-agent join
    within 10 status_text "$1" '^member '
}
not_root() {
    local pid
    pid=$(property web MainPID mesh-agent)
    [ "$(on web stat -c %U "/proc/$pid")" = mesh-agent ] &&
        on web grep -qE '^CapEff:\s0*1000$' "/proc/$pid/status" # CAP_NET_ADMIN alone
}
serve() {
    on orders mkdir -p /srv/web
    on orders sh -c 'echo "an order" > /srv/web/index.html'
    on orders sh -c 'cat > /root/nginx.conf' <<CONF
pid /run/nginx.pid;
events {}
http { access_log off; server { listen $(vm addr orders):8080; root /srv/web; } }
CONF
    on orders systemd-run -q --unit=web-server nginx -c /root/nginx.conf -g 'daemon off;'
    tell_resolver
}
# The machine's own resolver learns which names are the mesh's.
tell_resolver() {
    on web resolvectl dns mesh0 100.64.100.53
    on web resolvectl domain mesh0 '~mesh.internal'
    on web resolvectl dnssec mesh0 no
}
fetch() { [ "$(on web curl -sS -m 5 "http://$NAME/")" = 'an order' ]; }
encrypted() { on orders journalctl -u mesh-agent -o cat | grep -q 'spiffe://mesh.internal/ns/shop/sa/web'; }
reload() {
    on web systemctl reload mesh-agent
    within 5 status_text web 'configuration reloaded'
    on web systemctl is-active -q mesh-agent
}
restarts() { property web NRestarts mesh-agent; }
restarted_since() { [ "$(restarts)" -gt "$1" ] && on web systemctl is-active -q mesh-agent; }
crash() {
    local before
    before=$(restarts)
    on web systemctl kill -s KILL mesh-agent
    within 10 restarted_since "$before"
}
recovers() { within 10 tell_resolver && within 10 fetch; }
hang() {
    local before
    before=$(restarts)
    on web systemctl kill -s STOP mesh-agent
    within 20 restarted_since "$before"
}
shorter_watchdog() {
    on web mkdir -p /run/systemd/system/mesh-agent.service.d
    on web sh -c 'printf "[Service]\nWatchdogSec=3\nTimeoutStopSec=3\nTimeoutAbortSec=1\n" > /run/systemd/system/mesh-agent.service.d/test.conf'
    on web systemctl daemon-reload
    on web systemctl restart mesh-agent
}
control_restarts() {
    on control systemctl restart mesh-control
    on control systemctl is-active -q mesh-control
    recovers
}
clean_stop() {
    on web systemctl stop mesh-agent
    not on web ip link show mesh0
    not on web nft list table inet mesh-agent
    [ "$(on web ip rule | grep -cE '^80[0-9][0-9]:')" = 0 ]
}
leave() {
    on web systemctl start mesh-agent
    within 10 status_text web '^member '
    on web mesh-agent leave
    within 5 status_text web 'waiting to be joined'
    on web test ! -e /var/lib/mesh-agent/membership.json
}
purge() {
    on "$1" apt-get purge -y -q "$2"
    not on "$1" ls -d "/etc/$2"
    not on "$1" test -e "/lib/systemd/system/$2.service"
}
purge_leaves_nothing() { purge web mesh-agent && not on web ls -d /var/lib/mesh-agent; }
no_failed_units() { not on "$1" sh -c 'systemctl --failed --no-legend | grep .'; }

main() {
    local began=$SECONDS machine
    [ "$(id -u)" = 0 ] || { echo "SKIPPED life: needs root" >&2; exit 1; }
    step "three machines boot" vm up control web orders
    step "the packages install" install_packages
    step "and start nothing by themselves" neither_runs
    step "the control plane starts, and takes groups and services" start_control
    for machine in web orders; do step "$machine waits to be joined" waits $machine; done
    step "which touches nothing of the network" nothing_touched
    step "the agent's unit has no mistake" unit_is_clean web mesh-agent
    step "the control plane's unit has no mistake" unit_is_clean control mesh-control
    step "the agent's exposure is at most 1.8" exposure web mesh-agent 18
    for machine in web orders; do step "$machine joins" join $machine; done
    step "the agent is not root" not_root
    step "a web server, and the mesh's names" serve
    step "the page comes by name" within 10 fetch
    step "with the caller's identity" encrypted
    step "reload" reload
    step "killed, it is back" crash
    step "and serves" recovers
    step "with a watchdog of 3 s" shorter_watchdog
    step "hanging, it is restarted" hang
    step "and serves again" recovers
    step "the control plane restarts" control_restarts
    step "a clean stop leaves nothing in the kernel" clean_stop
    step "the machine leaves" leave
    step "purged, nothing is left" purge_leaves_nothing
    step "the control plane is purged" purge control mesh-control
    for machine in web orders; do step "$machine has no failed unit" no_failed_units $machine; done
    echo "LIFE PASSED: $STEP steps in $((SECONDS - began)) s"
}
main
