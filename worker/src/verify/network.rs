//! To other machines, the host, or its services.

use super::Probe;

/// The attempts. A sandbox has a loopback of its own and nothing else.
pub(super) const PROBES: &[Probe] = &[
    Probe::cheap(
        "have an interface",
        "names = [name for _, name in socket.if_nameindex()]\nif names in ([], ['lo']): held(names)\nbroken(names)",
    ),
    Probe::cheap(
        "have a route",
        "lines = open('/proc/net/route').read().splitlines()[1:]\nif not lines: held('none')\nbroken(lines)",
    ),
    Probe::new(
        "have a route of the newer protocol",
        "lines = [l for l in open('/proc/net/ipv6_route').read().splitlines() if not l.endswith('lo')]\nif not lines: held('none')\nbroken(lines)",
    ),
    Probe::cheap("reach the cloud's metadata", "connects(('169.254.169.254', 80))"),
    Probe::new(
        "reach the cloud's metadata by the newer protocol",
        "connects(('fd00:ec2::254', 80), family=socket.AF_INET6)",
    ),
    Probe::new("reach another cloud's metadata", "connects(('100.100.100.200', 80))"),
    Probe::new("reach the engine's bridge", "connects(('172.17.0.1', 80))"),
    Probe::new("reach a private network of class A", "connects(('10.0.0.1', 22))"),
    Probe::new("reach a private network of class C", "connects(('192.168.0.1', 80))"),
    Probe::cheap("reach a resolver", "connects(('8.8.8.8', 53))"),
    Probe::new(
        "reach a resolver by datagram",
        "connects(('8.8.8.8', 53), socket.SOCK_DGRAM)",
    ),
    Probe::new("reach a resolver over TLS", "connects(('1.1.1.1', 853))"),
    Probe::new("reach a resolver over HTTPS", "connects(('1.1.1.1', 443))"),
    Probe::new(
        "reach a host by the newer protocol",
        "connects(('2606:4700:4700::1111', 443), family=socket.AF_INET6)",
    ),
    Probe::new(
        "reach a host by the mapped form",
        "connects(('::ffff:8.8.8.8', 53), family=socket.AF_INET6)",
    ),
    Probe::cheap("resolve a name", "socket.getaddrinfo('example.com', 80)"),
    Probe::new(
        "resolve the metadata's name",
        "socket.getaddrinfo('metadata.google.internal', 80)",
    ),
    Probe::new(
        "resolve the engine's name for the host",
        "socket.getaddrinfo('host.docker.internal', 80)",
    ),
    Probe::new(
        "name a resolver of its own",
        "write('/etc/resolv.conf', 'nameserver 8.8.8.8')",
    ),
    Probe::new("name a host of its own", "write('/etc/hosts', '8.8.8.8 x')"),
    Probe::cheap("reach Postgres at the loopback", "connects(('127.0.0.1', 5432))"),
    Probe::new("reach Redis at the loopback", "connects(('127.0.0.1', 6379))"),
    Probe::new("reach the engine at the loopback", "connects(('127.0.0.1', 2375))"),
    Probe::new("reach the API at the loopback", "connects(('127.0.0.1', 8080))"),
    Probe::new("reach a secure shell at the loopback", "connects(('127.0.0.1', 22))"),
    Probe::new("reach the loopback by another address", "connects(('127.1.2.3', 22))"),
    Probe::new(
        "reach the loopback by the newer protocol",
        "connects(('::1', 22), family=socket.AF_INET6)",
    ),
    Probe::new("reach the loopback by zero", "connects(('0.0.0.0', 6379))"),
    Probe::new(
        "ping a host",
        "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM, 1); s.settimeout(1.5); s.connect(('8.8.8.8', 0)); s.send(struct.pack('BBHHH', 8, 0, 0xf7ff, 0, 0)); s.recv(1)",
    ),
    Probe::cheap("make a raw socket", "socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)"),
    Probe::cheap(
        "make a packet socket",
        "socket.socket(socket.AF_PACKET, socket.SOCK_RAW)",
    ),
    Probe::cheap("talk to the hypervisor", "socket.socket(40, socket.SOCK_STREAM)"),
    Probe::cheap("use the kernel's cryptography", "socket.socket(38, 5)"),
    // Of this family the kernel makes both and then has no pairs: that it says so means that it was asked.
    Probe::cheap(
        "ask the kernel for a pair of internet sockets",
        "try: socket.socketpair(socket.AF_INET)\nexcept OSError as e:\n    if e.errno == errno.EOPNOTSUPP: broken(e)\n    raise",
    ),
    Probe::new(
        "make a pair of sockets of a cluster",
        "socket.socketpair(30, socket.SOCK_SEQPACKET)",
    ),
    Probe::new("talk to a bluetooth device", "socket.socket(31, socket.SOCK_RAW)"),
    Probe::new("talk on a bus", "socket.socket(29, socket.SOCK_RAW)"),
    Probe::new(
        "talk to the audit",
        "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 9).send(struct.pack('IHHII', 16, 1000, 5, 0, 0)); held('nobody listens')",
    ),
    Probe::new(
        "bring an interface up",
        "fcntl.ioctl(socket.socket(), 0x8914, b'lo' + bytes(14) + struct.pack('H', 0x41) + bytes(14))",
    ),
    Probe::new(
        "add an address",
        "fcntl.ioctl(socket.socket(), 0x8916, b'lo' + bytes(14) + struct.pack('HH4s8x', 2, 0, bytes([10, 9, 9, 9])))",
    ),
    Probe::new("add a route", "fcntl.ioctl(socket.socket(), 0x890b, bytes(120))"),
    Probe::new(
        "send to everybody",
        "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.setsockopt(1, 6, 1); s.sendto(b'x', ('255.255.255.255', 9))",
    ),
    Probe::new(
        "send to a group",
        "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('224.0.0.251', 5353))",
    ),
    Probe::cheap(
        "find a host's socket without a file",
        "names = [l.split()[-1] for l in open('/proc/net/unix').read().splitlines()[1:] if l.split()[-1].startswith('@')]\nif names: broken(names)\nheld('there is none')",
    ),
];
