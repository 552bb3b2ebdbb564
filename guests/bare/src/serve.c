/*
 * Answers ARP (RFC 826), ICMP echo (RFC 792) and the register protocol over UDP (RFC 768). Answers go back to where the
 * frame came from, so no routes and no neighbour table are needed; the gateway is only greeted, so that the network
 * learns where this guest is.
 */
#include "cpu.h"
#include "net.h"
#include "registers.h"
#include "text.h"
#include "work.h"

enum {
	ETHERTYPE_IPV4 = 0x0800,
	ETHERTYPE_ARP = 0x0806,

	ARP_SIZE = 28,
	ARP_REQUEST = 1,
	ARP_REPLY = 2,

	IP_HEADER = 20,
	IP_DONT_FRAGMENT = 0x4000,
	IP_FRAGMENT = 0x3fff, /* more fragments, and the offset */
	IP_TTL = 64,
	PROTOCOL_ICMP = 1,
	PROTOCOL_UDP = 17,

	ICMP_HEADER = 8,
	ICMP_ECHO_REQUEST = 8,
	ICMP_ECHO_REPLY = 0,
	UDP_HEADER = 8,

	BATCH = 64, /* frames a step */
};

static const uint8_t broadcast[6] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff};

static uint32_t address, gateway;
static uint16_t port;
static bool gateway_known;
static uint64_t frames_in, frames_out, arp_answers, echo_answers, dropped;

/* Adds the 16-bit words of a buffer to a one's complement sum (RFC 1071). */
static uint64_t sum_words(uint64_t sum, const uint8_t *p, size_t n)
{
	for (; n >= 2; p += 2, n -= 2)
		sum += load_be16(p);
	return n ? sum + ((uint64_t)p[0] << 8) : sum;
}

static uint16_t finish_checksum(uint64_t sum)
{
	while (sum >> 16)
		sum = (sum & 0xffff) + (sum >> 16);
	return (uint16_t)~sum;
}

static uint16_t checksum(const uint8_t *p, size_t n)
{
	return finish_checksum(sum_words(0, p, n));
}

/* The checksum of a UDP datagram with its pseudo header; ip is the header before it. */
static uint16_t udp_checksum(const uint8_t *ip, const uint8_t *udp, size_t n)
{
	return finish_checksum(sum_words(sum_words(PROTOCOL_UDP + n, ip + 12, 8), udp, n));
}

static void send(size_t length)
{
	net_transmit(length);
	frames_out++;
}

static void write_ethernet(uint8_t *frame, const uint8_t *to, uint16_t type)
{
	memcpy(frame, to, 6);
	memcpy(frame + 6, net_mac, 6);
	store_be16(frame + 12, type);
}

static void send_arp(uint8_t *out, uint16_t op, const uint8_t *to_mac, const uint8_t *target_mac, uint32_t target)
{
	static const uint8_t ethernet_ipv4[] = {0, 1, 8, 0, 6, 4};
	uint8_t *arp = out + ETHERNET_HEADER;

	write_ethernet(out, to_mac, ETHERTYPE_ARP);
	memcpy(arp, ethernet_ipv4, sizeof(ethernet_ipv4));
	store_be16(arp + 6, op);
	memcpy(arp + 8, net_mac, 6);
	store_be32(arp + 14, address);
	memcpy(arp + 18, target_mac, 6);
	store_be32(arp + 24, target);
	send(ETHERNET_HEADER + ARP_SIZE);
}

static bool handle_arp(const uint8_t *in, size_t length, uint8_t *out)
{
	static const uint8_t ethernet_ipv4[] = {0, 1, 8, 0, 6, 4};
	const uint8_t *arp = in + ETHERNET_HEADER;

	if (length < ETHERNET_HEADER + ARP_SIZE || memcmp(arp, ethernet_ipv4, sizeof(ethernet_ipv4)) != 0)
		return false;
	uint32_t sender = load_be32(arp + 14);

	if (load_be32(arp + 24) != address)
		return false;
	if (load_be16(arp + 6) == ARP_REPLY && sender == gateway) {
		gateway_known = true;
		return true;
	}
	if (load_be16(arp + 6) != ARP_REQUEST)
		return false;
	send_arp(out, ARP_REPLY, arp + 8, arp + 8, sender);
	arp_answers++;
	return true;
}

/* Writes the IPv4 header of an answer to the packet in, whose payload has length bytes, and sends the frame. */
static void send_ip(const uint8_t *in, uint8_t *out, uint8_t protocol, size_t length)
{
	const uint8_t *from = in + ETHERNET_HEADER;
	uint8_t *ip = out + ETHERNET_HEADER;

	write_ethernet(out, in + 6, ETHERTYPE_IPV4);
	memset(ip, 0, IP_HEADER);
	ip[0] = 0x45;
	store_be16(ip + 2, (uint16_t)(IP_HEADER + length));
	store_be16(ip + 6, IP_DONT_FRAGMENT); /* never a fragment, so it needs no identification (RFC 6864) */
	ip[8] = IP_TTL;
	ip[9] = protocol;
	store_be32(ip + 12, address);
	memcpy(ip + 16, from + 12, 4);
	store_be16(ip + 10, checksum(ip, IP_HEADER));
	if (protocol == PROTOCOL_UDP) {
		uint8_t *udp = ip + IP_HEADER;
		uint16_t sum = udp_checksum(ip, udp, length);

		store_be16(udp + 6, sum ? sum : 0xffff); /* zero would mean none */
	}
	send(ETHERNET_HEADER + IP_HEADER + length);
}

