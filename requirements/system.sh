#!/usr/bin/env bash
# Make sure of the system packages: off-screen rendering (EGL), the libraries that OpenCV's wheel
# links, Python's venv module, and a compiler with Python's headers for the messages. Asks nothing: installs through apt where it may, otherwise
# prints the command to type, and goes on if what is there works already.
#
# Usage: requirements/system.sh PYTHON
set -euo pipefail

python=$1
packages=(libegl1 libegl-mesa0 libgl1 libgl1-mesa-dri libglib2.0-0)
missing=()

# Newer Debian and Ubuntu releases call some libraries NAMEt64.
is_installed() {
    local status
    status=$(dpkg-query -W -f='${Status}\n' "$1" "$1t64" 2>/dev/null || true)
    [[ $status == *'install ok installed'* ]]
}

libraries_load() {
    "$python" - 2>/dev/null <<'EOF'
import ctypes
for name in ('libEGL.so.1', 'libGL.so.1', 'libgthread-2.0.so.0'):
    ctypes.CDLL(name)
EOF
}

has_venv() {
    "$python" -c 'import ensurepip, venv' 2>/dev/null
}

has_compiler() {
    command -v cc >/dev/null && command -v c++ >/dev/null
}

has_headers() {
    "$python" -c 'import os, sys, sysconfig
sys.exit(not os.path.isfile(os.path.join(sysconfig.get_path("include"), "Python.h")))'
}

versioned() {
    "$python" -c 'import sys; print("python%d.%d-" % sys.version_info[:2] + sys.argv[1])' "$1"
}

if command -v dpkg-query >/dev/null; then
    for package in "${packages[@]}"; do
        is_installed "$package" || missing+=("$package")
    done
elif ! libraries_load; then
    missing=("${packages[@]}")
fi
has_venv || missing+=("$(versioned venv)")
# A sourced ROS 2 distribution has colcon build the messages.
if [ -z "${ROS_DISTRO:-}" ]; then
    has_compiler || missing+=(gcc g++)
    has_headers || missing+=("$(versioned dev)")
fi

[ ${#missing[@]} -gt 0 ] || exit 0

command="apt-get install -y --no-install-recommends ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
if command -v apt-get >/dev/null; then
    if [ "$(id -u)" -eq 0 ]; then
        as_root=(env)
    elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
        as_root=(sudo -n env)
    else
        as_root=()
    fi
    if [ ${#as_root[@]} -gt 0 ]; then
        echo "Installing system packages: ${missing[*]}"
        "${as_root[@]}" apt-get update -q || echo 'apt-get update failed; trying with its old lists'
        # shellcheck disable=SC2086 # the command is a list of words
        if "${as_root[@]}" DEBIAN_FRONTEND=noninteractive $command; then
            exit 0
        fi
    fi
fi

echo "System packages are missing: ${missing[*]}"
echo "Install them with:"
echo "    sudo $command"
if has_venv && libraries_load && { [ -n "${ROS_DISTRO:-}" ] || { has_compiler && has_headers; }; }; then
    echo 'The libraries load all the same: going on. `vla-cache doctor` tries the rendering.'
    exit 0
fi
echo 'Then run the same make command again.'
exit 1
