#!/bin/busybox sh
# First program of the recorded machine: brings the cards up, tells the host every kernel symbol, runs the programs.
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
echo 0 >/proc/sys/kernel/kptr_restrict
echo 1 >/proc/irq/default_smp_affinity
while read -r module parameters; do insmod "/$module.ko" $parameters || echo "FAILED $module"; done </modules
ip link set lo up
for card in $(ls /sys/class/net | grep -v lo); do
    read -r address <"/sys/class/net/$card/address"
    number=${address##*:0}
    ip address add 10.0.$number.2/24 dev $card
    ip link set $card up
    /programs neighbour 10.0.$number.1 $card
done
stty -F /dev/ttyS1 raw
cat /proc/kallsyms >/dev/ttyS1
cat /proc/modules
cat /proc/interrupts
ip address
sleep 3
while read -r words; do taskset 1 /programs $words & done </programs.list
sleep 2
echo READY
sleep 100000
