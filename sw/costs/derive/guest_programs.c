/* The programs of the recorded machine, by their first argument:
 *   sink PORT [MICROSECONDS]  receives UDP datagrams, as sw/apps/sink.py does; polls the card so long (SO_BUSY_POLL)
 *   echo PORT                 sends UDP datagrams back
 *   stream PORT [echo]        takes a TCP connection, reads, and sends back what it reads
 *   rawdrop PORT              waits for a datagram, then adds `iptables -t raw -A PREROUTING -p udp -j DROP`
 *   neighbour ADDRESS LINK    `arp -s ADDRESS 02:00:00:00:01:00`
 */
#include <arpa/inet.h>
#include <linux/netfilter_ipv4/ip_tables.h>
#include <net/if_arp.h>
#include <netinet/in.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

static char buffer[65536];

static int bound(int type, const char *port)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(atoi(port))};
    int made = socket(AF_INET, type, 0);

    if (made < 0 || bind(made, (struct sockaddr *)&address, sizeof address)) {
        perror(port);
        exit(1);
    }
    return made;
}

static void sink(int receiver, const char *microseconds)
{
    int time = microseconds ? atoi(microseconds) : 0;

    if (time && setsockopt(receiver, SOL_SOCKET, SO_BUSY_POLL, &time, sizeof time))
        perror("SO_BUSY_POLL");
    for (;;)
        recvfrom(receiver, buffer, 4096, 0, 0, 0);
}

static void echo(int receiver)
{
    struct sockaddr_in from;

    for (;;) {
        socklen_t size = sizeof from;
        ssize_t length = recvfrom(receiver, buffer, 4096, 0, (struct sockaddr *)&from, &size);

        if (length >= 0)
            sendto(receiver, buffer, length, 0, (struct sockaddr *)&from, size);
    }
}

static void stream(int listener, int back)
{
    listen(listener, 1);
    for (;;) {
        int connection = accept(listener, 0, 0);
        ssize_t length;

        while ((length = recv(connection, buffer, sizeof buffer, 0)) > 0)
            if (back)
                send(connection, buffer, length, 0);
        close(connection);
    }
}

/* One table: the rule, the two chains' policies, the end. */
struct standard {
    struct ipt_entry entry;
    struct xt_standard_target target;
};

struct last {
    struct ipt_entry entry;
    struct xt_error_target target;
};

static struct {
    struct ipt_replace replace;
    struct standard rule, prerouting, output;
    struct last end;
} table;

static struct standard verdict(int protocol, int said)
{
    struct standard made = {0};

    made.entry.ip.proto = protocol;
    made.entry.target_offset = sizeof made.entry;
    made.entry.next_offset = sizeof made;
    made.target.target.u.target_size = sizeof made.target;
    made.target.verdict = -said - 1;
    return made;
}

static void rawdrop(void)
{
    int raw = socket(AF_INET, SOCK_RAW, IPPROTO_RAW);
    struct ipt_getinfo info = {.name = "raw"};
    socklen_t size = sizeof info;
    unsigned start = offsetof(__typeof__(table), rule);

    if (getsockopt(raw, SOL_IP, IPT_SO_GET_INFO, &info, &size))
        perror("IPT_SO_GET_INFO");
    table.rule = verdict(IPPROTO_UDP, NF_DROP);
    table.prerouting = table.output = verdict(0, NF_ACCEPT);
    table.end.entry.target_offset = sizeof table.end.entry;
    table.end.entry.next_offset = sizeof table.end;
    table.end.target.target.u.user.target_size = sizeof table.end.target;
    strcpy(table.end.target.target.u.user.name, XT_ERROR_TARGET);
    strcpy(table.end.target.errorname, "ERROR");
    strcpy(table.replace.name, "raw");
    table.replace.valid_hooks = info.valid_hooks;
    table.replace.num_entries = 4;
    table.replace.size = sizeof table - start;
    table.replace.hook_entry[NF_INET_PRE_ROUTING] = 0;
    table.replace.underflow[NF_INET_PRE_ROUTING] = offsetof(__typeof__(table), prerouting) - start;
    table.replace.hook_entry[NF_INET_LOCAL_OUT] = offsetof(__typeof__(table), output) - start;
    table.replace.underflow[NF_INET_LOCAL_OUT] = offsetof(__typeof__(table), output) - start;
    table.replace.num_counters = info.num_entries;
    table.replace.counters = calloc(info.num_entries, sizeof(struct xt_counters));
    if (setsockopt(raw, SOL_IP, IPT_SO_SET_REPLACE, &table, sizeof table))
        perror("IPT_SO_SET_REPLACE");
    else
        puts("raw table set");
}

static void neighbour(const char *address, const char *link)
{
    struct arpreq request = {.arp_flags = ATF_COM | ATF_PERM, .arp_ha = {ARPHRD_ETHER, {2, 0, 0, 0, 1, 0}}};
    struct sockaddr_in *place = (struct sockaddr_in *)&request.arp_pa;

    place->sin_family = AF_INET;
    inet_aton(address, &place->sin_addr);
    strcpy(request.arp_dev, link);
    if (ioctl(socket(AF_INET, SOCK_DGRAM, 0), SIOCSARP, &request))
        perror("SIOCSARP");
}

int main(int count, char **words)
{
    const char *name = words[1], *more = count > 3 ? words[3] : 0;

    setlinebuf(stdout);
    if (!strcmp(name, "sink"))
        sink(bound(SOCK_DGRAM, words[2]), more);
    else if (!strcmp(name, "echo"))
        echo(bound(SOCK_DGRAM, words[2]));
    else if (!strcmp(name, "stream"))
        stream(bound(SOCK_STREAM, words[2]), !!more);
    else if (!strcmp(name, "neighbour"))
        neighbour(words[2], more);
    else if (!strcmp(name, "rawdrop")) {
        recvfrom(bound(SOCK_DGRAM, words[2]), buffer, sizeof buffer, 0, 0, 0);
        rawdrop();
        pause();
    }
    return 0;
}
