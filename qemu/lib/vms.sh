# shellcheck shell=bash
# VMs of qemu/run --vms: their nodes, merged into the board's device tree; the files they name, in the board's memory;
# their disks; their console lines. The nodes' binding is in docs/configuration.md. For the script alone:
#   sparkler,file in a module     "linux", "linux-ramdisk", "builtin" (as without --vms), or a file, from the .dts file's folder
#   sparkler,file in a disk       a file instead of target/disk/NAME.img, or "null" for a disk of zeros
#   sparkler,builtin in a VM      a kernel module with "builtin", its bootargs the VM's
# A disk of which nodes name partitions is target/disk/NAME-of-the-.dts-N.img, with these partitions, unless a file is named.

vm_names=()
# By a VM's name: linux (our ramdisk, which takes commands), builtin, or other; and the path of its node.
declare -A vm_kind=() vm_node=()
# By path of a node: the file it names, as it is written there.
declare -A vm_modules=() vm_disks=()
# By number of a disk: path of the first node that names it, and the labels of its partitions, in order.
declare -A disk_node=() disk_labels=()
# More words for every Linux; more arguments for QEMU.
vm_words='' vm_args=()

readonly VM_NAME='[A-Za-z0-9._-]+'
# The module of a VM with sparkler,builtin.
readonly BUILTIN_NODE=builtin-kernel

