#!/usr/bin/env bash
# Builds the release programs and packs them as .deb, into target/package. The same commit gives the same bytes.
#   MESH_BIN=DIR   packs the programs of DIR instead of building
set -euo pipefail
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$ROOT"
TARGET=${CARGO_TARGET_DIR:-$ROOT/target}
OUT=$ROOT/target/package
VERSION=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' Cargo.toml)
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct 2>/dev/null || echo 1700000000)
export SOURCE_DATE_EPOCH

build_programs() {
    if [ -n "${MESH_BIN:-}" ]; then
        return
    fi
    # Paths of the building machine have no place in the programs.
    RUSTFLAGS="--remap-path-prefix=$ROOT=/build --remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}=/cargo" \
        cargo build --locked --workspace --bins --release
    MESH_BIN=$TARGET/release
}

stage() {
    local program
    STAGE=$(mktemp -d)
    trap 'rm -rf "$STAGE"' EXIT
    mkdir -p "$STAGE/pack/bin"
    cp -r packaging/debian "$STAGE/pack/debian"
    for program in mesh-agent mesh-control meshctl; do
        install -m 755 "$MESH_BIN/$program" "$STAGE/pack/bin/$program"
        strip --strip-unneeded "$STAGE/pack/bin/$program"
    done
    cp packaging/agent.toml packaging/control.toml README.md CHANGELOG.md docs/operations.md "$STAGE/pack/"
    cp systemd/mesh-agent.service systemd/mesh-agent.sysusers systemd/mesh-agent.tmpfiles \
        systemd/mesh-control.service systemd/mesh-control.sysusers systemd/mesh-control.tmpfiles "$STAGE/pack/debian/"
    cat >"$STAGE/pack/debian/changelog" <<CHANGELOG
mesh-agent ($VERSION-1) unstable; urgency=medium

  * New release; what changed is in /usr/share/doc/mesh-agent/changelog.gz.

 -- mesh-agent maintainers <maintainers@mesh-agent.invalid>  $(date -u -R -d "@$SOURCE_DATE_EPOCH")
CHANGELOG
    find "$STAGE/pack" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
}

pack() {
    (cd "$STAGE/pack" && dpkg-buildpackage -b -us -uc -d) >"$STAGE/log" 2>&1 || { cat "$STAGE/log" >&2; exit 1; }
    mkdir -p "$OUT"
    rm -f "$OUT"/*.deb
    mv "$STAGE"/*.deb "$OUT/"
    ls -l "$OUT"/*.deb
}

build_programs
stage
pack
