#!/bin/sh
# Runs a command in the project's virtual environment, which it makes first if necessary.
# Usage: in_venv.sh run|dev|docs COMMAND [ARGUMENT…]      (the stages: tools/setup_venv.py)
# Each Python version has its own environment, .venv/3.13, so that versions do not disturb each other.
set -eu

stage=$1
shift
cd "$(dirname "$0")/.."

found=$(sh tools/find_python.sh)
venv=.venv/${found%% *}
python=${found#* }
# PYTHONDONTWRITEBYTECODE would make each program that a test starts compile the whole package anew.
unset PYTHONPATH PYTHONHOME PYTHONDONTWRITEBYTECODE
"$python" tools/setup_venv.py "$venv" "$stage"

VIRTUAL_ENV=$PWD/$venv
PATH=$VIRTUAL_ENV/bin:$PATH
export VIRTUAL_ENV PATH
exec "$@"
