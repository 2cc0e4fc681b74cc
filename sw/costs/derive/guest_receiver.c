/* The program of the recorded machine: receives UDP datagrams on port 9, as sw/apps/sink.py does. */
#include <netinet/in.h>
#include <sys/socket.h>

int main(void)
{
    static char buffer[4096];
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(9)};
    int receiver = socket(AF_INET, SOCK_DGRAM, 0);

    if (receiver < 0 || bind(receiver, (struct sockaddr *)&address, sizeof address))
        return 1;
    for (;;)
        recvfrom(receiver, buffer, sizeof buffer, 0, 0, 0);
}
