#!/usr/bin/env bash
# The inside of check.sh, in namespaces of its own: makes an overlay of / and goes through a package's life in it.
set -euo pipefail
debs=$1
lab=$(mktemp -d)

mount -t tmpfs -o mode=755 tmpfs "$lab"
mkdir "$lab/upper" "$lab/work" "$lab/root"
mount -t overlay -o "lowerdir=/,upperdir=$lab/upper,workdir=$lab/work" overlay "$lab/root"
mount -t proc proc "$lab/root/proc"
mount -t tmpfs tmpfs "$lab/root/run"
mount -t tmpfs tmpfs "$lab/root/tmp"
mount --bind /dev "$lab/root/dev"
cp "$debs"/*.deb "$lab/root/tmp/"
printf '#!/bin/sh\nexit 101\n' >"$lab/root/usr/sbin/policy-rc.d"
chmod 755 "$lab/root/usr/sbin/policy-rc.d"

inside() { chroot "$lab/root" /usr/bin/env PATH=/usr/sbin:/usr/bin:/sbin:/bin DEBIAN_FRONTEND=noninteractive "$@"; }
step() { echo "check: $*"; }

step install
inside bash -c 'dpkg -i /tmp/*.deb' >"$lab/dpkg.log" 2>&1 || { cat "$lab/dpkg.log" >&2; exit 1; }

step "programs run"
inside mesh-agent --version
inside mesh-control --version
inside meshctl --version
inside mesh-agent config check --config /etc/mesh-agent/agent.toml

step "units verify"
inside systemd-analyze verify --man=no /lib/systemd/system/mesh-agent.service /lib/systemd/system/mesh-control.service

step "user and directories"
inside id mesh-agent
inside test -d /etc/mesh-agent

step "a changed configuration survives removal"
echo '# changed' >>"$lab/root/etc/mesh-agent/agent.toml"
inside dpkg -r mesh-agent mesh-control >/dev/null 2>&1
inside grep -q '# changed' /etc/mesh-agent/agent.toml
if inside test -e /usr/bin/mesh-agent; then echo 'mesh-agent is still there' >&2; exit 1; fi

step "purge leaves nothing"
inside mkdir -p /var/lib/mesh-agent
inside dpkg -P mesh-agent mesh-control >/dev/null 2>&1
# The upper layer holds all that changed; a character device there is a whiteout.
left=$(find "$lab/upper" \( -name '*mesh-agent*' -o -name '*mesh-control*' -o -name '*meshctl*' \) -not -type c \
    -not -path '*/var/lib/dpkg/info/*' -not -path '*/var/lib/mesh-control*' || true)
[ -z "$left" ] || { echo "left behind:" >&2; echo "$left" >&2; exit 1; }
