#!/usr/bin/env bash
# Machines with systemd as PID 1 (systemd-nspawn), booted from a cached root on a private bridge, each with a network
# namespace of its own, its file system an overlay on tmpfs. `vm.sh help` lists what it can do.
#
# The kernel is the host's: cgroup limits are not enforced, and there is no udev.
# shellcheck disable=SC2015  # in `A && B || true` the last word is meant for both
set -euo pipefail

VM_ID=${VM_ID:-vm}                                   # one id per parallel set of machines
VM_SUITE=${VM_SUITE:-bookworm}                       # any Debian suite apt can reach
VM_EXTRA=${VM_EXTRA:-}                               # more packages in the root, comma separated
VM_CACHE=${VM_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/mesh-agent-vm}
VM_STATE=${VM_STATE:-/run/mesh-agent-vm/$VM_ID}
VM_NET4=${VM_NET4:-10.99.0}                          # VM n gets VM_NET4.n/24
VM_NET6=${VM_NET6:-fd99:0:0:0}                       # and VM_NET6::n/64
VM_UPPER=${VM_UPPER:-2g}                             # tmpfs size of one VM's changes
VM_CAPS=${VM_CAPS:-CAP_NET_ADMIN,CAP_NET_RAW,CAP_NET_BIND_SERVICE,CAP_BPF,CAP_PERFMON}
VM_CALLS=${VM_CALLS:-bpf keyctl landlock_create_ruleset landlock_add_rule landlock_restrict_self} # nspawn forbids these; systemd and agents use them
VM_NSPAWN=${VM_NSPAWN:-}                             # more options to systemd-nspawn
PKGS=systemd,systemd-sysv,dbus,init-system-helpers,iproute2,nftables,procps,iputils-ping
PKGS+=,nginx-light,systemd-resolved,libnss-resolve,polkitd,ca-certificates,curl,python3-minimal

say() { echo "vm: $*" >&2; }
die() { say "$*"; exit 1; }
vms() { [ -d "$VM_STATE" ] && (cd "$VM_STATE" && for d in */; do [ -d "$d" ] && echo "${d%/}"; done) || true; }

root_dir() { echo "$VM_CACHE/$VM_SUITE-$(echo "v1 $PKGS,$VM_EXTRA" | sha256sum | cut -c1-12)"; }

cmd_root() { # make (once) and print the cached root
  "$(dirname "${BASH_SOURCE[0]}")/../../packaging/needs.sh" systemd >&2
  local r; r=$(root_dir); mkdir -p "$VM_CACHE"
  (
    flock 9
    [ -e "$r/.vm-ok" ] && exit 0
    rm -rf "$r" "$r.new"; say "making root $r"
    mmdebstrap --quiet --variant=minbase --include="$PKGS${VM_EXTRA:+,$VM_EXTRA}" \
      --dpkgopt='path-exclude=/usr/share/locale/*' "$VM_SUITE" "$r.new" >&2
    # no timers that wake up in the middle of a test, no login prompts
    for u in apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer \
             e2scrub_reap.service fstrim.timer systemd-networkd.service nginx.service console-getty.service getty@tty1.service; do
      ln -sf /dev/null "$r.new/etc/systemd/system/$u"
    done
    mkdir -p "$r.new/etc/systemd/journald.conf.d"
    printf '[Journal]\nStorage=persistent\nRateLimitBurst=0\n' > "$r.new/etc/systemd/journald.conf.d/test.conf"
    rm -f "$r.new/etc/resolv.conf" "$r.new/etc/hostname" "$r.new/etc/machine-id"; : > "$r.new/etc/machine-id"
    ln -s /run/systemd/resolve/stub-resolv.conf "$r.new/etc/resolv.conf"
    mv "$r.new" "$r"; touch "$r/.vm-ok"
  ) 9>"$VM_CACHE/.lock"
  echo "$r"
}

cgroups() { # the hierarchies in which a VM needs a cgroup of its own
  findmnt -rn -t cgroup2 -o TARGET | head -1
  findmnt -rn -t cgroup -O name=systemd -o TARGET | head -1
}