static bool handle_icmp(const uint8_t *in, const uint8_t *icmp, size_t length, uint8_t *out)
{
	uint8_t *answer = out + ETHERNET_HEADER + IP_HEADER;

	if (length < ICMP_HEADER || icmp[0] != ICMP_ECHO_REQUEST || icmp[1] != 0 || checksum(icmp, length) != 0)
		return false;
	memcpy(answer, icmp, length);
	answer[0] = ICMP_ECHO_REPLY;
	store_be16(answer + 2, 0);
	store_be16(answer + 2, checksum(answer, length));
	send_ip(in, out, PROTOCOL_ICMP, length);
	echo_answers++;
	return true;
}

static bool handle_udp(const uint8_t *in, const uint8_t *ip, const uint8_t *udp, size_t length, uint8_t *out)
{
	uint8_t *answer = out + ETHERNET_HEADER + IP_HEADER;

	if (length < UDP_HEADER || load_be16(udp + 2) != port)
		return false;
	size_t size = load_be16(udp + 4);

	if (size < UDP_HEADER || size > length)
		return false;
	if (load_be16(udp + 6) != 0 && udp_checksum(ip, udp, size) != 0)
		return false;
	if (!registers_execute(udp + UDP_HEADER, size - UDP_HEADER, answer + UDP_HEADER))
		return false;
	store_be16(answer, port);
	memcpy(answer + 2, udp, 2);
	store_be16(answer + 4, UDP_HEADER + REGISTER_ANSWER_SIZE);
	store_be16(answer + 6, 0);
	send_ip(in, out, PROTOCOL_UDP, UDP_HEADER + REGISTER_ANSWER_SIZE);
	return true;
}

static bool handle_ipv4(const uint8_t *in, size_t length, uint8_t *out)
{
	const uint8_t *ip = in + ETHERNET_HEADER;

	if (length < ETHERNET_HEADER + IP_HEADER)
		return false;
	size_t header = (ip[0] & 15) * 4u, total = load_be16(ip + 2); /* frames may carry padding behind total */

	if (ip[0] >> 4 != 4 || header < IP_HEADER || total < header || total > length - ETHERNET_HEADER)
		return false;
	if (checksum(ip, header) != 0 || load_be16(ip + 6) & IP_FRAGMENT || load_be32(ip + 16) != address)
		return false;
	/* The answer to an echo is as long as the question; one with IP options isn't longer than it. */
	if (total > FRAME_MAX - ETHERNET_HEADER)
		return false;
	switch (ip[9]) {
	case PROTOCOL_ICMP:
		return handle_icmp(in, ip + header, total - header, out);
	case PROTOCOL_UDP:
		return handle_udp(in, ip, ip + header, total - header, out);
	default:
		return false;
	}
}

static bool handle(const uint8_t *in, size_t length, uint8_t *out)
{
	if (length < ETHERNET_HEADER)
		return false;
	if (memcmp(in, net_mac, 6) != 0 && memcmp(in, broadcast, 6) != 0)
		return false;
	switch (load_be16(in + 12)) {
	case ETHERTYPE_ARP:
		return handle_arp(in, length, out);
	case ETHERTYPE_IPV4:
		return handle_ipv4(in, length, out);
	default:
		return false;
	}
}

/* Asks for the gateway, or without one announces this guest (RFC 5227, 2.3). */
static void greet(void)
{
	static const uint8_t unknown[6];
	uint8_t *out = net_transmit_buffer();

	if (!out)
		return;
	send_arp(out, ARP_REQUEST, broadcast, unknown, gateway ? gateway : address);
	net_flush();
}

void serve_init(const struct options *options)
{
	address = options->address;
	gateway = options->gateway;
	port = options->port;
	registers_init(options->seed);
	net_init(options->poll_devices, options->seed);
	print_line("net: mac=%02x:%02x:%02x:%02x:%02x:%02x ip=%u.%u.%u.%u/%u port=%u irq=%s", net_mac[0], net_mac[1],
		   net_mac[2], net_mac[3], net_mac[4], net_mac[5], address >> 24, address >> 16 & 255,
		   address >> 8 & 255, address & 255, options->prefix, port, net_is_polled() ? "poll" : "msix");
	greet();
}

bool serve_step(uint64_t now)
{
	unsigned taken = 0;

	(void)now;
	for (; taken < BATCH; taken++) {
		/* A frame is taken only when its answer can be sent: a full transmit queue pushes back on the sender. */
		uint8_t *out = net_transmit_buffer();
		size_t length;
		const uint8_t *in = out ? net_receive(&length) : NULL;

		if (!in)
			break;
		frames_in++;
		if (!handle(in, length, out))
			dropped++;
		net_receive_done();
	}
	net_flush();
	return taken == BATCH || net_is_polled();
}

uint64_t serve_answers(void)
{
	return registers_answers();
}

void serve_report(struct line *line)
{
	net_check_health();
	if (gateway && !gateway_known)
		greet();
	line_append(line, " answers=%lu echoes=%lu arps=%lu frames_in=%lu frames_out=%lu dropped=%lu gateway=%s",
		    registers_answers(), echo_answers, arp_answers, frames_in, frames_out, dropped,
		    !gateway ? "none" : gateway_known ? "known" : "unknown");
}
