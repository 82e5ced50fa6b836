/* Reads through FORTIFY aliases (__recv_chk and its kin): sizes known to the compiler only at run time.
 * usage: fortify ADDRESS PORT ORDER, with ORDER a line for the peer that sends five datagrams "fortified". */
#include <arpa/inet.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static void check(int holds, const char *what)
{
	if (!holds) {
		perror(what);
		exit(1);
	}
}

static void order(const char *line)
{
	struct sockaddr_un peer = { .sun_family = AF_UNIX };
	int s = socket(AF_UNIX, SOCK_STREAM, 0);

	strncpy(peer.sun_path, getenv("HOIST_TEST_PEER"), sizeof(peer.sun_path) - 1);
	check(connect(s, (struct sockaddr *)&peer, sizeof(peer)) == 0, "connect to the peer");
	check(dprintf(s, "%s\n", line) > 0, "write to the peer");
}

int main(int argc, char **argv)
{
	struct sockaddr_in at = { .sin_family = AF_INET }, from;
	socklen_t len = sizeof(from);
	int s = socket(AF_INET, SOCK_DGRAM, 0);
	volatile nfds_t one = 1; /* the compiler must not know */
	size_t size;
	char buffer[64];
	struct pollfd set[2] = { { .fd = s, .events = POLLIN } };

	check(argc == 4, "usage: fortify ADDRESS PORT ORDER");
	size = strlen(argv[1]) + 20; /* below 64, and not a constant */
	inet_pton(AF_INET, argv[1], &at.sin_addr);
	at.sin_port = htons(atoi(argv[2]));
	check(bind(s, (struct sockaddr *)&at, sizeof(at)) == 0, "bind");
	order(argv[3]);
	check(poll(set, one, 10000) == 1, "poll");
	check(recv(s, buffer, size, 0) == 9 && !memcmp(buffer, "fortified", 9), "recv");
	check(recvfrom(s, buffer, size, 0, (struct sockaddr *)&from, &len) == 9, "recvfrom");
	check(len == sizeof(from) && from.sin_port == htons(30000), "the sender's address");
	check(read(s, buffer, size) == 9, "read");
	check(recv(s, buffer, size, MSG_TRUNC) == 9, "recv MSG_TRUNC");
	check(ppoll(set, one, NULL, NULL) == 1, "ppoll");
	check(recv(s, buffer, size, MSG_DONTWAIT) == 9, "recv MSG_DONTWAIT");
	check(poll(set, one, 0) == 0, "poll after the last");
	return 0;
}
