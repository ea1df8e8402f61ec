# shellcheck shell=bash
# Networks of Linux guests: the switch between them, and the board's card on QEMU's user network (10.0.2.0/24, whose
# gateway is 10.0.2.2).

# net_vms NAME=PROPERTIES...: $dir/vms.dts with these VMs, each a Linux with a network device on the switch; PROPERTIES are
# more of the device's. One that begins with + is the whole of a second device's.
net_vms() {
    local vm name properties core=0
    {
        printf '/dts-v1/;\n/ { chosen {\n'
        for vm in "$@"; do
            name=${vm%%=*} properties=${vm#*=}
            printf '%s { compatible = "sparkler,vm"; cpus = <1>; memory = <0x60000>; sparkler,cores = <%d>;\n' "$name" "$core"
            printf 'kernel { compatible = "multiboot,kernel", "multiboot,module"; sparkler,file = "linux"; };\n'
            printf 'ramdisk { compatible = "multiboot,ramdisk", "multiboot,module"; sparkler,file = "linux-ramdisk"; };\n'
            printf 'net0 { compatible = "sparkler,virtio-net"; backend = "switch"; %s };\n' "${properties%%+*}"
            if [[ $properties == *+* ]]; then
                printf 'net1 { compatible = "sparkler,virtio-net"; backend = "switch"; %s };\n' "${properties#*+}"
            fi
            printf '};\n'
            core=$((core + 1))
        done
        printf '}; };\n'
    } >"$dir/vms.dts"
}

# What a frame is to be is no matter of the interrupt controller.
runs_once a_trunk_carries_the_vlans_of_access_ports every_cpu_of_linux_has_a_pair_of_queues_of_its_card

# What guests have in common: reach ADDRESS waits until it answers, gone ADDRESS until it does not.
net_words='reach() { for n in $(seq 60); do if ping -c 1 -W 1 "$1" >/dev/null; then return; fi; done; echo "no answer of $1"; return 1; }
gone() { while ping -c 1 -W 2 "$1" >/dev/null; do sleep 1; done; }
set -e
'

test_two_guests_get_an_address_from_the_uplink_and_reach_it_and_each_other() {
    run_guest --vms two-linux --timeout 200 -c "$net_words"'
        ip -4 -o addr show dev eth0 | grep -o "10\.0\.2\.[0-9]*/24"
        grep nameserver /etc/resolv.conf
        ping -c 3 -W 2 10.0.2.2
        case $VM_NAME in alice) me=1 other=2 ;; bob) me=2 other=1 ;; esac
        ip addr add 192.168.7.$me/24 dev eth0
        reach 192.168.7.$other
        ping -c 5 -W 2 192.168.7.$other
        # The other may need longer.
        sleep 5' | tee "$dir/out"
    expect_text "$dir/out" 'alice| 10.0.2.1'
    expect_text "$dir/out" 'bob| 10.0.2.1'
    expect_equal 'different addresses' 2 "$(grep -o '10\.0\.2\.[0-9]*/24' "$dir/out" | sort -u | wc -l)"
    expect_equal 'name servers' 2 "$(grep -c 'nameserver 10.0.2.3' "$dir/out")"
    expect_equal 'answers of the gateway' 2 "$(grep -c '3 packets transmitted, 3 packets received' "$dir/out")"
    expect_equal 'answers of the other' 2 "$(grep -c '5 packets transmitted, 5 packets received' "$dir/out")"
}

test_100_mib_by_tcp_between_guests_have_the_same_checksum() {
    net_vms alice= bob=
    run_guest --vms "$dir/vms.dts" --timeout 400 -c "$net_words"'
        case $VM_NAME in
        alice)
            ip addr add 192.168.7.1/24 dev eth0
            mkdir /srv
            dd if=/dev/urandom of=/srv/file bs=1M count=100 2>/dev/null
            md5sum /srv/file | cut -d " " -f 1 >/srv/sum
            httpd -p 80 -h /srv
            reach 192.168.7.2
            gone 192.168.7.2
            ;;
        bob)
            ip addr add 192.168.7.2/24 dev eth0
            reach 192.168.7.1
            until wget -q -O /sum http://192.168.7.1/sum; do sleep 1; done
            wget -q -O - http://192.168.7.1/file | md5sum | cut -d " " -f 1 >/mine
            cmp /sum /mine
            echo "the sums are the same: $(cat /mine)"
            ;;
        esac' | tee "$dir/out"
    grep -Eq '^bob\| the sums are the same: [0-9a-f]{32}$' "$dir/out"
}

