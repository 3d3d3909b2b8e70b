#!/usr/bin/env bash
# Fetch the headers that the library is compiled with: ONNX Runtime, nlohmann/json and stb, from Debian's
# packages. Nothing is installed, and apt's own configuration and lists stay as they are.
#
#   fetch_headers.sh FOLDER      headers go to FOLDER/onnxruntime, FOLDER/nlohmann and FOLDER/stb
#
# The mirror is the one that this machine's apt uses, or DEBIAN_MIRROR where it is set.
set -euo pipefail

# The first release of Debian that has ONNX Runtime's headers. They need no newer C++ library than others do.
suite=trixie
packages=(libonnxruntime-dev nlohmann-json3-dev libstb-dev)

[ $# = 1 ] || { echo "usage: $0 FOLDER" >&2; exit 2; }
folder=$1
if [ -e "$folder/complete" ]; then exit 0; fi
for tool in apt-get dpkg-deb; do
    command -v "$tool" > /dev/null || { echo "$0 needs $tool, which Debian and Ubuntu have; elsewhere, put the headers of ${packages[*]} into $folder" >&2; exit 1; }
done

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

mirror=${DEBIAN_MIRROR:-$(cat /etc/apt/sources.list /etc/apt/sources.list.d/*.{list,sources} 2> /dev/null |
    sed '/^ *#/d' | grep -oE '[a-z+]+:/+[^] ]+/debian/?( |$)' | head -n 1 | tr -d ' ' || true)}
[ -n "$mirror" ] || { echo "apt's sources name no Debian mirror: set DEBIAN_MIRROR to one" >&2; exit 1; }
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
[ -e "$keyring" ] || { echo "$keyring is missing: apt-get install debian-archive-keyring" >&2; exit 1; }

mkdir -p "$work/lists/partial" "$work/cache/archives/partial" "$work/deb"
echo "deb [signed-by=$keyring] $mirror $suite main" > "$work/sources.list"
options=(
    -o "Dir::Etc::sourcelist=$work/sources.list" -o "Dir::Etc::sourceparts=-" -o "Dir::State::lists=$work/lists"
    -o "Dir::Cache=$work/cache" -o "APT::Sandbox::User=$(id -un)" -o "Acquire::Languages=none"
)
apt-get "${options[@]}" -qq update
(cd "$work/deb" && apt-get "${options[@]}" -qq download "${packages[@]}")
for package in "$work"/deb/*.deb; do dpkg-deb -x "$package" "$work/root"; done

# In one step, so that a build beside this one finds all headers or none.
touch "$work/root/usr/include/complete"
mkdir -p "$(dirname "$folder")"
partial=$(mktemp -d "$folder.XXXXXX")
cp -r "$work"/root/usr/include/. "$partial"
chmod 755 "$partial"
mv -T "$partial" "$folder" 2> /dev/null || { rm -rf "$partial"; [ -e "$folder/complete" ]; }
