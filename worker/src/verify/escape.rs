//! Out of the sandbox, or to more rights in it.

use super::Probe;

/// The attempts. Most ask the kernel for one thing that it must refuse.
pub(super) const PROBES: &[Probe] = &[
    // Init and the supervisors.
    Probe::cheap("kill init", "os.kill(1, 9); time.sleep(0.05); held('init lives')"),
    Probe::new(
        "kill every process",
        "os.kill(-1, 9); time.sleep(0.2); held('only its own')",
    ),
    Probe::new(
        "stop init",
        "os.kill(1, signal.SIGSTOP); time.sleep(0.05); held('init goes on')",
    ),
    Probe::new(
        "terminate init's whole group",
        "os.killpg(1, 15); time.sleep(0.05); held('init lives')",
    ),
    Probe::new(
        "signal init through a pidfd",
        "call('pidfd_send_signal', os.pidfd_open(1), 9, 0, 0); time.sleep(0.05); held('init lives')",
    ),
    Probe::cheap("trace init", "checked(libc.ptrace(16, 1, 0, 0))"),
    Probe::new("seize init", "checked(libc.ptrace(0x4206, 1, 0, 0))"),
    Probe::cheap("read init's environment", "open('/proc/1/environ', 'rb').read(1)"),
    Probe::cheap("open init's memory", "open('/proc/1/mem', 'r+b')"),
    Probe::new("read init's memory map", "open('/proc/1/maps').read(1)"),
    Probe::new(
        "read init's memory by a call",
        "b = ctypes.create_string_buffer(8); v = struct.pack('PP', ctypes.addressof(b), 8); call('process_vm_readv', 1, v, 1, struct.pack('PP', 0x400000, 8), 1, 0)",
    ),
    Probe::new(
        "write init's memory by a call",
        "b = ctypes.create_string_buffer(8); v = struct.pack('PP', ctypes.addressof(b), 8); call('process_vm_writev', 1, v, 1, struct.pack('PP', 0x400000, 8), 1, 0)",
    ),
    Probe::cheap(
        "write to init's output",
        "os.write(os.open('/proc/1/fd/1', os.O_WRONLY), b'frame')",
    ),
    Probe::new("read init's input", "os.open('/proc/1/fd/0', os.O_RDONLY)"),
    Probe::new(
        "take a descriptor from init",
        "call('pidfd_getfd', os.pidfd_open(1), 1, 0)",
    ),
    Probe::new("compare itself with init", "call('kcmp', os.getpid(), 1, 0, 1, 1)"),
    Probe::new("look through init's root", "os.listdir('/proc/1/root/')"),
    Probe::new("look into init's folder", "os.listdir('/proc/1/cwd/')"),
    Probe::new("see init's namespaces", "os.readlink('/proc/1/ns/mnt')"),
    Probe::new(
        "limit init's files",
        "call('prlimit64', 1, 7, struct.pack('QQ', 1, 1), 0)",
    ),
    Probe::new("pin init to a processor", "os.sched_setaffinity(1, {0})"),
    Probe::new("make init slow", "os.setpriority(os.PRIO_PROCESS, 1, 19)"),
    Probe::new(
        "offer init to the out-of-memory killer",
        "write('/proc/1/oom_score_adj', '1000')",
    ),
    Probe::new(
        "move init's pages",
        "call('move_pages', 1, 1, struct.pack('P', 0x400000), 0, struct.pack('i', 0), 2); held('no page was moved')",
    ),
    Probe::cheap(
        "hide from the out-of-memory killer",
        // gVisor takes the number and tells nobody: it has no such killer, and the host's looks at gVisor itself.
        "if platform.release().endswith('-gvisor'): held('gVisor has none')\nwrite('/proc/self/oom_score_adj', '-1000')",
    ),
    Probe::new(
        "overwrite init's file",
        "for path in ['/.hothouse/init', '/hothouse-init', '/sbin/init']:\n  if os.path.exists(path): open(path, 'r+b'); broken(path)\nheld('no such file can be written')",
    ),
    Probe::new(
        "preload a library into everything",
        "os.open('/etc/ld.so.preload', os.O_WRONLY | os.O_CREAT)",
    ),
    Probe::cheap(
        "see processes of others",
        "own = os.getuid()\nothers = [p for p in os.listdir('/proc') if p.isdigit() and os.stat('/proc/' + p).st_uid != own]\nnames = set(open('/proc/%s/comm' % p).read().strip() for p in others)\nif len(others) > 4 or any('init' not in n and 'bwrap' not in n for n in names): broken(names)\nheld('init and its supervisors only')",
    ),
    // The kernel.
    Probe::cheap("press magic keys", "write('/proc/sysrq-trigger', 'h')"),
    Probe::cheap(
        "name a handler for core dumps",
        "now = open('/proc/sys/kernel/core_pattern').read(); write('/proc/sys/kernel/core_pattern', now)",
    ),
    Probe::new(
        "name a loader of modules",
        "now = open('/proc/sys/kernel/modprobe').read(); write('/proc/sys/kernel/modprobe', now)",
    ),
    Probe::new(
        "set a limit of the kernel",
        "now = open('/proc/sys/kernel/pid_max').read(); write('/proc/sys/kernel/pid_max', now)",
    ),
    Probe::new("drop the host's caches", "write('/proc/sys/vm/drop_caches', '1')"),
    Probe::new("name a handler for devices", "write('/sys/kernel/uevent_helper', '')"),
    Probe::new(
        "name a program for binary formats",
        "write('/proc/sys/fs/binfmt_misc/register', '')",
    ),
    Probe::new("read the kernel's memory", "open('/proc/kcore', 'rb').read(1)"),
    Probe::new(
        "read the kernel's messages",
        "call('syslog', 3, ctypes.create_string_buffer(64), 64)",
    ),
    Probe::new(
        "read the kernel's log device",
        "os.read(os.open('/dev/kmsg', os.O_RDONLY | os.O_NONBLOCK), 1)",
    ),
    Probe::new("read the machine's memory", "open('/dev/mem', 'rb').read(1)"),
    Probe::new("use the machine's ports", "call('iopl', 3)"),
    Probe::cheap(
        "load a program into the kernel",
        "call('bpf', 0, ctypes.create_string_buffer(72), 72)",
    ),
    Probe::new("handle page faults", "call('userfaultfd', 1)"),
    Probe::cheap(
        "count events of the kernel",
        "call('perf_event_open', struct.pack('II', 1, 112) + bytes(104), 0, -1, -1, 0)",
    ),
    Probe::cheap(
        "make an io_uring",
        "call('io_uring_setup', 1, ctypes.create_string_buffer(120))",
    ),
    Probe::new("add a key", "call('add_key', b'user', b'hothouse', b'x', 1, -2)"),
    Probe::new("read the session's keys", "call('keyctl', 0, -3, 0)"),
    Probe::cheap("load a module", "call('init_module', 0, 0, b'')"),
    Probe::new("unload a module", "call('delete_module', b'no_such_module', 2048)"),
    Probe::new("load another kernel", "call('kexec_load', 0, 0, 0, 0)"),
    // 0 is the harmless command: what Ctrl-Alt-Delete does.
    Probe::new(
        "touch the machine's restart",
        "call('reboot', 0xfee1dead, 672274793, 0, 0)",
    ),
    Probe::new("turn swap off", "call('swapoff', b'/no/such/device')"),
    Probe::new(
        "set the clock",
        "time.clock_settime(time.CLOCK_REALTIME, time.clock_gettime(time.CLOCK_REALTIME))",
    ),
    Probe::new(
        "tune the clock",
        "call('adjtimex', struct.pack('I', 0x4000) + bytes(204))",
    ),
    Probe::new("turn accounting on", "call('acct', 0)"),
    Probe::new("watch the whole file system", "call('fanotify_init', 0, 0)"),
    Probe::new("hang up the terminal", "call('vhangup')"),
    Probe::new("hide memory from the kernel", "call('memfd_secret', 0)"),
    Probe::new(
        "run in real time",
        "os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))",
    ),
    Probe::new("go before others", "os.nice(-5)"),
    Probe::new("read and write before others", "call('ioprio_set', 1, 0, 1 << 13)"),
    // Namespaces and mounts.
    Probe::cheap(
        "mount something",
        "checked(libc.mount(b'none', b'/workspace', b'tmpfs', 0, None))",
    ),
    Probe::new(
        "bind a folder over another",
        "checked(libc.mount(b'/workspace', b'/tmp', None, 4096, None))",
    ),
    Probe::cheap(
        "make the root writable",
        "checked(libc.mount(None, b'/', None, 32 | 4096, None))",
    ),
    Probe::new("unmount what masks /proc", "checked(libc.umount2(b'/proc/kcore', 2))"),
    Probe::new("unmount /proc", "checked(libc.umount2(b'/proc', 2))"),
    Probe::new("open a file system by the new calls", "call('fsopen', b'tmpfs', 0)"),
    Probe::new("take a copy of the tree of mounts", "call('open_tree', -100, b'/', 1)"),
    Probe::new(
        "change a mount's rights",
        "call('mount_setattr', -100, b'/', 0, bytes(32), 32)",
    ),
    Probe::new("change the root", "os.mkdir('/workspace/r'); os.chroot('/workspace/r')"),
    Probe::new("exchange the root", "call('pivot_root', b'/workspace', b'/workspace')"),
    Probe::cheap(
        "make a user namespace",
        "code = in_child(lambda: call('unshare', 0x10000000))\nif code: held(os.strerror(code >> 8))",
    ),
    Probe::new(
        "make a mount namespace",
        "code = in_child(lambda: call('unshare', 0x20000))\nif code: held(os.strerror(code >> 8))",
    ),
    Probe::new(
        "make a network namespace",
        "code = in_child(lambda: call('unshare', 0x40000000))\nif code: held(os.strerror(code >> 8))",
    ),
    Probe::new(
        "make a process namespace",
        "code = in_child(lambda: call('unshare', 0x20000000))\nif code: held(os.strerror(code >> 8))",
    ),
    Probe::new(
        "make a control group namespace",
        "code = in_child(lambda: call('unshare', 0x2000000))\nif code: held(os.strerror(code >> 8))",
    ),
    Probe::new(
        "fork into a user namespace",
        "r = call('clone', 0x10000000 | 17, 0, 0, 0, 0)\nif r == 0: os._exit(0)",
    ),
    Probe::new(
        "fork into a user namespace by the new call",
        "r = call('clone3', struct.pack('QQQQQQQQ', 0x10000000, 0, 0, 0, 17, 0, 0, 0), 64)\nif r == 0: os._exit(0)",
    ),
    Probe::cheap(
        "enter init's mounts",
        "call('setns', os.open('/proc/1/ns/mnt', os.O_RDONLY), 0)",
    ),
    Probe::new("enter init's network", "call('setns', os.pidfd_open(1), 0x40000000)"),
    Probe::new(
        "open a file by its handle",
        "call('open_by_handle_at', os.open('/', os.O_RDONLY), struct.pack('Ii', 8, 1) + bytes(8), 0)",
    ),
    Probe::new("rename the machine", "call('sethostname', b'x', 1)"),
    Probe::new("rename the domain", "call('setdomainname', b'x', 1)"),
    // Rights.
    Probe::cheap("become root", "os.setuid(0)"),
    Probe::new("join root's group", "os.setgid(0)"),
    Probe::new("join more groups", "os.setgroups([0, 6])"),
    Probe::cheap(
        "have a capability",
        "lines = dict(l.split(':\\t') for l in open('/proc/self/status').read().splitlines() if ':\\t' in l)\nfor set in ['CapInh', 'CapPrm', 'CapEff', 'CapAmb']:\n  if int(lines[set], 16): broken(set + ' ' + lines[set])\nheld('none')",
    ),
    Probe::cheap(
        "gain rights by a program",
        // PR_GET_NO_NEW_PRIVS, because gVisor's status has no line for it.
        "if libc.prctl(39, 0, 0, 0, 0) == 1: held('no new privileges')",
    ),
    Probe::cheap(
        "call the kernel without a filter",
        "status = open('/proc/self/status').read()\nif 'Seccomp:\\t2' in status: held('a filter is in place')",
    ),
    Probe::new(
        "use a set-user-id program",
        "found = subprocess.run('find / -xdev -perm /6000 -type f 2>/dev/null | head -20', shell=True, capture_output=True, text=True).stdout.split()\nfor path in found:\n  if 'su' == os.path.basename(path) and subprocess.run([path, '-c', 'true'], input=b'', capture_output=True).returncode == 0: broken(path)\nheld('%d found, none gives rights' % len(found))",
    ),
    Probe::new(
        "be in a foreign group",
        "extra = [g for g in os.getgroups() if g != os.getgid()]\nif not extra: held('none')\nbroken(extra)",
    ),
    Probe::cheap(
        "make a device",
        "os.mknod('/workspace/disk', stat.S_IFBLK | 0o666, os.makedev(8, 0))",
    ),
    Probe::new(
        "make a memory device",
        "os.mknod('/tmp/mem', stat.S_IFCHR | 0o666, os.makedev(1, 1))",
    ),
    Probe::new(
        "open a disk of the host",
        "for name in os.listdir('/dev'):\n  mode = os.lstat('/dev/' + name).st_mode\n  if stat.S_ISBLK(mode): open('/dev/' + name, 'rb'); broken(name)\nheld('there is none')",
    ),
    Probe::new("open a virtual network device", "os.open('/dev/net/tun', os.O_RDWR)"),
    Probe::new("use a virtual machine's device", "os.open('/dev/kvm', os.O_RDWR)"),
    Probe::new("open a file system in a program", "os.open('/dev/fuse', os.O_RDWR)"),
    // The file system.
    Probe::cheap("write to the root", "open('/hothouse-was-here', 'w')"),
    Probe::cheap("write to the programs", "open('/usr/bin/hothouse-was-here', 'w')"),
    Probe::new("write to the accounts", "open('/etc/passwd', 'a')"),
    Probe::new("read the passwords", "open('/etc/shadow').read()"),
    Probe::cheap(
        "find an engine's socket",
        "for path in ['/var/run/docker.sock', '/run/docker.sock', '/run/containerd/containerd.sock', '/run/podman/podman.sock', '/var/run/crio/crio.sock']:\n  if os.path.exists(path): broken(path)\nheld('there is none')",
    ),
    Probe::new(
        "find a socket of the host",
        "found = subprocess.run('find / -xdev -type s 2>/dev/null | head -3', shell=True, capture_output=True, text=True).stdout.split()\nif found: broken(found)\nheld('there is none')",
    ),
    Probe::cheap(
        "find a folder of the host",
        "for line in open('/proc/mounts'):\n  kind, place, options = line.split()[2], line.split()[1], line.split()[3].split(',')\n  if kind in ('ext4', 'xfs', 'btrfs', 'zfs', 'nfs', 'nfs4', '9p', 'virtiofs') and 'rw' in options and os.access(place, os.W_OK): broken(place)\nheld('none that can be written')",
    ),
    Probe::new(
        "release the control group",
        "paths = glob.glob('/sys/fs/cgroup/**/release_agent', recursive=True)\nfor path in paths: open(path, 'w'); broken(path)\nheld('there is none to write')",
    ),
    Probe::new(
        "raise its own memory limit",
        "paths = [p for n in ('memory.max', 'memory.limit_in_bytes') for p in glob.glob('/sys/fs/cgroup/**/' + n, recursive=True)]\nfor path in paths[:5]: open(path, 'r+'); broken(path)\nheld('there is none to write')",
    ),
    Probe::new("make a control group", "os.mkdir('/sys/fs/cgroup/hothouse-was-here')"),
    Probe::cheap(
        "find a secret in the environment",
        "words = ('KEY', 'TOKEN', 'SECRET', 'PASSWORD', 'DATABASE', 'REDIS', 'HOTHOUSE')\nfound = [name for name in os.environ if any(w in name.upper() for w in words)]\nif found: broken(found)\nheld('there is none')",
    ),
    Probe::cheap(
        "inherit a descriptor",
        "if INHERITED: broken(INHERITED)\nheld('there is none')",
    ),
    Probe::new(
        "type into init's terminal",
        "fcntl.ioctl(os.open('/dev/tty', os.O_RDWR), 0x5412, b'x')",
    ),
    Probe::new(
        "dump its core",
        "limit = resource.getrlimit(resource.RLIMIT_CORE)\nif limit == (0, 0): held('no core may be written')\nbroken(limit)",
    ),
];