vms_text() { fdtget -d '' -t s "$vms_dtb" "$1" "$2"; }
# A number of one or two cells; $3 if it is not there.
vms_number() {
    local cells
    read -ra cells <<<"$(fdtget -d "$3" -t u "$vms_dtb" "$1" "$2")"
    printf '%s' $((${#cells[@]} == 2 ? cells[0] << 32 | cells[1] : cells[0]))
}
vms_is() { [[ " $(vms_text "$1" compatible) " == *" $2 "* ]]; }
vms_has() { fdtget -p "$vms_dtb" "$1" | grep -Fxq -- "$2"; }
vms_enabled() { [[ " okay ok " == *" $(fdtget -d okay -t s "$vms_dtb" "$1" status) "* ]]; }

# read_vms: from the file $vms to the variables above, to vm_memory (KiB) and vm_cores (of the board).
read_vms() {
    local node path name
    vms_dtb=$scratch/vms.dtb vm_memory=0 vm_cores=1
    dtc -q -I dts -O dtb -o "$vms_dtb" -- "$vms" >&2 || die "$vms is not a device tree source: dtc's message is above"
    for node in $(fdtget -l "$vms_dtb" /chosen 2>/dev/null); do
        path=/chosen/$node
        if ! vms_is "$path" sparkler,vm || ! vms_enabled "$path"; then continue; fi
        name=$(vms_text "$path" vm-name)
        name=${name:-${node%%@*}}
        [[ $name =~ ^$VM_NAME$ ]] || usage_error "$vms: $path: its name must be of A-Z, a-z, 0-9, \".\", \"_\", \"-\""
        [[ -z ${vm_node[$name]-} ]] || usage_error "$vms: $path: ${vm_node[$name]} has the same name"
        vm_names+=("$name")
        vm_node[$name]=$path
        read_vm "$path" "$name"
    done
    ((${#vm_names[@]})) || usage_error "$vms: no node of /chosen has compatible = \"sparkler,vm\""
}

read_vm() { # read_vm PATH NAME
    local child path file disk core
    vm_kind[$2]=other
    if vms_has "$1" sparkler,builtin; then vm_kind[$2]=builtin vm_modules[$1/$BUILTIN_NODE]=builtin; fi
    vm_memory=$((vm_memory + $(vms_number "$1" memory 0)))
    for core in $(fdtget -d "$(($(vms_number "$1" cpus 1) - 1))" -t u "$vms_dtb" "$1" sparkler,cores); do
        vm_cores=$((core < vm_cores ? vm_cores : core < 8 ? core + 1 : 8))
    done
    for child in $(fdtget -l "$vms_dtb" "$1"); do
        path=$1/$child file=$(vms_text "$1/$child" sparkler,file)
        if ! vms_enabled "$path"; then continue; fi
        if vms_is "$path" multiboot,module || [[ $(vms_text "$path" backend) == ram ]] ||
            vms_has "$path" metadata || { [[ $(vms_text "$path" backend) == overlay ]] && ! vms_has "$path" disk; }; then
            case $file in
            linux-ramdisk) vm_kind[$2]=linux ;;
            builtin) vm_kind[$2]=builtin ;;
            esac
            if [[ -n $file ]]; then vm_modules[$path]=$file; fi
        elif [[ $(vms_text "$path" backend) == physical ]] || vms_has "$path" disk; then
            disk=$(vms_number "$path" disk 32)
            # What is wrong with it is for sparkler to say.
            if ((disk < 32)); then
                disk_node[$disk]=${disk_node[$disk]-$path}
                if vms_has "$path" partition; then add_label "$disk" "$(vms_text "$path" partition)"; fi
            fi
            if [[ -n $file ]]; then
                vm_disks[$path]=$file
                if ((disk < 32)); then disk_node[$disk]=$path; fi
            fi
        fi
    done
    # Whether it will run is not known of one that somebody has to start.
    if [[ $(vms_text "$1" sparkler,autostart) == no ]]; then vm_kind[$2]=other; fi
}

# A partition that a node names. By number: what is missing before it has no label.
add_label() { # add_label DISK LABEL
    if [[ $2 =~ ^[A-Za-z0-9._-]{1,36}$ && " ${disk_labels[$1]-} " != *" $2 "* ]]; then
        disk_labels[$1]+="${disk_labels[$1]:+ }$2"
    fi
}

vms_use() { # vms_use KIND: whether a VM is of that kind
    local name
    for name in "${vm_names[@]}"; do [[ ${vm_kind[$name]} != "$1" ]] || return 0; done
    return 1
}

# Whether a device of a VM belongs to the board's network.
vms_use_network() {
    local name path child
    for name in "${vm_names[@]}"; do
        path=${vm_node[$name]}
        for child in $(fdtget -l "$vms_dtb" "$path"); do
            if vms_is "$path/$child" sparkler,virtio-net && [[ $(vms_text "$path/$child" backend) == switch ]]; then return; fi
        done
    done
    return 1
}

# vms_file TEXT: the path of a file that a node names.
vms_file() {
    case $1 in
    linux) printf '%s' "$guest_dir/vmlinuz" ;;
    linux-ramdisk) printf '%s' "$initrd" ;;
    builtin) printf '%s' "$builtin_guest" ;;
    /*) printf '%s' "$1" ;;
    *) printf '%s' "$(dirname -- "$vms")/$1" ;;
    esac
}

# place_vm_modules: memory, if the user did not say; then the address of every file, each once, from the top of RAM
# down; reg and all else that the board's tree needs of them, as a tree source in $scratch/modules.dts.
place_vm_modules() {
    local path file size top floor need=0 fragment=$scratch/modules.dts
    local -A address=()
    for path in "${!vm_modules[@]}"; do
        file=$(vms_file "${vm_modules[$path]}")
        [[ -r $file && -s $file ]] || usage_error "$vms: $path: no such file, or empty: $file"
        address[$file]=''
    done
    for file in "${!address[@]}"; do need=$((need + ($(file_size "$file") / MIB / 2 + 1) * 2)); done
    # sparkler, its pool and, at 128 MiB, the device tree.
    need=$((need + vm_memory / 1024 + 136))
    memory=${memory:-$(((need + 127) / 128 * 128))}
    ((memory >= need)) || note "--memory $memory may be too small for these VMs: $need would do"
    top=$((RAM_BASE + memory * MIB))
    floor=$((RAM_BASE + (memory / 2 < 128 ? memory / 2 : 128) * MIB + 2 * MIB))
    for path in $(printf '%s\n' "${!vm_modules[@]}" | sort); do
        file=$(vms_file "${vm_modules[$path]}")
        size=$(file_size "$file")
        if [[ -z ${address[$file]} ]]; then
            top=$(((top - size) / (2 * MIB) * (2 * MIB)))
            ((top >= floor)) || usage_error "--memory $memory is too small for the VMs' files"
            address[$file]=$top
            vm_args+=(-device "loader,file=$(qemu_value "$file"),addr=$(printf %#x "$top"),force-raw=on")
        fi
        module_fragment "$path" $((address[$file])) "$size"
    done >"$fragment"
    for path in "${!vm_disks[@]}"; do printf '/ { chosen { %s { %s { /delete-property/ sparkler,file; }; }; }; };\n' \
        "$(cut -d / -f 3 <<<"$path")" "${path##*/}"; done >>"$fragment"
}

