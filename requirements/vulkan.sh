#!/usr/bin/env bash
# Get a Vulkan driver that draws on the CPU (Mesa's lavapipe, 24 or later) for ManiSkill, into
# ~/.cache/vla_cache_ros/vulkan. Nothing of the system is changed and no root is needed: the
# packages are downloaded through apt with lists of its own and unpacked there. Debian 12's own Mesa
# is too old; its backports have a recent one. Asks nothing.
#
# Usage: requirements/vulkan.sh [--force]
set -euo pipefail

target=${XDG_CACHE_HOME:-$HOME/.cache}/vla_cache_ros/vulkan
package=mesa-vulkan-drivers
oldest=24

if [ "${1:-}" != --force ] && compgen -G "$target/lvp_icd*.json" >/dev/null; then
    exit 0
fi

by_hand() {
    echo "$1"
    echo "Install Mesa's Vulkan drivers, $oldest or later, with your system's package manager"
    echo "($package in Debian and Ubuntu), or point VK_ICD_FILENAMES at the manifest of a driver."
    exit 1
}

for tool in apt-get apt-cache dpkg-deb dpkg-query ldd; do
    command -v $tool >/dev/null || by_hand "There is no $tool here, so that nothing can be fetched."
done

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
mkdir -p "$scratch"/{lists/partial,cache/archives/partial,files}
cat /etc/apt/sources.list >"$scratch/sources.list" 2>/dev/null || true
# shellcheck disable=SC1091 # the system's own file
release=$(. /etc/os-release && echo "${ID:-} ${VERSION_CODENAME:-}")
if [ "$release" = 'debian bookworm' ]; then
    echo 'deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]' \
        'http://deb.debian.org/debian bookworm-backports main' >>"$scratch/sources.list"
fi
options=(-o "Dir::Etc::sourcelist=$scratch/sources.list" -o "Dir::State::lists=$scratch/lists"
    -o "Dir::Cache=$scratch/cache" -o APT::Sandbox::User= -o Acquire::Retries=3)

echo "Vulkan driver: looking for $package"
apt-get "${options[@]}" -qq update || echo 'apt-get update failed in part; going on'

# The newest of all releases, whatever their priority.
version=$(apt-cache "${options[@]}" madison $package | cut -d '|' -f 2 | tr -d ' ' \
    | sort --version-sort --reverse | head -n 1)
[ -n "$version" ] || by_hand "apt knows no $package."
[ "${version%%.*}" -ge "$oldest" ] 2>/dev/null || by_hand "apt's newest $package is $version."

# What the driver needs and the system lacks, and what that needs in turn.
is_installed() {
    dpkg-query -W -f='${Status}\n' "$1" 2>/dev/null | grep -q 'install ok installed'
}

cd "$scratch"
queue=("$package=$version")
fetched=' '
while [ ${#queue[@]} -gt 0 ]; do
    wanted=${queue[0]}
    queue=("${queue[@]:1}")
    name=${wanted%%=*}
    [[ $fetched != *" $name "* ]] || continue
    fetched+="$name "
    apt-get "${options[@]}" -qq download "$wanted" || by_hand "$wanted cannot be downloaded."
    archive=$(ls "${name}"_*.deb)
    dpkg-deb --extract "$archive" files
    while read -r dependency; do
        if [ -n "$dependency" ] && ! is_installed "$dependency"; then
            queue+=("$dependency")
        fi
    done < <(dpkg-deb --field "$archive" Depends | tr ',' '\n' \
        | sed 's/|.*//; s/(.*//; s/:any//; s/ //g')
done

library=$(find files -name libvulkan_lvp.so | head -n 1)
[ -n "$library" ] || by_hand "$package $version holds no lavapipe."
folders=$(find "$PWD/files" -name '*.so.*' -printf '%h\n' | sort -u | paste -sd :)
missing=$(LD_LIBRARY_PATH=$folders ldd "$library" | sed -n 's/^\s*\(\S*\) => not found$/\1/p')
[ -z "$missing" ] || by_hand "The driver lacks libraries: $missing"

# The drivers for GPUs are not wanted here, and are most of its size.
find files -name 'libvulkan_*.so' ! -name libvulkan_lvp.so -delete
rm -rf "$target"
mkdir -p "$target"
cp -a files "$target/"
manifest=$(find files -name 'lvp_icd*.json' | head -n 1)
sed "s|\"library_path\": *\"[^\"]*\"|\"library_path\": \"$target/$library\"|" "$manifest" \
    >"$target/lvp_icd.json"
echo "Vulkan driver: Mesa $version in $target"