test_100_mib_by_tcp_to_the_host_have_the_same_checksum() {
    # QEMU runs the command for whoever connects to that address, and hands it what comes.
    run_guest --disk none --timeout 400 --net "user,guestfwd=tcp:10.0.2.100:9-cmd:md5sum" -c "$net_words"'
        dd if=/dev/urandom of=/file bs=1M count=100 2>/dev/null
        mine=$(md5sum </file)
        theirs=$(nc 10.0.2.100 9 </file)
        echo "$mine, $theirs"
        test "$mine" = "$theirs"
        echo "the sums are the same"' | tee "$dir/out"
    expect_text "$dir/out" 'the sums are the same'
}

test_frames_of_9000_bytes_pass_between_guests_that_have_such_an_mtu() {
    net_vms 'alice=mtu = <9000>;' 'bob=mtu = <9000>;'
    run_guest --vms "$dir/vms.dts" --timeout 200 -c "$net_words"'
        cat /sys/class/net/eth0/mtu
        case $VM_NAME in alice) me=1 other=2 ;; bob) me=2 other=1 ;; esac
        ip addr add 192.168.7.$me/24 dev eth0
        reach 192.168.7.$other
        before=$(cat /sys/class/net/eth0/statistics/tx_packets)
        ping -c 5 -W 2 -s 8900 192.168.7.$other
        after=$(cat /sys/class/net/eth0/statistics/tx_packets)
        # Cut, they would be 35.
        test $((after - before)) -lt 30
        sleep 5' | tee "$dir/out"
    expect_equal MTUs 2 "$(grep -c '| 9000$' "$dir/out")"
    expect_equal answers 2 "$(grep -c '5 packets transmitted, 5 packets received' "$dir/out")"
}

test_a_vlan_is_kept_from_another_and_isolated_ports_from_each_other() {
    # eth0: both in VLAN 10. eth1: VLANs 10 and 20.
    net_vms 'alice=vlan = <10>; + vlan = <10>; isolated;' 'bob=vlan = <10>; + vlan = <20>;'
    run_guest --vms "$dir/vms.dts" --timeout 200 -c "$net_words"'
        case $VM_NAME in alice) me=1 other=2 ;; bob) me=2 other=1 ;; esac
        ip addr add 192.168.7.$me/24 dev eth0
        ip addr add 192.168.8.$me/24 dev eth1
        reach 192.168.7.$other
        if ping -c 3 -W 1 192.168.8.$other >/dev/null; then echo "across VLANs"; exit 1; fi
        if ping -c 1 -W 1 10.0.2.2 >/dev/null; then echo "out of a VLAN"; exit 1; fi
        echo "kept apart"
        sleep 5' | tee "$dir/out"
    expect_equal guests 2 "$(grep -c 'kept apart' "$dir/out")"
    net_vms 'alice=isolated;' 'bob=isolated;'
    run_guest --vms "$dir/vms.dts" --timeout 200 -c "$net_words"'
        case $VM_NAME in alice) me=1 other=2 ;; bob) me=2 other=1 ;; esac
        ip addr add 192.168.7.$me/24 dev eth0
        reach 10.0.2.2
        sleep 10
        if ping -c 3 -W 1 192.168.7.$other >/dev/null; then echo "reached the other"; exit 1; fi
        echo "kept apart"
        sleep 5' | tee "$dir/out"
    expect_equal guests 2 "$(grep -c 'kept apart' "$dir/out")"
}

