#!/bin/busybox sh
# First program of the recorded machine: brings the cards up, tells the host every kernel symbol, runs the receiver.
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
echo 0 >/proc/sys/kernel/kptr_restrict
echo 1 >/proc/irq/default_smp_affinity
while read -r module parameters; do insmod "/$module.ko" $parameters || echo "FAILED $module"; done </modules
number=0
for card in $(ls /sys/class/net | grep -v lo); do
    ip address add 10.0.$number.2/24 dev $card
    ip link set $card up
    number=$((number + 1))
done
stty -F /dev/ttyS1 raw
cat /proc/kallsyms >/dev/ttyS1
cat /proc/modules
cat /proc/interrupts
sleep 3
taskset 1 /receiver &
sleep 2
echo READY
sleep 100000
