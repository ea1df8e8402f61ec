# shellcheck shell=bash
# Linux drives the disk through either ring, with and without its features, through small and large queues.

# ring_traffic OPTIONS BITS TAGS: with OPTIONS for what devices offer, Linux must have accepted INDIRECT_DESC, EVENT_IDX and
# RING_PACKED as BITS says (such as 101), and have TAGS requests at once; what it writes must be on the disk.
ring_traffic() {
    run_guest --disk "$(ext4_disk)" --el2-append "sparkler.virtio=$1" -c '
        features=$(cat /sys/bus/virtio/devices/virtio0/features)
        echo "bits $(echo $features | cut -c 29,30,35)"
        echo "tags $(cat /sys/block/vda/mq/0/nr_tags)"
        dd if=/dev/urandom of=/mnt/one bs=1M count=12 &
        dd if=/dev/urandom of=/mnt/two bs=4k count=1000 oflag=direct &
        wait
        sync
        echo 3 >/proc/sys/vm/drop_caches
        sha256sum /mnt/one /mnt/two' | tee "$dir/out"
    expect_text "$dir/out" "bits $2"
    expect_text "$dir/out" "tags $3"
    expect_clean "$(ext4_disk)"
    local file
    for file in one two; do
        disk_file "$(ext4_disk)" "$file" "$dir/$file"
        expect_text "$dir/out" "$(sha256sum "$dir/$file" | cut -d ' ' -f 1)"
    done
    expect_equal "size" 12582912 "$(stat -c %s "$dir/one")"
}

test_linux_uses_a_packed_ring() { ring_traffic packed 111 1024; }
test_linux_uses_a_packed_ring_without_indirect() { ring_traffic packed,noindirect 011 512; }
test_linux_uses_a_packed_ring_without_event_idx() { ring_traffic packed,noevent 101 1024; }
test_linux_uses_a_packed_ring_of_two() { ring_traffic packed,size=2 111 2; }
test_linux_uses_a_packed_ring_of_any_size() { ring_traffic packed,size=100,noindirect 011 50; }
test_linux_uses_a_split_ring() { ring_traffic size=1024 110 1024; }
test_linux_uses_a_split_ring_without_indirect_and_event_idx() { ring_traffic noindirect,noevent 000 512; }
test_linux_uses_a_split_ring_of_two() { ring_traffic split,size=2 110 2; }

test_el2_refuses_an_option_that_means_nothing() {
    expect_refusal 'sparkler.virtio: "sise=4" means nothing' --guest builtin --el2-append sparkler.virtio=split,sise=4
}
