#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
#   check_abi.sh [SUITE [FOLDER]]
#
# Compares src/ort/ort_abi.h with the header in Debian's libonnxruntime-dev, and
# leaves the package's headers in FOLDER, where one is given. The package comes
# from a suite newer than the machine's own, through apt, with sources and state
# in a temporary folder: nothing else on the machine changes.
# Where the package cannot be had, prints a line and succeeds.
set -eu

suite=${1:-trixie}
headers=${2:+$(cd "$2" && pwd)}
ops=$(cd "$(dirname "$0")/.." && pwd)

skip() {
  echo "check_abi: skipped: $1"
  exit 0
}

command -v apt-get >/dev/null || skip "no apt-get here"
command -v dpkg >/dev/null || skip "no dpkg here"
mirror=$(apt-get indextargets --format '$(ORIGIN) $(REPO_URI)' 2>/dev/null |
  sed -n 's/^Debian //p' | grep -v security | head -n 1)
# Without package lists apt does not know where a source comes from.
[ -n "$mirror" ] || mirror=$(apt-get indextargets --format '$(REPO_URI)' 2>/dev/null |
  grep '/debian/*$' | head -n 1)
[ -n "$mirror" ] || skip "apt has no Debian mirror configured"

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
mkdir -p "$folder/state/lists/partial" "$folder/cache/archives/partial"
: >"$folder/status"
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
[ ! -e "$keyring" ] || signed="[signed-by=$keyring]"
echo "deb ${signed:-} $mirror $suite main" >"$folder/sources.list"

apt() {
  apt-get -qq \
    -o Dir::State="$folder/state" -o Dir::State::status="$folder/status" \
    -o Dir::Cache="$folder/cache" \
    -o Dir::Etc::sourcelist="$folder/sources.list" \
    -o Dir::Etc::sourceparts=/dev/null -o Acquire::Languages=none \
    -o APT::Sandbox::User=root -o APT::Update::Error-Mode=any "$@"
}

cd "$folder"
apt update >log 2>&1 || skip "no package list of $suite: $(tail -n 1 log)"
apt download libonnxruntime-dev >log 2>&1 ||
  skip "no libonnxruntime-dev in $suite: $(tail -n 1 log)"
dpkg -x libonnxruntime-dev_*.deb package
header=$(find package -name onnxruntime_c_api.h | head -n 1)
[ -n "$header" ] || skip "the package has no onnxruntime_c_api.h"

"${CXX:-c++}" -std=c++17 -fsyntax-only -Wno-ignored-attributes -I"$ops/src/simd" -I"$ops/src/ort" \
  -isystem "$(dirname "$header")" "$ops/tests/ort_abi_check.cc"
[ -z "$headers" ] || cp "$(dirname "$header")"/*.h "$headers"
echo "check_abi: src/ort/ort_abi.h agrees with $(basename libonnxruntime-dev_*.deb)"