# Alice has VLANs 10 and 20 by tags on one port; bob has a port in each of them, where there are no tags.
test_a_trunk_carries_the_vlans_of_access_ports() {
    net_vms alice= 'bob=vlan = <10>; + vlan = <20>;'
    run_guest --vms "$dir/vms.dts" --net none --timeout 300 -c "$net_words"'
        mkdir /srv
        dd if=/dev/urandom of=/srv/file bs=1M count=16 2>/dev/null
        md5sum /srv/file | cut -d " " -f 1 >/srv/sum
        case $VM_NAME in
        alice)
            me=1 other=2
            modprobe 8021q
            for vlan in 10 20; do
                ip link add link eth0 name eth0.$vlan type vlan id $vlan
                ip link set eth0.$vlan up
                ip addr add 192.168.$vlan.1/24 dev eth0.$vlan
            done
            ip addr add 192.168.7.1/24 dev eth0
            ;;
        bob)
            me=2 other=1
            ip addr add 192.168.10.2/24 dev eth0
            ip addr add 192.168.7.2/24 dev eth0
            ip addr add 192.168.20.2/24 dev eth1
            ;;
        esac
        httpd -p 80 -h /srv
        for vlan in 10 20; do
            reach 192.168.$vlan.$other
            ping -c 3 -W 2 192.168.$vlan.$other
            # With segments for the switch to cut or to carry, in both directions.
            until wget -q -O /sum http://192.168.$vlan.$other/sum; do sleep 1; done
            wget -q -O - http://192.168.$vlan.$other/file | md5sum | cut -d " " -f 1 >/mine
            cmp /sum /mine
            echo "the sums of VLAN $vlan are the same"
        done
        # Without a tag it is nobody of a VLAN.
        if ping -c 3 -W 1 192.168.7.$other >/dev/null; then echo "into a VLAN without a tag"; exit 1; fi
        echo "kept apart"
        sleep 10' | tee "$dir/out"
    expect_equal answers 4 "$(grep -c '3 packets transmitted, 3 packets received' "$dir/out")"
    expect_equal sums 4 "$(grep -c 'the sums of VLAN [12]0 are the same' "$dir/out")"
    expect_equal guests 2 "$(grep -c 'kept apart' "$dir/out")"
}

# The guest sends to itself by way of the device: it has to forget that the address is its own, until a frame comes in.
test_what_a_guest_sends_to_a_loopback_comes_back() {
    net_vms alice=
    sed -i 's/"switch"/"loopback"/' "$dir/vms.dts"
    run_guest --vms "$dir/vms.dts" --timeout 200 -c '
        set -e
        ip addr add 192.168.7.1/24 dev eth0
        echo 1 >/proc/sys/net/ipv4/conf/eth0/accept_local
        echo 0 >/proc/sys/net/ipv4/conf/all/rp_filter
        echo 0 >/proc/sys/net/ipv4/conf/eth0/rp_filter
        ip route add 192.168.7.1 dev eth0 src 192.168.7.1 table 100
        ip rule add pref 10 iif eth0 lookup local
        ip rule add pref 20 to 192.168.7.1 lookup 100
        ip rule add pref 30 lookup local
        ip rule del pref 0
        arp -i eth0 -s 192.168.7.1 "$(cat /sys/class/net/eth0/address)"
        received() { cat /sys/class/net/eth0/statistics/rx_bytes; }
        before=$(received)
        ping -c 5 -W 2 -s 1400 192.168.7.1
        mkdir /srv
        dd if=/dev/urandom of=/srv/file bs=1M count=16 2>/dev/null
        httpd -p 80 -h /srv
        test "$(wget -q -O - http://192.168.7.1/file | md5sum)" = "$(md5sum </srv/file)"
        test $(($(received) - before)) -gt 16777216
        echo "all has come back"' | tee "$dir/out"
    expect_text "$dir/out" '5 packets transmitted, 5 packets received'
    expect_text "$dir/out" 'all has come back'
}

# Each CPU sends by a pair of its own, both at once.
test_every_cpu_of_linux_has_a_pair_of_queues_of_its_card() {
    net_vms 'alice=queue-pairs = <2>;' 'bob=queue-pairs = <2>;'
    sed -i 's/cpus = <1>/cpus = <2>/; s/sparkler,cores = <0>/sparkler,cores = <0 1>/; s/sparkler,cores = <1>/sparkler,cores = <2 3>/' "$dir/vms.dts"
    run_guest --vms "$dir/vms.dts" --net none --timeout 300 -c "$net_words"'
        case $VM_NAME in alice) me=1 other=2 ;; bob) me=2 other=1 ;; esac
        echo $(ls /sys/class/net/eth0/queues)
        ip addr add 192.168.7.$me/24 dev eth0
        mkdir /srv
        dd if=/dev/urandom of=/srv/file bs=1M count=16 2>/dev/null
        md5sum </srv/file >/srv/sum
        for cpu in 1 2; do taskset $cpu httpd -p 800$cpu -h /srv; done
        reach 192.168.7.$other
        until wget -q -O /sum http://192.168.7.$other:8002/sum; do sleep 1; done
        for cpu in 1 2; do taskset $cpu wget -q -O /got.$cpu http://192.168.7.$other:800$cpu/file & done
        wait
        for cpu in 1 2; do test "$(md5sum </got.$cpu)" = "$(cat /sum)"; done
        echo "the sums are the same"
        sleep 10' | tee "$dir/out"
    expect_equal 'guests with queues' 2 "$(grep -c '| rx-0 rx-1 tx-0 tx-1$' "$dir/out")"
    expect_equal guests 2 "$(grep -c 'the sums are the same' "$dir/out")"
}