leader() { head -1 "$(cgroups | head -1)/$VM_ID-$1/payload/init.scope/cgroup.procs" 2>/dev/null; }

cmd_run() { # run VM -- CMD...: as root inside, plain environment; exit code is CMD's
  local vm=$1 p; shift; [ "${1:-}" = -- ] && shift
  p=$(leader "$vm") || true; [ -n "$p" ] || die "$vm is not up"
  nsenter -t "$p" -m -u -i -n -p -C -r -w -- /usr/bin/env -i \
    PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 \
    DEBIAN_FRONTEND=noninteractive SYSTEMD_PAGER= SYSTEMD_COLORS=0 "$@"
}

cmd_push() { # push VM FILE [DEST]: copy a file in
  local vm=$1 f=$2 d=${3:-/root/$(basename "$2")}
  # shellcheck disable=SC2016  # expanded inside the machine
  cmd_run "$vm" -- /bin/sh -c 'mkdir -p "$(dirname "$1")"; cat > "$1"' sh "$d" < "$f"
}

lan() { # the switch: a namespace with a bridge
  local ns=$VM_ID-lan
  [ -e "/run/netns/$ns" ] && return
  ip netns add "$ns"; ip -n "$ns" link set lo up
  ip -n "$ns" link add br0 type bridge; ip -n "$ns" link set br0 up
  ip -n "$ns" addr add "$VM_NET4.254/24" dev br0; ip -n "$ns" addr add "$VM_NET6::fe/64" dev br0 nodad
}

boot_one() { # boot_one VM N ROOT
  local vm=$1 n=$2 r=$3 d=$VM_STATE/$1 ns=$VM_ID-$1 cg p=''
  [ -e "$d" ] && die "$vm is there already (vm.sh down first)"
  mkdir -p "$d"; echo "$n" > "$d.n"
  mount -t tmpfs -o "size=$VM_UPPER,mode=755" "vm-$vm" "$d"
  mkdir "$d/upper" "$d/work" "$d/root"
  # With the mode that udev gives it on a real machine; the host's own node may have another.
  mknod -m 666 "$d/tun" c 10 200
  mount -t overlay overlay -o "lowerdir=$r,upperdir=$d/upper,workdir=$d/work" "$d/root"
  ip netns add "$ns"; ip -n "$ns" link set lo up
  ip -n "$ns" link add eth0 type veth peer name "v-$vm" netns "$VM_ID-lan"
  ip -n "$VM_ID-lan" link set "v-$vm" master br0 up
  ip -n "$ns" addr add "$VM_NET4.$n/24" dev eth0; ip -n "$ns" addr add "$VM_NET6::$n/64" dev eth0 nodad
  ip -n "$ns" link set eth0 up; ip -n "$ns" route add default via "$VM_NET4.254"
  local h=''; for p in $(cd "$VM_STATE" && ls -- *.n); do h+="$VM_NET4.$(cat "$VM_STATE/$p") ${p%.n}"$'\n'; done
  printf '127.0.0.1 localhost\n::1 localhost\n%s' "$h" > "$d/root/etc/hosts"
  (
    for cg in $(cgroups); do mkdir -p "$cg/$ns"; echo "$BASHPID" > "$cg/$ns/cgroup.procs"; done
    # the cgroup namespace hides the rest; the payload gets a pure v2 tree
    export SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1
    # shellcheck disable=SC2086
    exec systemd-nspawn --quiet --boot --directory="$d/root" --machine="$ns" --hostname="$vm" \
      --register=no --keep-unit --kill-signal=SIGRTMIN+3 --console=pipe --resolv-conf=off --timezone=off --link-journal=no \
      --network-namespace-path="/run/netns/$ns" --capability="$VM_CAPS" --system-call-filter="$VM_CALLS" \
      --bind="$d/tun:/dev/net/tun" $VM_NSPAWN systemd.show_status=0
  ) </dev/null >"$VM_STATE/$vm.console" 2>&1 9>&- &
  echo $! > "$VM_STATE/$vm.pid"
}

