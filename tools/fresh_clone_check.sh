#!/usr/bin/env bash
# Shows that a stranger's first commands work: makes a bare Debian 12 in a temporary folder, clones the committed tree into it,
# installs README's first packages, and runs `make run`, `make test` and README's lines of the server and its clients there as root.
#   tools/fresh_clone_check.sh [COMMAND...]   COMMAND replaces these three, for a quick look inside
# Needs root and mmdebstrap. This machine's apt settings are used at run time, so that a mirror or proxy keeps working; they are
# copied into the temporary system only. Everything is removed at the end (KEEP=1 keeps it).
set -euo pipefail

repository=$(cd "$(dirname "$0")/.." && pwd)
[ "$(id -u)" -eq 0 ] || { echo "fresh_clone_check.sh: must run as root (it makes a chroot)" >&2; exit 1; }
command -v mmdebstrap >/dev/null || { echo "fresh_clone_check.sh: install mmdebstrap" >&2; exit 1; }

work=$(mktemp -d "${TMPDIR:-/tmp}/calandra-fresh.XXXXXX")
root=$work/root
mounts=()
clean_up() {
  local mount
  for mount in "${mounts[@]}"; do umount -l "$mount" || true; done
  if [ -n "${KEEP:-}" ]; then
    echo "kept: $work"
  elif findmnt -rno TARGET | grep -qF "$work"; then
    echo "fresh_clone_check.sh: something is still mounted under $work; not removed" >&2
  else
    rm -rf "$work"
  fi
}
trap clean_up EXIT
trap 'exit 130' INT TERM

echo "=== a bare Debian 12 in $root"
sources=(/etc/apt/sources.list.d/*.sources)
[ -f "${sources[0]}" ] || sources=(/etc/apt/sources.list)
mmdebstrap --quiet --mode=root --variant=apt \
  --aptopt='Acquire::Check-Valid-Until "false"' --aptopt='Acquire::Check-Date "false"' \
  bookworm "$root" "${sources[@]}"

# Mirror, proxy and certificates of this machine, if it has any.
for path in /etc/resolv.conf /etc/hosts /etc/pip.conf; do
  if [ -f "$path" ]; then cp -L "$path" "$root$path"; fi
done
mkdir -p "$root/usr/local/share/ca-certificates"
cp -a /usr/local/share/ca-certificates/. "$root/usr/local/share/ca-certificates/" 2>/dev/null || true
for mount in proc sys dev; do
  mkdir -p "$root/$mount"
  mount --rbind "/$mount" "$root/$mount"
  mount --make-rslave "$root/$mount"
  mounts=("$root/$mount" "${mounts[@]}")
done

inside() {
  env -i HOME=/root PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin TERM=dumb LANG=C.UTF-8 \
    ${http_proxy:+http_proxy="$http_proxy"} ${https_proxy:+https_proxy="$https_proxy"} ${no_proxy:+no_proxy="$no_proxy"} \
    chroot "$root" bash -c "$1" </dev/null
}

echo "=== make, git, ca-certificates, curl"
inside 'apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends make git ca-certificates curl' \
  >"$work/apt.log" 2>&1 || { tail -n 30 "$work/apt.log" >&2; exit 1; }

echo "=== clone"
# The committed tree only, in a folder with nothing beside it.
git clone --quiet --no-hardlinks "$repository" "$root/opt/calandra"
git -C "$root/opt/calandra" log -1 --format='%h %s'

commands=('make run' 'make test' tools/readme_clients_check.sh)
[ $# -gt 0 ] && commands=("$@")
for command in "${commands[@]}"; do
  echo "=== $command"
  start=$SECONDS
  if ! inside "cd /opt/calandra && $command"; then
    echo "FRESH CLONE CHECK FAILED in: $command"
    exit 1
  fi
  echo "=== $command: $((SECONDS - start)) s"
done
echo "=== what the program links"
inside 'cd /opt/calandra && if [ -x build/release/bin/calandra ]; then ls -l build/release/bin/calandra && ldd build/release/bin/calandra; fi'
inside 'cd /opt/calandra && git status --short' | sed 's/^/unexpected change: /'
echo "FRESH CLONE CHECK PASSED"
