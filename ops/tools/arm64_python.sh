#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
#   arm64_python.sh FOLDER
#
# Unpacks Debian's Python for 64-bit ARM into FOLDER, with FOLDER/usr/bin/python
# to run it under emulation. The packages come through apt from the machine's
# own sources, with state in a temporary folder: nothing else on the machine
# changes. Where they cannot be had, prints a line and succeeds.
set -eu

mkdir -p "$1"
root=$(cd "$1" && pwd)
python=$root/usr/bin/python
[ ! -x "$python" ] || exit 0

skip() {
  echo "arm64_python: skipped: $1"
  exit 0
}

command -v apt-get >/dev/null || skip "no apt-get here"
command -v dpkg >/dev/null || skip "no dpkg here"

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
mkdir -p "$folder/state/lists/partial" "$folder/cache/archives/partial"
: >"$folder/status"
cat >"$folder/apt.conf" <<END
APT::Architecture "arm64";
APT::Architectures { "arm64"; };
APT::Install-Recommends "false";
APT::Sandbox::User "root";
Acquire::Languages "none";
Dir::State "$folder/state";
Dir::State::status "$folder/status";
Dir::Cache "$folder/cache";
END
export APT_CONFIG="$folder/apt.conf"
apt-get -qq update >"$folder/log" 2>&1 || skip "no package lists: $(tail -n 1 "$folder/log")"
apt-get -qq --yes --download-only install python3 libstdc++6 >"$folder/log" 2>&1 ||
  skip "no python3 for arm64: $(tail -n 1 "$folder/log")"
for package in "$folder"/cache/archives/*.deb; do
  dpkg -x "$package" "$root"
done

# The emulator shows the machine's own file, of another kind of processor, where
# there is none here; some libraries end the process on reading that.
mkdir -p "$root/proc"
cat >"$root/proc/cpuinfo" <<END
processor	: 0
Features	: fp asimd fphp asimdhp bf16
CPU implementer	: 0x41
CPU architecture: 8
CPU variant	: 0x3
CPU part	: 0xd0c
CPU revision	: 1

END

# By the name that it is called with a Python finds its environment, and what it
# starts itself.
cat >"$python" <<END
#!/bin/sh
exec qemu-aarch64-static -L "$root" -0 "\$0" "$root/usr/bin/python3" "\$@"
END
chmod +x "$python"
