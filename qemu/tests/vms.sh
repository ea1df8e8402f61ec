# shellcheck shell=bash
# qemu/run --vms: what the script makes of a configuration, before sparkler sees it.

runs_once

# vms_fragment TEXT: $dir/vms.dts with TEXT in /chosen.
vms_fragment() { printf '/dts-v1/;\n/ { chosen { %s }; };\n' "$1" >"$dir/vms.dts"; }

linux_vm='compatible = "sparkler,vm"; cpus = <1>; memory = <0x40000>;
    kernel { compatible = "multiboot,kernel", "multiboot,module"; sparkler,file = "linux"; };
    ramdisk { compatible = "multiboot,ramdisk", "multiboot,module"; sparkler,file = "linux-ramdisk"; };'

test_every_example_of_vms_becomes_a_command_and_a_tree() {
    local example name command
    for example in "$root"/qemu/vms/*.dts; do
        name=${example##*/}
        command=$(run_guest --vms "${name%.dts}" --dry-run)
        [[ $command == *"-dtb $target/dry-run/vms.dtb"* && $command == *'-smp 2'* ]]
        fdtget -l "$target/dry-run/vms.dtb" / | grep -q virtio_mmio
        for node in $(fdtget -l "$target/dry-run/vms.dtb" /chosen); do
            [[ $(fdtget "$target/dry-run/vms.dtb" "/chosen/$node" compatible) == sparkler,vm ]]
            for child in $(fdtget -l "$target/dry-run/vms.dtb" "/chosen/$node"); do
                ! fdtget -p "$target/dry-run/vms.dtb" "/chosen/$node/$child" | grep sparkler,file
            done
        done
    done
}

test_several_vms_share_one_copy_of_a_file() {
    vms_fragment "one { $linux_vm }; two { $linux_vm };"
    local command
    command=$(run_guest --vms "$dir/vms.dts" --dry-run --append 'a="b c"')
    expect_equal 'files in memory' 2 "$(grep -o 'loader,file' <<<"$command" | wc -l)"
    local tree=$target/dry-run/vms.dtb
    expect_equal reg "$(fdtget "$tree" /chosen/one/kernel reg)" "$(fdtget "$tree" /chosen/two/kernel reg)"
    expect_equal bootargs 'console=ttyAMA0 VM_NAME=two a="b c"' "$(fdtget "$tree" /chosen/two/kernel bootargs)"
    # The kernel's address and size are those of the file QEMU loads.
    local address size
    read -r _ address _ size <<<"$(fdtget -t x "$tree" /chosen/one/kernel reg)"
    [[ $command == *"vmlinuz,addr=0x$address,"* ]]
    expect_equal size "$(file_size "$target/guest/vmlinuz")" "$((16#$size))"
}

