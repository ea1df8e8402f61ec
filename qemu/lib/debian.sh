# shellcheck shell=bash
# Debian's arm64 kernel and busybox, fetched by apt with a root of its own: the system gains no foreign
# architecture and no package. Mirrors, proxies and keyrings are those the system already uses.

# What is kept of the packages: the kernel and busybox as they are, the modules the ramdisk takes,
# and the release name; and which modules were asked for.
guest_dir=$target/guest

guest_is_cached() {
    [[ -s $guest_dir/vmlinuz && -s $guest_dir/busybox && -s $guest_dir/release && -d $guest_dir/modules ]] &&
        [[ -r $guest_dir/wanted && $(<"$guest_dir/wanted") == "${guest_modules[*]}" ]]
}

# The system's own package sources, narrowed to Debian 12 itself and widened to arm64. $@: more options for apt-get.
debian_sources() {
    local keyring=/usr/share/keyrings/debian-archive-keyring.gpg option=''
    if [[ -s $keyring ]]; then option=" signed-by=$keyring"; fi
    apt-get "$@" indextargets --format '$(RELEASE)|$(CODENAME)|$(COMPONENT)|$(REPO_URI)' 'Created-By: Packages' |
        while IFS='|' read -r release codename component uri; do
            # A source may say "stable" where Debian 12 is meant, or by now another release.
            if [[ $component == main && " $release $codename " =~ \ bookworm(-updates|-security)?\  ]]; then
                printf 'deb [arch=arm64%s] %s %s %s\n' "$option" "$uri" "$release" "$component"
            fi
        done | sort -u
}

private_apt() { # private_apt COMMAND ARGUMENTS..., in the private root $apt
    local command=$1
    shift
    "$command" -q -o "Dir::State=$apt/state" -o "Dir::State::lists=$apt/state/lists" -o "Dir::State::status=$apt/state/status" \
        -o "Dir::Cache=$apt/cache" -o "Dir::Etc::sourcelist=$apt/sources.list" -o Dir::Etc::sourceparts=/dev/null \
        -o APT::Architecture=arm64 -o APT::Architectures::=arm64 -o APT::Sandbox::User="$(id -un)" \
        -o Acquire::Languages=none -o Acquire::Retries=2 -o Acquire::http::Timeout=30 "$@"
}

fetch_debian_guest() {
    local apt=$scratch/apt new=$scratch/guest kernel release
    mkdir -p -- "$apt/state/lists/partial" "$apt/cache/archives/partial" "$apt/root" "$new"
    : >"$apt/state/status"
    debian_sources >"$apt/sources.list"
    if [[ ! -s $apt/sources.list ]]; then
        # apt knows its sources only once their lists are there; fresh systems have none. Lists of our own, then.
        local own=(-o "Dir::State::lists=$apt/own" -o "APT::Sandbox::User=$(id -un)")
        mkdir -p -- "$apt/own/partial"
        apt-get -q "${own[@]}" -o "Dir::Cache=$apt/cache" update || true
        debian_sources "${own[@]}" >"$apt/sources.list"
    fi
    if [[ ! -s $apt/sources.list ]]; then
        echo "apt has no source for Debian 12 (bookworm) main"
        return 1
    fi
    private_apt apt-get update
    # The meta package names the current kernel.
    kernel=$(private_apt apt-cache show --no-all-versions linux-image-arm64 |
        sed -n 's/^Depends: \(linux-image-[^ ,]*\).*/\1/p')
    [[ -n $kernel ]] || {
        echo "the package lists have no linux-image-arm64"
        return 1
    }
    cd -- "$apt"
    private_apt apt-get download "$kernel" busybox-static
    for package in ./*.deb; do dpkg-deb -x "$package" root; done

    release=${kernel#linux-image-}
    mv -- "root/boot/vmlinuz-$release" "$new/vmlinuz"
    mv -- root/bin/busybox "$new/busybox"
    select_modules "root/lib/modules/$release" "$new/modules"
    printf '%s\n' "$release" >"$new/release"
    printf '%s\n' "${guest_modules[*]}" >"$new/wanted"
    publish "$new" "$guest_dir"
}

# One fetch at a time for each checkout; whoever waited finds the work done.
fetch_debian_guest_once() {
    exec 9>"$target/guest.lock"
    flock 9
    if guest_is_cached; then return; fi
    fetch_debian_guest
}
