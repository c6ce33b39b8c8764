# The repository and its interpreter: the one that PYTHON names, or .venv, which is created when missing.
# Sourced, together with jobs.sh; moves to the repository.
# shellcheck shell=bash

set -euo pipefail

if ((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] < 403)); then
    echo "error: bash $BASH_VERSION is too old: install bash 4.3 or later (macOS: brew install bash)" >&2
    exit 1
fi

die() {
    echo "error: $*" >&2
    exit 1
}

absolute() { # VARIABLE…: make these paths absolute; relative ones start at the user's folder
    local _name _folder
    for _name in "$@"; do
        [[ -n ${!_name:-} && ${!_name} != /* ]] || continue
        _folder=$CALLED_FROM/$(dirname -- "${!_name}")
        # Messages show the path: without `..` and `.` if its folder exists.
        _folder=$(cd -P -- "$_folder" 2>/dev/null && pwd) || _folder=$CALLED_FROM/$(dirname -- "${!_name}")
        printf -v "$_name" '%s/%s' "$_folder" "$(basename -- "${!_name}")"
    done
}

REPOSITORY=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
CALLED_FROM=$PWD
[[ ${PYTHON:-} != */* ]] || absolute PYTHON # a bare name is looked up in PATH
cd "$REPOSITORY"

python_version() { # INTERPRETER: print 3.12; fails if it does not run, like a pyenv shim without a version
    "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null
}

recent_enough() { # VERSION
    [[ $1 =~ ^([0-9]+)\.([0-9]+)$ ]] && ((BASH_REMATCH[1] * 100 + BASH_REMATCH[2] >= 311))
}

requirements() { # INTERPRETER all|missing [EXTRA]: print the requirements in pyproject.toml, one per line
    "$1" -c '
import importlib.metadata, re, sys, tomllib
project = tomllib.load(open("pyproject.toml", "rb"))["project"]
wanted = list(project["dependencies"])
for extra in filter(None, sys.argv[2:]):
    wanted += project["optional-dependencies"][extra]
def missing(requirement):
    try:
        return not importlib.metadata.version(re.match(r"[\w.-]+", requirement)[0])
    except importlib.metadata.PackageNotFoundError:
        return True
for requirement in wanted:
    if sys.argv[1] == "all" or missing(requirement):
        print(requirement)
' "${@:2}"
}

setup_python() { # base|dev|EXTRA: set PYTHON_BIN; create .venv unless PYTHON names an interpreter
    local version lacking wanted
    if [[ -n $PYTHON ]]; then
        version=$(python_version "$PYTHON") || die "PYTHON=$PYTHON does not run: set it to a Python 3.11 or later"
        recent_enough "$version" || die "PYTHON=$PYTHON is Python $version: set it to a Python 3.11 or later"
        wanted=${1/base/}
        lacking=$(requirements "$PYTHON" missing "${wanted/dev/}")
        [[ -z $lacking ]] || die "PYTHON=$PYTHON lacks ${lacking//$'\n'/, }: install them, or leave PYTHON empty"
        PYTHON_BIN=$PYTHON
        return
    fi
    PYTHON_BIN=$REPOSITORY/.venv/bin/python
    python_is_set_up "$1" && return
    # Only one of two stages started together may install. (Without flock, as on macOS, start one first.)
    local lock=''
    if command -v flock >/dev/null; then
        exec {lock}>>pyproject.toml # locked only, never written
        flock -n "$lock" || { echo "Waiting for another installation into .venv"; flock "$lock"; }
    fi
    python_is_set_up "$1" || install_python "$1"
    [[ -z $lock ]] || exec {lock}>&-
}

python_is_set_up() { # base|dev|EXTRA: a stamp holds the checksum of the pyproject.toml that was installed
    python_version "$PYTHON_BIN" >/dev/null || return 1
    stamped "$1" || { [[ $1 == base ]] && stamped any; }
}

stamped() { # base|dev|EXTRA|any
    local stamp
    for stamp in .venv/.installed-${1/any/*}; do
        [[ $(cat "$stamp" 2>/dev/null) != "$(cksum <pyproject.toml)" ]] || return 0
    done
    return 1
}

install_python() { # base|dev|EXTRA
    local python='' candidate version wanted
    # The marker survives a killed installation; a half-installed .venv is then created from scratch.
    if [[ -e .venv/.installing ]] || ! version=$(python_version "$PYTHON_BIN") || ! recent_enough "$version"; then
        for candidate in python3.12 python3.11 python3.13 python3; do
            if version=$(python_version "$candidate") && recent_enough "$version" &&
                "$candidate" -c 'import ensurepip, venv' 2>/dev/null; then
                python=$candidate
                break
            fi
        done
        [[ -n $python ]] || die "no Python 3.11 or later with its venv module found (tried python3.12, python3.11," \
            "python3.13, python3): install one (Debian: apt install python3-venv), or set PYTHON"
        run_one "$python" -m venv --clear .venv || die "$python -m venv .venv failed: see the lines above"
    fi
    : >.venv/.installing
    echo "Installing the dependencies into .venv: 1 to 5 minutes, up to 6 GB of disk, once."
    wanted=$(requirements "$PYTHON_BIN" all "${1/base/}")
    mapfile -t wanted <<<"$wanted"
    if ! run_one "$PYTHON_BIN" -m pip install --quiet --disable-pip-version-check "${wanted[@]}"; then
        rm -f .venv/.installing
        die "installing the dependencies failed: see pip's lines above, then run the same command again" \
            "(if it fails in the same way, delete .venv first)"
    fi
    cksum <pyproject.toml >".venv/.installed-$1"
    rm -f .venv/.installing
}