wait_up() { # until the VM's boot is complete: prints running or degraded
  local vm=$1 i s=''
  for i in $(seq 300); do
    if [ -n "$(leader "$vm" || true)" ]; then
      s=$(cmd_run "$vm" -- timeout 60 systemctl is-system-running --wait 2>/dev/null || true)
      case $s in running|degraded) say "$vm: $s"; return 0;; esac
    fi
    kill -0 "$(cat "$VM_STATE/$vm.pid")" 2>/dev/null || { cat "$VM_STATE/$vm.console" >&2; die "$vm died while booting"; }
    sleep 0.1
  done
  cat "$VM_STATE/$vm.console" >&2; die "$vm did not come up: $s"
}

cmd_up() { # up VM...: boot, side by side
  [ "$(id -u)" = 0 ] || die "needs root"
  local r vm n; r=$(cmd_root); mkdir -p "$VM_STATE"; lan
  n=$(find "$VM_STATE" -name '*.n' | wc -l)
  for vm in "$@"; do n=$((n + 1)); echo "$n" > "$VM_STATE/$vm.n"; done
  for vm in "$@"; do boot_one "$vm" "$(cat "$VM_STATE/$vm.n")" "$r"; done
  for vm in "$@"; do wait_up "$vm"; done
}

cmd_install() { # install FILE.deb|FILE.rpm VM...
  local f=$1 vm; shift
  for vm in "$@"; do
    cmd_push "$vm" "$f"
    case $f in
      *.deb) cmd_run "$vm" -- apt-get install -y -q --allow-downgrades "/root/$(basename "$f")" ;;
      *.rpm) cmd_run "$vm" -- rpm -Uvh --nodeps "/root/$(basename "$f")" ;; # needs VM_EXTRA=rpm
    esac
  done
}

cmd_addr() { echo "$VM_NET4.$(cat "$VM_STATE/$1.n")"; }
cmd_list() { vms; }
cmd_journal() { local vm=$1; shift; cmd_run "$vm" -- journalctl --no-pager -o short-precise "$@"; }

cmd_down() { # down [VM...]: stop and remove (all: the network too)
  local all=1 vm p cg i list; [ $# -gt 0 ] && all=
  list=${*:-$(vms)}
  for vm in $list; do p=$(cat "$VM_STATE/$vm.pid" 2>/dev/null || true); [ -n "$p" ] && kill -TERM "$p" 2>/dev/null || true; done
  for vm in $list; do
    p=$(cat "$VM_STATE/$vm.pid" 2>/dev/null || true)
    for i in $(seq 100); do [ -n "$p" ] && kill -0 "$p" 2>/dev/null || break; sleep 0.1; [ "$i" = 80 ] && kill -KILL "$p" 2>/dev/null || true; done
    for cg in $(cgroups); do
      [ -d "$cg/$VM_ID-$vm" ] || continue
      [ -e "$cg/$VM_ID-$vm/cgroup.kill" ] && echo 1 > "$cg/$VM_ID-$vm/cgroup.kill" || true
      for i in 1 2 3 4 5 6 7 8 9 10; do find "$cg/$VM_ID-$vm" -depth -type d -exec rmdir {} + 2>/dev/null && break; sleep 0.1; done
    done
    ip netns del "$VM_ID-$vm" 2>/dev/null || true
    umount -R "$VM_STATE/$vm" 2>/dev/null || umount -R -l "$VM_STATE/$vm" 2>/dev/null || true
    rmdir "$VM_STATE/$vm" 2>/dev/null || true
    rm -rf "/run/systemd/nspawn/propagate/$VM_ID-$vm" "$VM_STATE/$vm".{n,pid,console}
  done
  [ -n "$all" ] || return 0
  ip netns del "$VM_ID-lan" 2>/dev/null || true
  rm -rf "$VM_STATE"
}

cmd_help() { sed -n 's/^cmd_\([a-z]*\)() {[ #]*\(.*\)$/  \1\t\2/p' "$0"; }
c=${1:-help}; [ $# -gt 0 ] && shift
declare -F "cmd_$c" >/dev/null || die "no such command: $c"
"cmd_$c" "$@"
