#!/usr/bin/env bash
# Installs the Debian packages that the build needs; --tests adds those of the sanitizer and fuzz builds and of the format check, and
# the Python clients of tests/clients_test.py, by hash into build/test-clients. Does nothing when all are there, so every make target
# may call it. Uses apt, as root or through sudo, and changes no settings of it; and pip.
set -euo pipefail

packages=(
  g++ cmake ninja-build pkg-config ccache python3 python3-pip patch   # pip fetches sources by hash (cmake/pypi-sources.txt)
  libboost1.81-dev libboost-json1.81-dev   # Boost.JSON; Asio and Beast are headers
  libssl-dev                               # TLS of the server
  libspdlog-dev libfmt-dev                 # logging, formatting (header-only use)
  libcli11-dev                             # command line
  libcurl4-openssl-dev                     # pictures by URL: headers; the library is opened at run time, if ever
  libpcre2-dev libutf8proc-dev             # tokenizer: split patterns, normalisation
  libjpeg62-turbo-dev libpng-dev zlib1g-dev libwebp-dev   # image decoders
  libhwloc-dev                             # cores, caches and memory nodes
  libedit-dev libbsd-dev libmd-dev libncurses-dev   # line editing in chat, with its static archives
  libgtest-dev libgmock-dev                # unit tests
)
test_packages=(clang clang-format libclang-rt-14-dev)
clients=no

for argument in "$@"; do
  case $argument in
    --tests) packages+=("${test_packages[@]}") clients=yes ;;
    -h | --help) sed -n '2,4s/^# //p' "$0"; exit 0 ;;
    *) echo "install_deps.sh: unknown argument $argument (known: --tests)" >&2; exit 2 ;;
  esac
done

# The wheels are for Debian's Python; the copy of the list says that all of it is there.
install_clients() {
  local list folder
  list=$(dirname "$0")/test_clients.txt
  folder=$(dirname "$0")/../build/test-clients
  cmp -s "$list" "$folder/installed.txt" && return
  rm -rf "$folder"
  python3 -m pip install -q --disable-pip-version-check --root-user-action=ignore --no-deps --only-binary :all: --require-hashes \
    -r "$list" --target "$folder"
  cp "$list" "$folder/installed.txt"
}

finish() {
  [ "$clients" = no ] || install_clients
  exit 0
}

if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
  echo "install_deps.sh: this is not a Debian-like system; install the equivalents of: ${packages[*]}" >&2
  exit 1
fi

installed=$(dpkg-query -W -f '${db:Status-Status} ${Package}\n' "${packages[@]}" 2>/dev/null | sed -n 's/^installed //p' || true)
missing=()
for package in "${packages[@]}"; do
  grep -qxF -- "$package" <<<"$installed" || missing+=("$package")
done
[ ${#missing[@]} -eq 0 ] && finish

echo "Installing ${#missing[@]} packages: ${missing[*]}"
run=(env DEBIAN_FRONTEND=noninteractive)
if [ "$(id -u)" -ne 0 ]; then
  if ! command -v sudo >/dev/null; then
    echo "install_deps.sh: these packages are missing and this user is not root (and there is no sudo). Run as root:" >&2
    echo "  apt-get install -y --no-install-recommends ${missing[*]}" >&2
    exit 1
  fi
  run=(sudo "${run[@]}")
fi
apt_install() { "${run[@]}" apt-get install -y -q --no-install-recommends "${missing[@]}" </dev/null; }

log=$(mktemp)
trap 'rm -f "$log"' EXIT
if ! { "${run[@]}" apt-get update -q && apt_install; } >"$log" 2>&1; then
  tail -n 30 "$log" >&2
  echo "install_deps.sh: apt-get failed (above: the end of its output)" >&2
  exit 1
fi
finish
