# shellcheck shell=bash
# Machines for demonstrations: each is a process holding its own network, mount and process namespace.
#
# Nothing is named, so any number of labs can stand side by side, and nothing outlives its holder: when the holder ends,
# however it ends, every process and every interface of that machine goes with it. Sourced by the scripts beside it.

LAB=            # working directory of this lab
LAB_HOLDERS=()  # pids of the `unshare` processes
declare -A LAB_PID=()  # machine -> pid of its first process, as seen from here

lab_open() {
    LAB=$(mktemp -d /tmp/mesh-demo.XXXXXX)
    trap lab_close EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
}

lab_close() {
    local status=$? pid
    trap - EXIT
    for pid in "${LAB_HOLDERS[@]}"; do kill -KILL "$pid" 2>/dev/null || true; done
    for pid in "${LAB_HOLDERS[@]}"; do wait "$pid" 2>/dev/null || true; done
    for pid in "${LAB_PID[@]}"; do
        wait_until 5 "process $pid of the lab to end" lab_is_gone "$pid" || true
    done
    if [ -n "${LAB_KEEP:-}" ]; then
        echo "kept: $LAB"
    elif [ -n "$LAB" ]; then
        rm -rf "$LAB"
    fi
    exit "$status"
}

lab_is_gone() { [ ! -d "/proc/$1" ]; }

# lab_machine NAME: a machine without a cable, with a private /etc, /run, /tmp state, and an empty resolv.conf.
lab_machine() {
    local name=$1 holder
    mkdir -p "$LAB/$name"
    # The holder dies with this shell (pdeathsig), its first child dies with the holder, and with that child all others.
    setpriv --pdeathsig KILL unshare --net --mount --pid --fork --kill-child=KILL --mount-proc --propagation private \
        bash "$LAB_SOURCE/machine.sh" "$LAB/$name" </dev/null >"$LAB/$name/machine.log" 2>&1 &
    holder=$!
    LAB_HOLDERS+=("$holder")
    wait_until 10 "machine $name" test -e "$LAB/$name/up" || { cat "$LAB/$name/machine.log" >&2; return 1; }
    LAB_PID[$name]=$(cut -d' ' -f1 "/proc/$holder/task/$holder/children")
}

# lab_switch NAME: a bridge br0 inside the machine NAME.
lab_switch() {
    lab_in "$1" ip link add br0 type bridge
    lab_in "$1" ip link set br0 up
}

# lab_cable SWITCH MACHINE ADDRESS/LENGTH: eth0 of MACHINE on the bridge, the other end being called like the machine.
lab_cable() {
    nsenter -t "${LAB_PID[$1]}" -n ip link add "$2" type veth peer name eth0 netns "${LAB_PID[$2]}"
    lab_in "$1" ip link set "$2" master br0 up
    lab_in "$2" ip address add "$3" dev eth0
    lab_in "$2" ip link set eth0 up
    wait_until 5 "the cable of $2" lab_carries "$2"
}

# A veth drops what is sent before its carrier was seen.
lab_carries() { lab_in "$1" ip -o link show eth0 | grep -q 'state UP'; }

# lab_in MACHINE COMMAND...: runs to its end inside the machine.
lab_in() {
    local machine=$1
    shift
    timeout -k 5 "${LAB_TIMEOUT:-180}" nsenter -t "${LAB_PID[$machine]}" -n -m -p -- "$@"
}

# lab_start MACHINE LOGNAME COMMAND...: runs inside the machine in the background; output goes to LAB/MACHINE/LOGNAME.log.
lab_start() {
    local machine=$1 log=$2
    shift 2
    nsenter -t "${LAB_PID[$machine]}" -n -m -p -- "$@" </dev/null >"$LAB/$machine/$log.log" 2>&1 &
    LAB_HOLDERS+=("$!")
    # shellcheck disable=SC2034 # read by the steps
    LAB_STARTED=$!
}

# lab_stop PID [SIGNAL]: signals what lab_start began, and waits for its end.
lab_stop() {
    local child
    child=$(cut -d' ' -f1 "/proc/$1/task/$1/children" 2>/dev/null || true)
    [ -z "$child" ] || kill "-${2:-TERM}" "$child" 2>/dev/null || true
    wait_until 15 "process $1 to end" lab_is_ended "$1"
}

lab_is_ended() { ! kill -0 "$1" 2>/dev/null; }

# wait_until SECONDS WHAT COMMAND...: polls until COMMAND succeeds; says what it waited for when it does not.
wait_until() {
    local seconds=$1 what=$2 deadline
    shift 2
    deadline=$((SECONDS + seconds))
    until "$@" >/dev/null 2>&1; do
        if [ $SECONDS -gt $deadline ]; then
            echo "gave up after ${seconds} s waiting for $what" >&2
            return 1
        fi
        sleep 0.05
    done
}
