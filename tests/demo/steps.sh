# shellcheck shell=bash
# The steps of the demonstration, in their order. Sourced by demo.sh, whose variables they use.

build_network() {
    local machine
    for machine in switch control web orders stranger; do lab_machine "$machine"; done
    lab_switch switch
    lab_cable switch control "$CONTROL/24"
    lab_cable switch web "$WEB/24"
    lab_cable switch orders "$ORDERS/24"
    lab_cable switch stranger "$STRANGER/24"
    lab_in stranger curl -s --connect-timeout 3 "http://$ORDERS:9/" || [ $? = 7 ]
    pass "a control plane and three machines on one switch: web $WEB, orders $ORDERS, stranger $STRANGER (never joins)"
}

start_control() {
    cat >"$LAB/control/mesh-control.toml" <<TOML
data_dir = "$LAB/control/data"
run_dir = "$LAB/control/run"
listen = "0.0.0.0:15012"
operator_listen = "127.0.0.1:15080"
addresses = ["$CONTROL:15012"]
TOML
    mkdir -p "$LAB/control/data" "$LAB/control/run"
    lab_start control mesh-control "$BIN/mesh-control" serve --config "$LAB/control/mesh-control.toml"
    wait_until 30 "mesh-control" meshctl ca status
    pass "mesh-control serves, with a CA that it made on its first start"
}

meshctl() { lab_in control "$BIN/meshctl" --server "unix://$LAB/control/run/control.sock" "$@"; }

declare_services() {
    meshctl apply -f "$LAB_SOURCE/shop.yaml" >"$LAB/control/apply.log"
    meshctl token create --group shop/web >"$LAB/web/token" 2>"$LAB/web/token.info"
    meshctl token create --group shop/orders >"$LAB/orders/token" 2>"$LAB/orders/token.info"
    [ "$(wc -l <"$LAB/web/token")" = 1 ]
    pass "groups shop/web and shop/orders, service $NAME, one join token each ($(wc -c <"$LAB/web/token") characters)"
}

# configure MACHINE: its agent's settings; the resolver is named as the package would do it.
configure() {
    mkdir -p "$LAB/$1/state" "$LAB/$1/run"
    cat >"$LAB/$1/agent.toml" <<TOML
[paths]
state = "$LAB/$1/state"
run = "$LAB/$1/run"
[admin]
group = "root"
[log]
format = "text"
TOML
    lab_in "$1" bash -c 'echo "nameserver 100.64.100.53" >/etc/resolv.conf'
}

agent() { lab_in "$1" "$BIN/mesh-agent" "${@:2}" --config "$LAB/$1/agent.toml"; }

start_agent() {
    lab_start "$1" mesh-agent "$BIN/mesh-agent" run --config "$LAB/$1/agent.toml"
    AGENT_PID[$1]=$LAB_STARTED
}
declare -A AGENT_PID=()

