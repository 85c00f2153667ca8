#!/usr/bin/env bash
# First process of one machine of the lab: makes /etc and /run private, brings up lo, and waits to be killed.
# Runs inside new network, mount and process namespaces; what it mounts is seen by this machine alone.
set -euo pipefail
dir=$1

mkdir -p "$dir/private"
mount -t tmpfs -o mode=755 tmpfs "$dir/private"
mkdir -p "$dir/private/etc" "$dir/private/work"
mount -t overlay -o "lowerdir=/etc,upperdir=$dir/private/etc,workdir=$dir/private/work" overlay /etc
mount -t tmpfs -o mode=755 tmpfs /run
rm -f /etc/resolv.conf
: >/etc/resolv.conf
ip link set lo up

touch "$dir/up"
exec sleep infinity
