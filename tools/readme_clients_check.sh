#!/usr/bin/env bash
# Runs README.md's lines of the server and of its clients as they are printed there, in a built clone: `calandra serve`, and beside it
# the block with curl and the OpenAI client. Both must answer. Installs what the lines install: root, Debian's packages and PyPI.
set -euo pipefail
cd "$(dirname "$0")/.."

path_line=$(sed -n 's/^    \(export PATH=.*\)/\1/p' README.md)
serve_line=$(sed -n 's/^    \(calandra serve\)  .*/\1/p' README.md)
client_lines=$(sed -n '/^The server also has a chat page/,/^Commands:/s/^    //p' README.md)
[ -n "$path_line" ] && [ -n "$serve_line" ] && [ -n "$client_lines" ] || { echo "readme_clients_check.sh: README.md has other lines now" >&2; exit 1; }

eval "$path_line"
$serve_line &
server=$!
trap 'kill "$server"; wait "$server"' EXIT
for _ in $(seq 300); do
  curl --silent --fail --output /dev/null http://127.0.0.1:8000/health && break
  sleep 0.2
done

echo "$client_lines" | sed 's/^/$ /'
answers=$(bash -euo pipefail -c "$client_lines" </dev/null)
echo "$answers"
# One of curl, one of the OpenAI client.
[ "$(grep -o '17 + 25 =' <<<"$answers" | wc -l)" -eq 2 ] || { echo "readme_clients_check.sh: not both answered" >&2; exit 1; }
