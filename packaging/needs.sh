#!/usr/bin/env bash
# Installs the Debian packages that a task needs, and only those that are missing.
#
#   packaging/needs.sh demo|test|lint|package|systemd|bench ...
#
# A package that brings a daemon (nginx) does not start it: a policy-rc.d that forbids it is in place during the
# installation, and whatever stood there before is put back.
set -euo pipefail

packages_of() {
    case $1 in
        demo) echo curl iproute2 jq nftables nginx-light openssl procps tcpdump util-linux ;;
        test) echo conntrack curl faketime iproute2 iputils-ping jq nftables nginx-light openssl procps python3-venv tcpdump util-linux ;;
        lint) echo shellcheck ;;
        package) echo debhelper dpkg-dev lintian systemd ;;
        systemd) echo iproute2 mmdebstrap systemd-container util-linux ;;
        bench) echo iproute2 nftables procps util-linux ;;
        *) echo "needs.sh: unknown task '$1' (known: demo test lint package systemd bench)" >&2; exit 2 ;;
    esac
}

is_installed() {
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]
}

missing=()
for task in "$@"; do
    for package in $(packages_of "$task"); do
        [[ " ${missing[*]} " == *" $package "* ]] || is_installed "$package" || missing+=("$package")
    done
done
[ ${#missing[@]} -gt 0 ] || exit 0

if ! command -v apt-get >/dev/null; then
    echo "needs.sh: not a Debian system; please install what stands for: ${missing[*]}" >&2
    exit 1
fi
if [ "$(id -u)" != 0 ]; then
    echo "needs.sh: missing: ${missing[*]}; as root: apt-get install ${missing[*]}" >&2
    exit 1
fi

echo "needs.sh: installing ${missing[*]}"
policy=/usr/sbin/policy-rc.d
saved=
work=$(mktemp -d)
restore() {
    if [ -n "$saved" ]; then mv -f "$saved" "$policy"; else rm -f "$policy"; fi
    rm -rf "$work"
}
if [ -e "$policy" ]; then
    saved=$policy.mesh-agent-saved
    mv -f "$policy" "$saved"
fi
trap restore EXIT
printf '#!/bin/sh\nexit 101\n' >"$policy"
chmod 755 "$policy"

export DEBIAN_FRONTEND=noninteractive
install() {
    apt-get install -y -qq --no-install-recommends -o DPkg::Lock::Timeout=300 "${missing[@]}" >"$work/log" 2>&1
}
# Package lists may be absent or stale; they are refreshed once, and only when they are needed.
if ! install; then
    apt-get update -qq >"$work/update" 2>&1 || cat "$work/update" >&2
    install || { cat "$work/log" >&2; echo "needs.sh: could not install ${missing[*]}" >&2; exit 1; }
fi
