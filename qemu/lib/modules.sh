# shellcheck shell=bash
# The kernel modules a guest may need, and the indexes modprobe reads. The kernel package leaves the indexes
# to a tool that runs at installation; the few lines needed are made here from the modules themselves.

# Drivers for the devices sparkler serves, and what a disk and a network with VLANs need. Dependencies follow.
guest_modules=(
    virtio_mmio virtio_blk virtio_net virtio_console virtio-rng virtio_balloon
    vmw_vsock_virtio_transport af_packet 8021q ext4 crc32c_generic sbsa_gwdt
)

module_info() { # module_info FILE FIELD: the values of FIELD in the module's .modinfo section
    tr '\0' '\n' <"$1" | grep -a "^$2=" | sed "s/^$2=//" || true
}

# select_modules FROM TO: copy the modules above and their dependencies from a kernel's module tree,
# with modules.dep and modules.alias.
select_modules() {
    local from=$1 to=$2 path name
    local -A path_of=()
    while read -r path; do
        name=${path##*/}
        name=${name%.ko}
        path_of[${name//-/_}]=$path
    done < <(cd -- "$from" && find kernel -name '*.ko' | sort)

    local -A done_with=()
    mkdir -p -- "$to"
    : >"$to/modules.dep"
    : >"$to/modules.alias"
    for name in "${guest_modules[@]}"; do add_module "${name//-/_}"; done
}

# Needs from, to, path_of and done_with of select_modules. done_with[NAME] = paths NAME needs, nearest first.
add_module() {
    local name=$1 path=${path_of[$1]-} dependency needs=''
    if [[ -n ${done_with[$name]+known} ]]; then return; fi
    # Built into this kernel, or gone from it: modprobe has nothing to do.
    if [[ -z $path ]]; then
        done_with[$name]=''
        return
    fi
    for dependency in $(module_info "$from/$path" depends | tr ',-' ' _'); do
        add_module "$dependency"
        needs+=" ${path_of[$dependency]-}${done_with[$dependency]}"
    done
    # modprobe loads from the right: keep the last of each.
    needs=$(tr ' ' '\n' <<<"$needs" | grep . | tac | awk '!seen[$0]++' | tac | tr '\n' ' ') || true
    done_with[$name]=${needs:+ ${needs% }}
    mkdir -p -- "$to/${path%/*}"
    cp -- "$from/$path" "$to/$path"
    printf '%s:%s\n' "$path" "${done_with[$name]}" >>"$to/modules.dep"
    module_info "$from/$path" alias | sed "s/.*/alias & $name/" >>"$to/modules.alias"
}