# machines_with_cards COUNT: runs eight machines, each with so many network devices of four pairs of queues, until all are off.
machines_with_cards() {
    local vm slot devices='' vms=''
    for ((slot = 0; slot < $1; slot++)); do
        devices+="net$slot { compatible = \"sparkler,virtio-net\"; backend = \"switch\"; queue-pairs = <4>; };"
    done
    for vm in 0 1 2 3 4 5 6 7; do vms+=$(tiny_vm "vm$vm" 4 '0 1 2 3' "$devices" "${SYSTEM_OFF[@]}"); done
    vms_fragment "$vms"
    run_guest --vms "$dir/vms.dts" --timeout 100 | tee "$dir/out"
}

test_eight_machines_have_four_pairs_of_queues_each() {
    local vm
    machines_with_cards 1
    for vm in 0 1 2 3 4 5 6 7; do expect_text "$dir/out" "vm$vm: off at tick"; done
    ! grep 'not built' "$dir/out"
}

test_machines_that_el2_has_no_memory_for_are_refused_and_the_others_run() {
    local vm
    machines_with_cards 8
    expect_text "$dir/out" 'vm0: off at tick'
    expect_text "$dir/out" '/chosen/vm7: not built: EL2 has too little memory'
    for vm in 0 1 2 3 4 5 6 7; do
        expect_equal "vm$vm" 1 "$(grep -Ec "vm$vm: (off at tick|not built)" "$dir/out")"
    done
}

# An image with the service, which the one that is tested otherwise has not.
runs_once linux_reads_its_metadata_and_no_other_guests
test_linux_reads_its_metadata_and_no_other_guests() {
    setup_tools build
    setup_toolchain
    build_image "$dir/metadata.img" metadata
    local vm
    for vm in alice bob; do
        mkdir -p -- "$dir/$vm/latest/meta-data"
        printf '%s' "$vm" >"$dir/$vm/latest/meta-data/local-hostname"
        head -c 300000 /dev/urandom >"$dir/$vm/latest/user-data"
        tar -cf "$dir/$vm.tar" -C "$dir/$vm" .
        md5sum <"$dir/$vm/latest/user-data" | cut -d ' ' -f 1 >"$dir/$vm.sum"
    done
    net_vms "alice=metadata; sparkler,file = \"$dir/alice.tar\";" "bob=metadata; sparkler,file = \"$dir/bob.tar\";" carol=
    run_guest --image "$dir/metadata.img" --vms "$dir/vms.dts" --timeout 200 -c "$net_words"'
        at=http://169.254.169.254
        reach 10.0.2.2
        if [ $VM_NAME = carol ]; then
            if timeout 5 wget -q -O - $at/; then exit 1; fi
            echo "carol has none"
            exit
        fi
        # By way of the gateway, and then as on the link.
        test "$(wget -q -O - $at/latest/meta-data/local-hostname)" = $VM_NAME
        ip route add 169.254.169.254 dev eth0
        wget -q -O - $at/latest/meta-data
        for n in 1 2 3 4 5 6; do wget -q -O - $at/latest/user-data | md5sum | cut -d " " -f 1; done
        wget -q -O - $at/nothing 2>&1 | grep 404
        cat /proc/net/arp' | tee "$dir/out"
    for vm in alice bob; do
        expect_equal "contents for $vm" 6 "$(grep -c "^$vm| $(<"$dir/$vm.sum")" "$dir/out")"
        expect_text "$dir/out" "$vm| local-hostname"
    done
    expect_text "$dir/out" 'carol has none'
    grep -Eq '169\.254\.169\.254 .*02:00:a9:fe:a9:fe' "$dir/out"
    # The image that everybody has says why it has none.
    run_guest --vms "$dir/vms.dts" --timeout 200 -c 'echo "runs alone"' >"$dir/out" 2>&1 || true
    expect_text "$dir/out" '/chosen/alice/net0: metadata: this image was built without it'
    expect_text "$dir/out" 'runs alone'
}

test_without_a_card_guests_still_reach_each_other() {
    run_guest --vms two-linux --net none --timeout 200 -c "$net_words"'
        case $VM_NAME in alice) me=1 other=2 ;; bob) me=2 other=1 ;; esac
        ip addr add 192.168.7.$me/24 dev eth0
        reach 192.168.7.$other
        sleep 5' | tee "$dir/out"
    expect_text "$dir/out" 'alice: start'
    ! grep 'network card' "$dir/out"
}