is_ready() { lab_in "$1" curl -sf -m 2 http://127.0.0.1:15021/healthz/ready; }
# The exit code of status is 3 as long as the machine has not joined.
is_waiting() { { agent "$1" status -o json || true; } | jq -e '.state == "waiting"'; }
is_member() {
    meshctl agents -o json | jq -e --arg address "$1" 'any(.[]; .address == $address and .state == "connected")'
}

join_before_start() {
    configure "$1"
    agent "$1" join <"$LAB/$1/token" >"$LAB/$1/join.log" 2>&1
    start_agent "$1"
    wait_until 30 "$1 to be ready" is_ready "$1"
    wait_until 10 "$1 to be registered" is_member "$2"
    pass "machine $1 joined with its token, then its agent was started: ready, registered as $2"
}

join_after_start() {
    configure "$1"
    start_agent "$1"
    wait_until 30 "$1 to wait for a join" is_waiting "$1"
    agent "$1" join <"$LAB/$1/token" >"$LAB/$1/join.log" 2>&1
    wait_until 30 "$1 to be ready" is_ready "$1"
    wait_until 10 "$1 to be registered" is_member "$2"
    pass "machine $1 was running before it joined, and took the join up at once: ready, registered as $2"
}

serve_orders() {
    local dir=$LAB/orders/nginx
    mkdir -p "$dir/www"
    echo "orders say $MARKER" >"$dir/www/index.html"
    { echo "$MARKER"; head -c "${MEGABYTES}M" /dev/urandom; echo "$MARKER"; } >"$dir/www/large.bin"
    chmod -R a+rX "$LAB" "$dir"
    cat >"$dir/nginx.conf" <<NGINX
daemon off;
worker_processes 1;
user root;
pid $dir/pid;
error_log stderr;
events { worker_connections 1024; }
http {
    access_log off;
    sendfile on;
    client_body_temp_path $dir/t1; proxy_temp_path $dir/t2; fastcgi_temp_path $dir/t3; uwsgi_temp_path $dir/t4; scgi_temp_path $dir/t5;
    server { listen 8080; root $dir/www; add_header X-Marker $MARKER; }
}
NGINX
    lab_start orders nginx nginx -e stderr -p "$dir" -c "$dir/nginx.conf"
    wait_until 10 "nginx" lab_in orders curl -sf "http://127.0.0.1:8080/"
    pass "nginx serves on orders, port 8080, knowing nothing of the mesh"
}

capture_wire() {
    lab_start switch tcpdump tcpdump -i orders -n -s 0 -B 65536 -U -w "$LAB/switch/wire.pcap" "host $ORDERS"
    TCPDUMP=$LAB_STARTED
    wait_until 10 "tcpdump" test -s "$LAB/switch/wire.pcap"
}

fetch() { lab_in web curl -sS -m 20 "$@"; }

fetch_by_name() {
    local body
    wait_until 10 "the name to resolve" lab_in web getent ahostsv4 "$NAME"
    body=$(fetch -H "X-Marker: $MARKER" "http://$NAME/")
    [ "$body" = "orders say $MARKER" ]
    say "$NAME is $(lab_in web getent ahostsv4 "$NAME" | awk 'NR == 1 { print $1 }') on web; nginx saw it on $ORDERS:8080"
    pass "web fetched http://$NAME/ by name, through the mesh"
}

transfer_large_file() {
    local sent received began ended
    sent=$(sha256sum <"$LAB/orders/nginx/www/large.bin")
    began=$(date +%s%N)
    received=$(lab_in web curl -sS -m 120 "http://$NAME/large.bin" | sha256sum)
    ended=$(date +%s%N)
    [ "$sent" = "$received" ] || fail "sent $sent, received $received"
    say "sha256 ${received:0:16}..., $(((ended - began) / 1000000)) ms"
    pass "web transferred $MEGABYTES MiB, and the checksum is the sender's"
}

is_refused() { ! fetch -m 5 "http://$NAME/" >/dev/null 2>"$LAB/web/refused"; }
is_served() { fetch -m 5 "http://$NAME/" >/dev/null; }

deny_and_allow() {
    meshctl apply -f "$LAB_SOURCE/deny.yaml" >>"$LAB/control/apply.log"
    wait_until 10 "the refusal" is_refused
    say "web:    $(cat "$LAB/web/refused")"
    wait_until 5 "web's log to name the policy" grep -q 'shop/no-web' "$LAB/web/mesh-agent.log"
    wait_until 5 "orders' log to name the policy" grep -q 'shop/no-web' "$LAB/orders/mesh-agent.log"
    say "web:    $(grep 'shop/no-web' "$LAB/web/mesh-agent.log" | tail -n 1)"
    say "orders: $(grep 'shop/no-web' "$LAB/orders/mesh-agent.log" | tail -n 1)"
    pass "a DENY policy refuses web, and both sides name it: shop/no-web"
    meshctl delete authorizationpolicy no-web -n shop >>"$LAB/control/apply.log"
    wait_until 10 "success after the policy went" is_served
    pass "the policy was deleted, and web is served again"
}

as_stranger() { lab_in stranger curl -sS -m 3 "http://$ORDERS:8080/"; }
is_stranger_refused() { ! as_stranger >/dev/null 2>"$LAB/stranger/refused"; }

judge_stranger() {
    [ "$(as_stranger)" = "orders say $MARKER" ]
    pass "stranger gets in, in plain, while nothing forbids it (PERMISSIVE is the default)"
    meshctl apply -f "$LAB_SOURCE/strict.yaml" >>"$LAB/control/apply.log"
    wait_until 10 "stranger to be refused" is_stranger_refused
    say "stranger: $(cat "$LAB/stranger/refused")"
    [ "$(fetch "http://$NAME/")" = "orders say $MARKER" ]
    pass "under STRICT stranger is refused, and web still gets in through the mesh"
}

# seen FILTER: the packets of the capture that match, as text.
seen() { tcpdump -nn -r "$LAB/switch/wire.pcap" "$@" 2>/dev/null; }

show_wire() {
    local pair="host $WEB and host $ORDERS" tunnel other
    # What the kernel still holds for tcpdump is lost when it stops; the stranger's fetch was among the last packets.
    wait_until 20 "the capture to catch up" grep -a -q "$MARKER" "$LAB/switch/wire.pcap"
    lab_stop "$TCPDUMP" INT
    tunnel=$(seen "$pair and udp port 15008" | wc -l)
    other=$(seen "$pair and (tcp or udp) and not udp port 15008" | wc -l)
    say "between web and orders: $tunnel packets of QUIC (UDP 15008), $other others of TCP or UDP"
    [ "$other" = 0 ] || { seen "$pair and (tcp or udp) and not udp port 15008" | head -n 5 >&2; fail "others were seen"; }
    [ "$tunnel" -gt 0 ]
    tcpdump -r "$LAB/switch/wire.pcap" -w "$LAB/switch/pair.pcap" "$pair" 2>/dev/null
    tcpdump -r "$LAB/switch/wire.pcap" -w "$LAB/switch/stranger.pcap" "host $STRANGER" 2>/dev/null
    ! grep -a -q "$MARKER" "$LAB/switch/pair.pcap" || fail "the marker was seen in plain between web and orders"
    # The counter-check: the same search finds the marker where it did travel in plain.
    grep -a -q "$MARKER" "$LAB/switch/stranger.pcap" || fail "the capture missed the stranger's plain fetch"
    say "the marker of headers, page and file: seen nowhere there; seen in plain in the stranger's own fetch"
    pass "no plaintext on the wire between web and orders"
}

is_clean() {
    ! lab_in "$1" ip -o link show mesh0 2>/dev/null &&
        ! lab_in "$1" ip rule show | grep -q 28005 &&
        ! lab_in "$1" nft list ruleset | grep -q mesh
}

stop_and_look() {
    local machine
    for machine in web orders; do
        lab_stop "${AGENT_PID[$machine]}" TERM
        is_clean "$machine" || fail "$machine: something was left in the kernel"
    done
    pass "both agents stopped, and left no device, rule, route or table behind"
}
