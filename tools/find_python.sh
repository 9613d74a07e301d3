#!/bin/sh
# Finds CPython 3.11 to 3.13 that runs and can make a virtual environment, and prints "3.13 /path/to/python".
# Usage: find_python.sh [--all]       --all: one line per version, newest first.
# With PYTHON=name-or-path in the environment, that one is used, or refused, and nothing else is looked for.
# A name on PATH proves nothing (version managers leave shims that fail when run), so every candidate is run.
set -eu

probe='
import sys
if not (3, 11) <= sys.version_info < (3, 14):
    sys.exit("is Python %d.%d; 3.11, 3.12 or 3.13 is needed" % sys.version_info[:2])
for name in ("venv", "ensurepip", "ssl"):
    try:
        __import__(name)
    except ImportError:
        sys.exit("has no module %s (on Debian and Ubuntu: apt-get install python3-venv)" % name)
# Inside a virtual environment, its base interpreter: an environment made from that outlives this one.
print("%d.%d %s" % (sys.version_info[0], sys.version_info[1], getattr(sys, "_base_executable", "") or sys.executable))
'

why="" # why the first candidate that ran at all was refused

try() { # prints "version path" and succeeds, or leaves a reason in $why
    command -v "$1" >/dev/null 2>&1 || return 1
    if answer=$("$1" -c "$probe" 2>&1 </dev/null); then
        printf '%s\n' "$answer"
        return 0
    fi
    case $answer in
    "is Python "* | "has no module "*) [ -n "$why" ] || why="$1 $answer" ;;
    esac
    return 1
}

try_everywhere() { # one name, in each folder of PATH and in pyenv's own
    name=$1
    old_ifs=$IFS
    IFS=:
    set -f
    for folder in $PATH; do
        IFS=$old_ifs
        set +f
        [ -x "${folder:-.}/$name" ] || continue
        try "${folder:-.}/$name" && return 0
    done
    IFS=$old_ifs
    set +f
    for path in "${PYENV_ROOT:-${HOME:-}/.pyenv}"/versions/*/bin/"$name"; do
        [ -x "$path" ] || continue
        try "$path" && return 0
    done
    return 1
}

if [ -n "${PYTHON:-}" ] && [ "${1:-}" != --all ]; then
    case $PYTHON in
    */*) try "$PYTHON" && exit 0 ;;
    *) try_everywhere "$PYTHON" && exit 0 ;;
    esac
    echo "PYTHON=$PYTHON cannot be used: ${why:-nothing by that name runs}." >&2
    exit 1
fi

found=no
for name in python3.13 python3.12 python3.11 python3 python; do
    # The last two are for systems whose interpreters have no version in their names.
    [ "$found" = yes ] && case $name in python3 | python) break ;; esac
    try_everywhere "$name" || continue
    found=yes
    [ "${1:-}" = --all ] || exit 0
done
[ "$found" = yes ] && exit 0
echo "Python 3.11, 3.12 or 3.13 is needed: ${why:-none was found; PYTHON=/path/to/python names one}." >&2
exit 1
