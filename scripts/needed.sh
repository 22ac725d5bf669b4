#!/usr/bin/env bash
# Installs what is missing: `needed.sh build` for building and the demo, `needed.sh test` for all
# tests too. Debian and its relatives; elsewhere it says what is needed and goes on.
set -euo pipefail
cd "$(dirname "$0")/.."
what=${1:-build}

packages=(fuse3 rsync gcc libc6-dev make pkg-config libssl-dev zlib1g-dev procps)
if [ "$what" = test ]; then
  packages+=(openssh-server openssh-client fio sqlite3 strace nftables iproute2 attr acl libacl1-dev
    e2fsprogs git psmisc jq util-linux)
fi

if ! command -v cargo >/dev/null; then
  echo "needed: no cargo; install a Rust toolchain first, see https://rustup.rs" >&2
  exit 1
fi

missing=()
if command -v dpkg-query >/dev/null; then
  for package in "${packages[@]}"; do
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] ||
      missing+=("$package")
  done
  if [ ${#missing[@]} -gt 0 ]; then
    sudo=()
    [ "$(id -u)" = 0 ] || sudo=(sudo)
    echo "needed: installing ${missing[*]}"
    # Another package manager may be at work (unattended upgrades): wait for it, do not fail.
    lock=(-o DPkg::Lock::Timeout=300 -o Acquire::Retries=3)
    "${sudo[@]}" apt-get "${lock[@]}" -qq update
    "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get "${lock[@]}" -qq install -y \
      --no-install-recommends "${missing[@]}" >/dev/null
  fi
else
  echo "needed: no Debian here; see to it yourself that there are: ${packages[*]}" >&2
fi

if [ "$what" = test ]; then
  tools=("pjdfstest 0.2.2" "fsx 0.3.2")
  for tool in "${tools[@]}"; do
    read -r name version <<<"$tool"
    if ! [ -e "target/tools/$name-$version" ]; then
      echo "needed: installing $name $version"
      cargo install --quiet --locked --root target/tools "$name@$version"
      touch "target/tools/$name-$version"
    fi
  done
fi