# What crossed the wire, as tcpdump sees it: every frame is whole, every checksum right.
test_what_is_on_the_wire_is_right_for_an_independent_reader() {
    command -v tcpdump >/dev/null || step 'install tcpdump' 'as root, run: apt-get install tcpdump' install_packages tcpdump
    net_vms alice= bob=
    run_guest --vms "$dir/vms.dts" --timeout 300 --net 'user,guestfwd=tcp:10.0.2.100:9-cmd:md5sum' -c "$net_words"'
        reach 10.0.2.2
        dd if=/dev/urandom of=/file bs=64k count=16 2>/dev/null
        test "$(md5sum </file)" = "$(nc 10.0.2.100 9 </file)"
        nslookup gateway.invalid 10.0.2.3 >/dev/null || true
        echo sent' -- -object "filter-dump,id=dump,netdev=net0,file=$(qemu_value "$dir/wire.pcap")" | tee "$dir/out"
    expect_equal guests 2 "$(grep -c '| sent' "$dir/out")"
    # Without limits on what is shown; -vv checks the sums.
    tcpdump -nvv -r "$dir/wire.pcap" >"$dir/wire" 2>"$dir/errors"
    cat -- "$dir/errors"
    ! grep -Ei 'incorrect|bad .*cksum|truncated|malformed|invalid' "$dir/wire" | head
    grep -q 'BOOTP/DHCP, Reply' "$dir/wire"
    grep -q 'ICMP echo reply' "$dir/wire"
    local data
    data=$(grep -Ec 'cksum 0x[0-9a-f]+ \(correct\)' "$dir/wire")
    echo "$data checksums of TCP and UDP are right"
    ((data > 1000))
    # No frame is longer than the wire's MTU.
    tcpdump -r "$dir/wire.pcap" 'greater 1519' 2>/dev/null | head | tee "$dir/long"
    [[ ! -s $dir/long ]]
}

test_a_link_that_goes_away_and_comes_back_is_noticed() {
    local port=$((20000 + RANDOM % 20000))
    (
        # QEMU's monitor, when the guest has come up: the link down for five seconds.
        until grep -q 'gateway answers' "$dir/out" 2>/dev/null; do sleep 0.5; done
        exec 3<>"/dev/tcp/127.0.0.1/$port"
        printf 'set_link net0 off\n' >&3
        until grep -q 'gateway is gone' "$dir/out"; do sleep 0.5; done
        printf 'set_link net0 on\n' >&3
        until grep -q 'gateway is back' "$dir/out"; do sleep 0.5; done
    ) &
    local helper=$!
    at_exit+=("kill $helper 2>/dev/null || true")
    run_guest --disk none --timeout 200 -c "$net_words"'
        reach 10.0.2.2
        echo "the gateway answers"
        gone 10.0.2.2
        echo "the gateway is gone"
        reach 10.0.2.2
        echo "the gateway is back"' -- -monitor "tcp:127.0.0.1:$port,server,nowait" | tee "$dir/out"
    expect_text "$dir/out" 'the gateway is back'
}

test_a_card_that_stops_answering_is_reset_and_the_guest_lives() {
    # The other end of the card's wire takes what comes until its buffers are full, and never reads.
    local port
    perl -MIO::Socket::INET -e '$| = 1; my $s = IO::Socket::INET->new(Listen => 1, LocalAddr => "127.0.0.1") or die;
        print $s->sockport, "\n"; my $c = $s->accept; sleep 300' >"$dir/port" &
    local helper=$!
    at_exit+=("kill $helper 2>/dev/null || true")
    until [[ -s $dir/port ]]; do sleep 0.1; done
    port=$(<"$dir/port")
    run_guest --net none --timeout 250 -c "$net_words"'
        ip addr add 192.168.7.1/24 dev eth0
        arp -s 192.168.7.9 02:00:00:00:00:99 2>/dev/null || ip neigh add 192.168.7.9 lladdr 02:00:00:00:00:99 dev eth0
        # Nobody answers: as many frames as fill the wire, and more.
        for n in $(seq 12); do
            ping -c 400 -i 0.01 -W 1 -s 1400 192.168.7.9 >/dev/null || true
            dd if=/dev/vda of=/dev/null bs=64k count=1 iflag=direct 2>/dev/null
        done
        echo "the guest lives"' -- -global virtio-mmio.force-legacy=false \
        -netdev "socket,id=net0,connect=127.0.0.1:$port" -device virtio-net-device,netdev=net0 | tee "$dir/out"
    expect_text "$dir/out" 'the guest lives'
    expect_text "$dir/out" 'a frame was not sent in time; resetting the device'
}
