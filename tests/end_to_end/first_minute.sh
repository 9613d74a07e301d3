#!/bin/sh
# A new user's first minute: three commands, from nothing to two terminals that are paired by a code.
#
#     export WARPGATE_SERVERS_WEBSOCKET=wss://…      the server, which is given
#     sh first_minute.sh warpgate-trio               what pip is to install; nothing: it is there already
#
# stdout has what came back from the other terminal; stderr has what each command said, and the seconds that it took.
set -eu

now() { python -c 'import time; print(time.time())'; }
took() { python -c 'import sys; print(f"{float(sys.argv[2]) - float(sys.argv[1]):.2f} s: {sys.argv[3]}")' "$@" >&2; }

begin=$(now)
[ $# -eq 0 ] || pip install --quiet "$@"
installed=$(now)
took "$begin" "$installed" "pip install"

# In one terminal; it prints a code, which a person would read to the other one.
warpgate-trio listen --code --echo 2> listen.txt &
while ! code=$(grep -E '^[0-9]+-[a-z]+-[a-z]+$' listen.txt); do
    kill -0 $!
    sleep 0.1
done
shown=$(now)
took "$installed" "$shown" "warpgate-trio listen --code"

# In the other one.
answer=$(echo hello | warpgate-trio connect --code "$code")
wait $!
end=$(now)
took "$shown" "$end" "warpgate-trio connect --code, until the peer had sent back what was typed"
took "$begin" "$end" "all three"
echo "$answer"
[ "$answer" = hello ]
