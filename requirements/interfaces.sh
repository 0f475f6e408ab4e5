#!/usr/bin/env bash
# Build interfaces/vla_cache_interfaces with the tools among the ROS 2 wheels, into the venv that
# holds them. On a robot, with a ROS 2 distribution sourced, colcon does this instead.
#
# Usage: requirements/interfaces.sh VENV
set -euo pipefail

venv=$(cd "$1" && pwd)
source=$(cd "$(dirname "$0")/../interfaces/vla_cache_interfaces" && pwd)
build=$venv/.interfaces
python=$venv/bin/python

fail() {
    echo "The interfaces package cannot be built: $1" >&2
    echo 'Then run the same command again. `vla-cache doctor` says what else is missing.' >&2
    exit 1
}

command -v c++ >/dev/null && command -v cc >/dev/null ||
    fail 'there is no C and C++ compiler. Install one: apt-get install gcc g++ libc6-dev'

# Two lines: Python's headers, NumPy's headers.
mapfile -t headers < <(
    "$python" -c 'import numpy, sysconfig; print(sysconfig.get_path("include"), numpy.get_include(), sep="\n")')
[ ${#headers[@]} -eq 2 ] || fail "NumPy is not installed in $venv."
[ -f "${headers[0]}/Python.h" ] ||
    fail "Python's headers are not in ${headers[0]}. Install them: apt-get install $("$python" -c \
        'import sys; print("python%d.%d-dev" % sys.version_info[:2])')"

# The wheels name the headers of the machine that they were built on, and CMake wants those folders
# to exist: name this machine's instead.
{ grep -rlZ --include='export_*.cmake' /opt/python/ "$venv"/share/*/cmake || true; } |
    xargs -0 --no-run-if-empty \
    sed -i -e "s|/opt/python/[^;\"]*/numpy/_core/include|${headers[1]}|g" \
    -e "s|/opt/python/[^;\"]*/include/python[0-9.]*|${headers[0]}|g"

# As the wheels' own start-up sets it, so that no Python on the way starts itself anew.
libraries=$venv/lib
for folder in "$venv"/lib/python3*/site-packages/ros_*.libs; do
    libraries+=:$folder
done
export PATH=$venv/bin:$PATH AMENT_PREFIX_PATH=$venv CMAKE_PREFIX_PATH=$venv
export LD_LIBRARY_PATH=$libraries _ROS_WHEELS_BOOTSTRAP_COMPLETE=1
unset PYTHONPATH ROS_DISTRO

mkdir -p "$build"
log=$build/build.log
# What an earlier build installed and this one may not: a message that was renamed.
[ ! -f "$build/install_manifest.txt" ] || xargs -d '\n' rm -f -- <"$build/install_manifest.txt"
{
    cmake -S "$source" -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release \
        -DCMAKE_INSTALL_PREFIX="$venv" -DPython3_EXECUTABLE="$python" &&
        cmake --build "$build" &&
        cmake --install "$build"
} >"$log" 2>&1 || {
    tail -n 25 "$log" >&2
    fail "the lines above are the end of $log."
}
"$python" -c 'import vla_cache_interfaces.msg' || fail 'it was built but cannot be imported.'
