#!/usr/bin/env bash
# Checks the packages of target/package: lintian, then installation, a look at the result, removal and purge, on a
# throw-away copy of this machine's file system (an overlay on tmpfs). The machine itself is not changed.
set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
OUT=$ROOT/target/package

[ "$(id -u)" = 0 ] || { echo "SKIPPED package check: needs root" >&2; exit 1; }
for package in mesh-agent mesh-control; do
    compgen -G "$OUT/${package}_*.deb" >/dev/null || { echo "check.sh: no $package in $OUT; run 'make package'" >&2; exit 1; }
done

echo "lintian"
lintian --fail-on error --suppress-tags bad-distribution-in-changes-file "$OUT"/*.deb

WORK=$(mktemp -d)
trap 'rm -rf "$WORK"' EXIT
cp "$OUT"/*.deb "$WORK/"
unshare --mount --net --pid --fork --kill-child --propagation private \
    bash "$ROOT/packaging/check-inside.sh" "$WORK"
echo "the packages install, verify, and leave nothing"