module_fragment() { # module_fragment PATH ADDRESS SIZE
    local vm words=''
    vm=$(cut -d / -f 3 <<<"$1")
    printf '/ { chosen { %s { #address-cells = <2>; #size-cells = <2>; ' "$vm"
    if [[ ${1##*/} == "$BUILTIN_NODE" ]]; then
        words=$(vms_text "/chosen/$vm" bootargs)
        printf '/delete-property/ sparkler,builtin; %s { compatible = "multiboot,kernel", "multiboot,module"; ' "${1##*/}"
    else
        printf '%s { /delete-property/ sparkler,file; ' "${1##*/}"
    fi
    printf 'reg = <%#x %#x %#x %#x>; ' $(($2 >> 32)) $(($2 & 0xffffffff)) $(($3 >> 32)) $(($3 & 0xffffffff))
    if vms_is "$1" multiboot,kernel; then
        words=$(vms_text "$1" bootargs)
        if [[ ${vm_modules[$1]} == linux ]]; then
            words=${words:-console=ttyAMA0}
            words+=" VM_NAME=$(vms_vm_name "/chosen/$vm")${append:+ $append}$vm_words"
        fi
    fi
    if [[ -n $words ]]; then
        words=${words//\\/\\\\}
        printf 'bootargs = "%s"; ' "${words//\"/\\\"}"
    fi
    printf '}; }; }; };\n'
}

vms_vm_name() { # vms_vm_name PATH
    local name
    for name in "${vm_names[@]}"; do if [[ ${vm_node[$name]} == "$1" ]]; then printf '%s' "$name"; fi; done
}

# vms_disks: QEMU's arguments for the board's disks, in the order of their numbers.
vms_disks() {
    local number last=-1 path name file format labels owned=' '
    for number in "${!disk_node[@]}"; do last=$((number > last ? number : last)); done
    if ((last < 0)); then return; fi
    vm_args+=(-global virtio-mmio.force-legacy=false)
    for ((number = 0; number <= last; number++)); do
        # A number that nobody uses is a disk nonetheless: else the others would have other numbers.
        path=${disk_node[$number]-} file=null
        if [[ -n $path ]]; then
            name=$(vms_vm_name "${path%/*}")
            file=${vm_disks[$path]-}
            if [[ -z $file && -n ${disk_labels[$number]-} ]]; then
                file=$(basename -- "$vms" .dts)
                file=$disks/$file-$number.img
                read -ra labels <<<"${disk_labels[$number]}"
                if [[ ! -e $file ]]; then
                    step "make disk $number with partitions" "is the file system full?" \
                        make_partitioned "$file" 512 "${labels[@]}"
                fi
            elif [[ -z $file ]]; then
                file=$disks/$name.img
                if [[ $owned == *" $name "* ]]; then file=$disks/$name-$number.img; fi
                owned+="$name "
                if [[ ${vm_kind[$name]} == builtin ]]; then
                    make_blank "$file" 16M
                elif [[ ! -e $file ]]; then
                    step "make the disk of $name" "is the file system full?" make_ext4 "$file" 512M
                fi
            elif [[ $file != null ]]; then
                file=$(vms_file "$file")
                [[ -r $file ]] || usage_error "$vms: $path: no such file: $file"
            fi
        fi
        format=raw
        if [[ $file == *.qcow2 ]]; then format=qcow2; fi
        if [[ $file == null ]]; then
            vm_args+=(-blockdev "driver=null-co,node-name=disk$number,size=1073741824,read-zeroes=on")
        else
            vm_args+=(-drive "if=none,id=disk$number,format=$format,cache=writeback,file=$(qemu_value "$file")")
        fi
        vm_args+=(-device "virtio-blk-device,drive=disk$number")
    done
}

# merge_vms OUT COMMAND...: the tree that QEMU makes for its board when started by COMMAND, with the VMs in it.
merge_vms() {
    local out=$1 board=$scratch/board.dtb
    shift
    "$@" -machine "dumpdtb=$board" </dev/null
    {
        dtc -q -I dtb -O dts -- "$board"
        dtc -q -I dtb -O dts -- "$vms_dtb" | grep -v -e '^/dts-v1/' -e '^/memreserve/'
        cat -- "$scratch/modules.dts"
    } >"$scratch/merged.dts"
    dtc -q -I dts -O dtb -o "$out" -- "$scratch/merged.dts"
}

# guests_filter NONCE FILE: the console of several guests, whose lines begin with "NAME| ". Carriage returns and colours of
# the name go; so does the line in which a guest's init reports the status of its commands, which is left in FILE, as
# NAME and status; for the builtin guest that is 0 or 1. What a guest says after its status goes to stderr.
guests_filter() {
    local line name text escape=$'(\e\\[[0-9;]*m)*'
    local -A ended=()
    while IFS= read -r line || [[ -n $line ]]; do
        while [[ $line == *$'\r' ]]; do line=${line%$'\r'}; done
        if ((${#vm_names[@]} == 1)) && [[ $line != '[sparkler]'* ]]; then
            # A guest that has the console to itself has it as it is.
            name=${vm_names[0]} text=$line
        elif [[ $line =~ ^$escape($VM_NAME)\|$escape\ ?$escape(.*)$ ]]; then
            name=${BASH_REMATCH[2]} text=${BASH_REMATCH[5]}
        else
            printf '%s\n' "$line"
            continue
        fi
        if [[ $text =~ ^(.*)@@$1\ ([0-9]+)@@ ]]; then
            printf '%s %s\n' "$name" "${BASH_REMATCH[2]}" >>"$2"
            ended[$name]=1
            if [[ -n ${BASH_REMATCH[1]} ]]; then printf '%s| %s\n' "$name" "${BASH_REMATCH[1]}"; fi
            continue
        elif [[ $text =~ ^builtin:\ ([0-9]+)\ passed,\ ([0-9]+)\ failed ]]; then
            printf '%s %d\n' "$name" $((BASH_REMATCH[2] > 0 || BASH_REMATCH[1] == 0)) >>"$2"
        fi
        if [[ -z ${ended[$name]-} ]]; then
            printf '%s| %s\n' "$name" "$text"
        elif [[ $text != *'Power down' ]]; then
            printf '%s| %s\n' "$name" "$text" >&2
        fi
    done
}

# worst_status FILE KIND...: of the VMs of these kinds, the largest status; 125 for one that left none.
worst_status() {
    local name status worst=0 file=$1
    shift
    for name in "${vm_names[@]}"; do
        if [[ " $* " != *" ${vm_kind[$name]} "* ]]; then continue; fi
        status=$(awk -v name="$name" '$1 == name { status = $2 } END { print status }' "$file")
        if [[ -z $status ]]; then
            note "$name ended before its $([[ ${vm_kind[$name]} == linux ]] && echo commands || echo checks) did"
            status=$EXIT_FAILED
        elif ((status)); then
            note "$name ended with status $status"
        fi
        worst=$((status > worst ? status : worst))
    done
    return "$worst"
}