test_a_builtin_guest_is_a_module_however_it_is_named() {
    local vm='compatible = "sparkler,vm"; cpus = <1>; memory = <0x10000>; sparkler,cores = <0>;' tree=$target/dry-run/vms.dtb
    vms_fragment "one { $vm kernel { compatible = \"multiboot,kernel\", \"multiboot,module\"; sparkler,file = \"builtin\"; }; };
        two { $vm sparkler,builtin; bootargs = \"long\"; };"
    run_guest --vms "$dir/vms.dts" --dry-run | tee "$dir/out"
    expect_equal 'files in memory' 1 "$(grep -o 'loader,file' "$dir/out" | wc -l)"
    expect_equal reg "$(fdtget "$tree" /chosen/one/kernel reg)" "$(fdtget "$tree" /chosen/two/builtin-kernel reg)"
    expect_equal bootargs long "$(fdtget "$tree" /chosen/two/builtin-kernel bootargs)"
    ! fdtget -p "$tree" /chosen/two | grep sparkler,builtin
    SPARKLER_RUN_ARGS='' run_guest --vms "$dir/vms.dts" | tee "$dir/out"
    grep -Eq '^one\| builtin: [0-9]+ passed, 0 failed' "$dir/out"
    grep -Eq '^two\| builtin: [0-9]+ passed, 0 failed' "$dir/out"
}

test_disks_come_in_the_order_of_their_numbers() {
    local disk='compatible = "sparkler,virtio-block"; backend = "physical";'
    : >"$dir/own.raw"
    vms_fragment "one { $linux_vm disk { $disk disk = <2>; sparkler,file = \"own.raw\"; }; };
        two { $linux_vm disk { $disk disk = <0>; sparkler,file = \"null\"; }; };"
    run_guest --vms "$dir/vms.dts" --dry-run | tee "$dir/out"
    grep -Eq 'null-co,node-name=disk0.*null-co,node-name=disk1.*id=disk2,.*file='"$dir"'/own.raw' "$dir/out"
}

test_a_wrong_configuration_is_refused_with_its_reason() {
    vms_fragment 'nothing { };'
    expect_status 2 run_guest --vms "$dir/vms.dts" --dry-run |& tee "$dir/out"
    expect_text "$dir/out" 'no node of /chosen has compatible = "sparkler,vm"'
    vms_fragment "one { $linux_vm file { compatible = \"multiboot,module\"; sparkler,file = \"missing\"; }; };"
    expect_status 2 run_guest --vms "$dir/vms.dts" --dry-run |& tee "$dir/out"
    expect_text "$dir/out" '/chosen/one/file: no such file, or empty'
    vms_fragment "one { $linux_vm }; two { $linux_vm vm-name = \"one\"; };"
    sed -i 's/vm-name = "one";//; s/two {/two { vm-name = "one";/' "$dir/vms.dts"
    expect_status 2 run_guest --vms "$dir/vms.dts" --dry-run |& tee "$dir/out"
    expect_text "$dir/out" '/chosen/two: /chosen/one has the same name'
    echo 'not a tree' >"$dir/vms.dts"
    expect_status 125 run_guest --vms "$dir/vms.dts" --dry-run |& tee "$dir/out"
    expect_text "$dir/out" 'is not a device tree source'
    expect_status 2 run_guest --vms no-such-example --dry-run |& tee "$dir/out"
    expect_text "$dir/out" 'two-linux'
    expect_status 2 run_guest --vms two-linux --guest builtin --dry-run
    expect_status 2 run_guest --vms two-linux --bare --dry-run
}

test_the_lines_of_several_guests_are_told_apart() {
    source "$root/qemu/lib/vms.sh"
    printf '%s\n' $'[info] sparkler\r' $'alice| hello\r' $'\e[32mbob| \e[0mworld\r\r' 'alice| tail@@N-1 3@@' \
        'alice| [  2.0] reboot: Power down' 'alice| noise' 'bob| more | x' 'bob| @@N-2 9@@' 'bob| @@N-1 0@@' \
        'carol| builtin: 4 passed, 1 failed' |
        guests_filter N-1 "$dir/statuses" >"$dir/out" 2>"$dir/late"
    expect_equal console $'[info] sparkler\nalice| hello\nbob| world\nalice| tail\nbob| more | x\nbob| @@N-2 9@@\ncarol| builtin: 4 passed, 1 failed' \
        "$(<"$dir/out")"
    expect_equal statuses $'alice 3\nbob 0\ncarol 1' "$(<"$dir/statuses")"
    expect_equal 'what came late' 'alice| noise' "$(<"$dir/late")"

    vm_names=(alice bob carol) vm_kind=([alice]=linux [bob]=linux [carol]=builtin)
    expect_status 3 worst_status "$dir/statuses" linux builtin
    expect_status 1 worst_status "$dir/statuses" builtin
    vm_names+=(dave) vm_kind[dave]=linux
    expect_status 125 worst_status "$dir/statuses" linux builtin
    vm_kind[dave]=other
    expect_status 3 worst_status "$dir/statuses" linux builtin
}
