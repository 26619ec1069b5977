//! The way out of real sandboxes, with every driver: what is allowed arrives, and every attempt at more fails.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]

use std::time::Duration;

use common::clock::Clock;
use worker::egress::{Ledger, Policy, Proxy, Refusal, Row, Settings};
use worker::sandbox::{Output, RunSpec, Running, Sandbox};

use crate::conformance::Subject;
use crate::docker::eventually;
use crate::egress_server::{SECURE, Server};

macro_rules! ways_out {
    ($driver:ident, $subject:path; $($promise:ident),* $(,)?) => {
        mod $driver {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $promise() {
                let subject = $subject().await;
                Box::pin(super::$promise(&subject)).await;
                subject.has_nothing_left().await;
            })*
        }
    };
    ($($promise:ident),* $(,)?) => {
        ways_out!(docker, crate::docker::subject; $($promise),*);
        ways_out!(bubblewrap, crate::sandbox_bubblewrap::subject; $($promise),*);
    };
}

ways_out!(
    what_both_lists_name_is_reached,
    a_private_address_is_refused_unless_the_operator_opens_it,
    what_a_list_does_not_name_is_refused,
    there_is_no_other_way,
    a_redirect_to_a_private_address_is_refused,
    tls_must_go_where_connect_said,
    requests_with_two_meanings_are_refused,
    a_slow_request_is_given_up,
    a_second_request_reaches_nobody,
    tunnels_end_with_their_attempt,
    tunnels_end_with_their_program,
    ten_thousand_connections_harm_nobody,
    bytes_are_capped,
    connections_are_capped_at_once_in_a_second_and_in_all,
    a_connection_that_stands_still_is_closed,
    wildcards_name_what_is_below_them_at_their_port,
    much_passes_unchanged_both_ways,
    one_silent_connection_holds_up_no_other,
);

/// What scripts begin with: `ask` sends bytes to the proxy and reads to the end.
const PRELUDE: &str = "
import os, socket, ssl, sys, urllib.request, urllib.error
PLAIN, TLS = os.environ['PLAIN'], os.environ['TLS']
def proxy():
    s = socket.create_connection(('127.0.0.1', 3128)); s.settimeout(20); return s
def rest(s):
    data = b''
    try:
        while True:
            piece = s.recv(65536)
            if not piece: return data
            data += piece
    except ConnectionResetError:
        return data
def ask(raw):
    s = proxy(); s.sendall(raw); return rest(s)
def status(raw):
    answer = ask(raw); head = answer.split(b'\\r\\n\\r\\n')[0].decode()
    code = [l.split(': ')[1] for l in head.split('\\r\\n') if l.startswith('X-Hothouse-Egress')]
    return head.split(' ')[1] + ' ' + ''.join(code)
def connect(where):
    s = proxy(); s.sendall(f'CONNECT {where} HTTP/1.1\\r\\nHost: {where}\\r\\n\\r\\n'.encode())
    answer = s.recv(65536).decode(); return s, answer.split(' ')[1]
def fetch(url):
    context = ssl.create_default_context(cadata=os.environ['CA'])
    try:
        return urllib.request.urlopen(url, timeout=20, context=context).read()
    except urllib.error.HTTPError as e:
        return f'{e.code} {e.headers[\"X-Hothouse-Egress\"]}'
    except OSError as e:
        return f'failed: {e}'
";

struct World {
    sandbox: Sandbox,
    plain: Server,
    tls: Server,
    settings: Settings,
    ledger: Ledger,
}

impl World {
    async fn new(subject: &Subject, change: impl FnOnce(&mut Settings)) -> Self {
        let here: Vec<std::net::IpAddr> = vec!["127.0.0.1".parse().unwrap()];
        let hosts = [
            ("plain.test", here.clone()),
            (SECURE, here.clone()),
            ("other.test", here),
            ("private.test", vec!["10.255.255.1".parse().unwrap()]),
        ];
        let mut settings = Settings {
            private: vec!["127.0.0.1/32".parse().unwrap()],
            hosts: hosts.map(|(name, addresses)| (name.to_owned(), addresses)).into(),
            ..Settings::default()
        };
        change(&mut settings);
        Self {
            sandbox: subject.sandbox().await,
            plain: Server::plain().await,
            tls: Server::tls().await,
            ledger: Ledger::new(&settings, &Clock::system()),
            settings,
        }
    }

    /// Everything that the servers are.
    fn open(&self) -> Policy {
        let all = [
            format!("plain.test:{}", self.plain.address.port()),
            format!("{SECURE}:{}", self.tls.address.port()),
            format!("127.0.0.1:{}", self.tls.address.port()),
            "private.test".to_owned(),
        ];
        Policy::new(&all, &all)
    }

    fn proxy(&self, policy: Policy) -> Proxy<'_> {
        Proxy {
            settings: &self.settings,
            policy,
            ledger: &self.ledger,
        }
    }

    fn spec(&self, script: &str) -> RunSpec {
        let own = [
            ("PATH", "/usr/local/bin:/usr/bin:/bin".to_owned()),
            ("PLAIN", format!("plain.test:{}", self.plain.address.port())),
            ("TLS", format!("{SECURE}:{}", self.tls.address.port())),
            ("CA", self.tls.certificate.clone()),
            ("PYTHONUNBUFFERED", "1".to_owned()),
        ];
        let own = own.map(|(name, value)| (name.to_owned(), value));
        RunSpec {
            env: own.into_iter().chain(worker::egress::variables()).collect(),
            ..RunSpec::new(["python3".to_owned(), "-c".to_owned(), format!("{PRELUDE}{script}")])
        }
    }

    /// What a script prints while the way out is open.
    async fn run(&self, policy: Policy, script: &str) -> String {
        let work = async {
            let running = self.sandbox.run(self.spec(script)).await.unwrap();
            finish(running).await
        };
        self.proxy(policy).during(&self.sandbox, work).await
    }

    fn rows(&self) -> Vec<Row> {
        self.ledger.take_rows()
    }

    fn refusals(&self) -> Vec<Option<Refusal>> {
        self.rows().into_iter().map(|row| row.refusal).collect()
    }
}

async fn finish(mut running: Running) -> String {
    let mut text = Vec::new();
    while let Some(output) = running.next().await {
        if let Output::Stdout(data) | Output::Stderr(data) = output {
            text.extend_from_slice(&data);
        }
    }
    running.wait().await.unwrap();
    String::from_utf8_lossy(&text).trim().to_owned()
}

/// Reads until the output ends like this.
async fn read_until(running: &mut Running, end: &str) -> String {
    let mut text = String::new();
    while !text.ends_with(end) {
        match running.next().await {
            Some(Output::Stdout(data) | Output::Stderr(data)) => text.push_str(&String::from_utf8_lossy(&data)),
            other => panic!("{text} {other:?}"),
        }
    }
    text
}

async fn what_both_lists_name_is_reached(subject: &Subject) {
    let world = World::new(subject, |_| {}).await;
    let script = "print(fetch(f'http://{PLAIN}/a?b=c'), fetch(f'https://{TLS}/'))";
    let printed = world.run(world.open(), script).await;
    assert_eq!(printed, "b'hello from outside' b'hello from outside'");
    assert!(
        world
            .plain
            .heard()
            .starts_with("GET /a?b=c HTTP/1.1\r\nHost: plain.test:")
    );
    let rows = world.rows();
    let seen: Vec<_> = rows
        .iter()
        .map(|row| {
            (
                row.method.as_deref().unwrap(),
                row.is_allowed,
                row.address.unwrap().to_string(),
            )
        })
        .collect();
    assert_eq!(
        seen,
        [
            ("GET", true, "127.0.0.1".to_owned()),
            ("CONNECT", true, "127.0.0.1".to_owned())
        ]
    );
    assert!(
        rows.iter()
            .all(|row| row.sent_bytes > 0 && row.received_bytes > 0 && row.duration.is_some())
    );
}

async fn a_private_address_is_refused_unless_the_operator_opens_it(subject: &Subject) {
    let world = World::new(subject, |settings| settings.private.clear()).await;
    let script = "print(fetch(f'http://{PLAIN}/'), fetch(f'https://{TLS}/'), fetch('http://private.test/'))";
    let printed = world.run(world.open(), script).await;
    assert!(printed.starts_with("403 private_address failed: "), "{printed}");
    assert!(printed.ends_with(" 403 private_address"), "{printed}");
    assert_eq!((world.plain.connections(), world.tls.connections()), (0, 0));
    assert_eq!(world.refusals(), [Some(Refusal::PrivateAddress); 3]);
}

async fn what_a_list_does_not_name_is_refused(subject: &Subject) {
    let world = World::new(subject, |_| {}).await;
    let plain = [format!("plain.test:{}", world.plain.address.port())];
    let script = "print(fetch(f'http://{PLAIN}/'))";
    for (environment, job, expected) in [
        (&[][..], &[][..], "403 not_in_environment"),
        (&[], &plain, "403 not_in_environment"),
        (&plain, &[], "403 not_in_job"),
        (&plain, &["*".to_owned()], "403 broken_list"),
        (&plain, &["plain.test".to_owned()], "403 not_in_job"),
    ] {
        // The sandbox is warm and the same; what it may reach is said anew each time.
        assert_eq!(world.run(Policy::new(environment, job), script).await, expected);
    }
    assert_eq!(world.run(Policy::default(), script).await, "403 broken_list");
    assert_eq!(world.plain.connections(), 0);
    assert_eq!(
        world.run(Policy::new(&plain, &plain), script).await,
        "b'hello from outside'"
    );
}

async fn there_is_no_other_way(subject: &Subject) {
    let world = World::new(subject, |_| {}).await;
    let script = "
import errno
def tried(how):
    try: how(); return 'OPEN'
    except OSError as e: return 'closed'
def udp(to):
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.sendto(b'x', to); s.settimeout(1); s.recv(10)
port = int(PLAIN.split(':')[1])
print(tried(lambda: socket.create_connection(('127.0.0.1', port), 2)),
    tried(lambda: socket.create_connection(('1.1.1.1', 443), 2)),
    tried(lambda: socket.create_connection(('10.0.0.1', 80), 2)),
    tried(lambda: socket.create_connection(('169.254.169.254', 80), 2)),
    tried(lambda: socket.create_connection(('2606:4700:4700::1111', 443), 2)),
    tried(lambda: socket.getaddrinfo('plain.test', 80)),
    tried(lambda: socket.getaddrinfo('example.org', 80)),
    tried(lambda: udp(('1.1.1.1', 53))), tried(lambda: udp(('127.0.0.53', 53))))
print(status(b'CONNECT 1.1.1.1:443 HTTP/1.1\\r\\n\\r\\n'), status(b'CONNECT 169.254.169.254:80 HTTP/1.1\\r\\n\\r\\n'),
    status(b'GET http://[::ffff:127.0.0.1]/ HTTP/1.1\\r\\nHost: [::ffff:127.0.0.1]\\r\\n\\r\\n'),
    status(b'GET http://2130706433/ HTTP/1.1\\r\\nHost: 2130706433\\r\\n\\r\\n'))
";
    let printed = world.run(world.open(), script).await;
    let no = "403 not_in_environment";
    assert_eq!(
        printed,
        format!("{}closed\n{no} {no} {no} 400 malformed", "closed ".repeat(8))
    );
    assert_eq!(world.plain.connections(), 0);
}

async fn a_redirect_to_a_private_address_is_refused(subject: &Subject) {
    let world = World::new(subject, |_| {}).await;
    let printed = world
        .run(world.open(), "print(fetch(f'http://{PLAIN}/redirect'))")
        .await;
    assert_eq!(printed, "403 private_address");
    assert_eq!(world.refusals(), [None, Some(Refusal::PrivateAddress)]);
}

async fn tls_must_go_where_connect_said(subject: &Subject) {
    let world = World::new(subject, |_| {}).await;
    let script = "
def shake(where, name):
    s, code = connect(where)
    context = ssl._create_unverified_context(); context.check_hostname = False
    try: context.wrap_socket(s, server_hostname=name); return code + ' open'
    except OSError: return code + ' cut'
def say(where, what):
    s, code = connect(where); s.sendall(what); return code + ' ' + repr(rest(s))
port = TLS.split(':')[1]
print(shake(TLS, 'secure.test'), shake(TLS, 'SECURE.test'), shake(TLS, 'other.test'), shake(TLS, None),
    shake(f'127.0.0.1:{port}', None), shake(f'127.0.0.1:{port}', 'secure.test'))
print(say(TLS, b'GET / HTTP/1.1\\r\\nHost: other.test\\r\\n\\r\\n'), say(TLS, b'SSH-2.0-x\\r\\n'))
";
    let printed = world.run(world.open(), script).await;
    assert_eq!(
        printed,
        "200 open 200 open 200 cut 200 cut 200 open 200 cut\n200 b'' 200 b''"
    );
    let (name, none, tls) = (Refusal::ServerNameMismatch, Refusal::NoServerName, Refusal::NotTls);
    assert_eq!(
        world.refusals(),
        [
            None,
            None,
            Some(name),
            Some(none),
            None,
            Some(name),
            Some(tls),
            Some(tls)
        ]
    );
    assert_eq!(world.tls.heard(), "");
}

async fn requests_with_two_meanings_are_refused(subject: &Subject) {
    let world = World::new(subject, |_| {}).await;
    let script = "
p = PLAIN.encode()
for raw in [
    b'GET http://' + p + b'/ HTTP/1.1\\r\\nHost: other.test\\r\\n\\r\\n',
    b'GET http://' + p + b'/ HTTP/1.1\\r\\nHost: ' + p + b'\\r\\nX: a\\nHost: other.test\\r\\n\\r\\n',
    b'GET http://' + p + b'/\\rX HTTP/1.1\\r\\nHost: ' + p + b'\\r\\n\\r\\n',
    b'GET http://other.test@' + p + b'/ HTTP/1.1\\r\\nHost: ' + p + b'\\r\\n\\r\\n',
    b'GET / HTTP/1.1\\r\\nHost: ' + p + b'\\r\\n\\r\\n',
    b'GET http://' + p + b'/ HTTP/1.1\\r\\nHost: ' + p + b'\\r\\nX: ' + b'y' * 20000 + b'\\r\\n\\r\\n',
    b'GET http://' + p + b'/ HTTP/1.1\\r\\nHost: ' + p + b'\\r\\n' + b'X: y\\r\\n' * 200 + b'\\r\\n',
    b'POST http://' + p + b'/ HTTP/1.1\\r\\nHost: ' + p + b'\\r\\nTransfer-Encoding: chunked\\r\\n\\r\\n0\\r\\n\\r\\n',
    b'CONNECT ' + p + b' HTTP/1.1\\r\\nHost: other.test\\r\\n\\r\\n',
    b'\\x16\\x03\\x01\\x00\\x05hello\\r\\n\\r\\n',
]: print(status(raw))
";
    let printed = world.run(world.open(), script).await;
    let expected = "400 host_mismatch\n400 malformed\n400 malformed\n400 malformed\n400 malformed\n431 head_too_large\n\
                    431 head_too_large\n411 no_length\n400 host_mismatch\n400 malformed";
    assert_eq!(printed, expected);
    assert_eq!(world.plain.heard(), "");
}

async fn a_slow_request_is_given_up(subject: &Subject) {
    let world = World::new(subject, |settings| settings.head_timeout = Duration::from_millis(400)).await;
    let script = "
import time
s = proxy(); begun = time.time(); sent = 0
try:
    while time.time() - begun < 10:
        s.sendall(b'G'); sent += 1; time.sleep(0.05)
except OSError: pass
print(time.time() - begun < 5, rest(s)[:12] if False else '')
t, code = connect(TLS); t.sendall(b'\\x16\\x03\\x01'); print(rest(t), code)
";
    let printed = world.run(world.open(), script).await;
    assert_eq!(printed, "True \nb'' 200");
    assert_eq!(world.refusals(), [Some(Refusal::TooSlow); 2]);
}

async fn a_second_request_reaches_nobody(subject: &Subject) {
    let world = World::new(subject, |_| {}).await;
    let script = "
p = PLAIN.encode()
first = b'GET http://' + p + b'/hang HTTP/1.1\\r\\nHost: ' + p + b'\\r\\n\\r\\n'
print(ask(first + b'GET http://other.test/ HTTP/1.1\\r\\nHost: other.test\\r\\n\\r\\n'))
s = proxy(); s.sendall(b'POST http://' + p + b'/hang HTTP/1.1\\r\\nHost: ' + p + b'\\r\\nContent-Length: 4\\r\\n\\r\\nbody')
import time; time.sleep(0.2); s.sendall(b'GET / HTTP/1.1\\r\\nHost: other.test\\r\\n\\r\\n'); print(rest(s))
";
    let printed = world.run(world.open(), script).await;
    assert_eq!(printed, "b''\nb''");
    assert_eq!(world.refusals(), [Some(Refusal::SecondRequest); 2]);
    let heard = world.plain.heard();
    // Which of the two it heard first is the machine's affair.
    assert!(
        heard.contains("\r\n\r\nbody") && !heard.contains("other.test"),
        "{heard}"
    );
    assert_eq!(world.plain.connections(), 2);
}

async fn tunnels_end_with_their_attempt(subject: &Subject) {
    let world = World::new(subject, |_| {}).await;
    let script = "
s, code = connect(TLS); print(code)
context = ssl._create_unverified_context(); t = context.wrap_socket(s, server_hostname='secure.test')
t.sendall(b'GET /hang HTTP/1.1\\r\\n\\r\\n'); print('open')
try: print('ended', t.recv(100))
except OSError: print('ended')
try: print('again', ask(b'GET http://' + PLAIN.encode() + b'/ HTTP/1.1\\r\\n\\r\\n'))
except OSError: print('again refused')
";
    let opening = async {
        let mut running = world.sandbox.run(world.spec(script)).await.unwrap();
        assert_eq!(read_until(&mut running, "open\n").await, "200\nopen\n");
        running
    };
    let running = world.proxy(world.open()).during(&world.sandbox, opening).await;
    // The way out is closed while the program still runs.
    let printed = finish(running).await;
    assert!(printed.starts_with("ended"), "{printed}");
    assert!(
        printed.ends_with("again refused") || printed.ends_with("again b''"),
        "{printed}"
    );
    eventually("the server to see the end", async || world.tls.ended() == 1).await;
    assert_eq!(world.plain.connections(), 0);
}

async fn tunnels_end_with_their_program(subject: &Subject) {
    let world = World::new(subject, |_| {}).await;
    let script = "
s, code = connect(TLS)
context = ssl._create_unverified_context(); t = context.wrap_socket(s, server_hostname='secure.test')
t.sendall(b'GET /hang HTTP/1.1\\r\\n\\r\\n'); print('open')
import time; time.sleep(60)
";
    let work = async {
        let mut running = world.sandbox.run(world.spec(script)).await.unwrap();
        assert_eq!(read_until(&mut running, "open\n").await, "open\n");
        running.kill().await.unwrap();
        running.wait().await.unwrap();
        eventually("the server to see the end", async || world.tls.ended() == 1).await;
    };
    world.proxy(world.open()).during(&world.sandbox, work).await;
    assert!(world.rows()[0].is_allowed);
}

async fn ten_thousand_connections_harm_nobody(subject: &Subject) {
    let world = World::new(subject, |_| {}).await;
    let script = "
held = []
for number in range(10000):
    try:
        s = proxy(); s.setblocking(False)
        if number % 100 == 0 and len(held) < 100: held.append(s)
        else: s.close()
    except OSError: pass
print('done')
";
    let work = async {
        let running = world.sandbox.run(world.spec(script)).await.unwrap();
        let printed = finish(running).await;
        world.sandbox.ping(Duration::from_secs(5)).await.unwrap();
        printed
    };
    let printed = world.proxy(world.open()).during(&world.sandbox, work).await;
    assert_eq!(printed, "done");
    let rows = world.rows();
    let most = world.settings.connections_total_max as usize + 1;
    assert!(!rows.is_empty() && rows.len() <= most, "{}", rows.len());
    assert_eq!((world.plain.connections(), world.tls.connections()), (0, 0));
}

async fn bytes_are_capped(subject: &Subject) {
    let world = World::new(subject, |settings| settings.bytes_max = 256 << 10).await;
    let script = "
raw = b'GET http://' + PLAIN.encode() + b'/flood HTTP/1.1\\r\\nHost: ' + PLAIN.encode() + b'\\r\\n\\r\\n'
print(len(ask(raw)) <= 256 << 10, status(raw))
";
    assert_eq!(world.run(world.open(), script).await, "True 429 too_many_bytes");
    let rows = world.rows();
    assert!(rows[0].is_allowed && rows[0].refusal == Some(Refusal::TooManyBytes));
}

async fn connections_are_capped_at_once_in_a_second_and_in_all(subject: &Subject) {
    let script = "
def hang():
    s = proxy(); s.sendall(b'GET http://' + p + b'/hang HTTP/1.1\\r\\nHost: ' + p + b'\\r\\n\\r\\n'); return s
p = PLAIN.encode(); raw = b'GET http://' + p + b'/ HTTP/1.1\\r\\nHost: ' + p + b'\\r\\n\\r\\n'
held = [hang() for _ in range(HELD)]
print(*[status(raw) for _ in range(ASKED)])
";
    let ask = |held: u32, asked: u32| {
        script
            .replace("HELD", &held.to_string())
            .replace("ASKED", &asked.to_string())
    };
    let world = World::new(subject, |settings| settings.connections_max = 3).await;
    assert_eq!(world.run(world.open(), &ask(3, 1)).await, "429 too_many_at_once");
    let of_the_fourth = world.rows().into_iter().find_map(|row| row.refusal);
    assert_eq!(of_the_fourth, Some(Refusal::TooManyAtOnce));

    let world = World::new(subject, |settings| settings.connections_per_second = 2).await;
    let printed = world.run(world.open(), &ask(0, 8)).await;
    assert!(
        printed.starts_with("200  200 ") && printed.contains("429 too_fast"),
        "{printed}"
    );

    let world = World::new(subject, |settings| settings.connections_total_max = 2).await;
    assert_eq!(
        world.run(world.open(), &ask(0, 4)).await,
        "200  200  429 too_many 429 too_many"
    );
    let last = Some(Refusal::TooMany);
    assert_eq!(
        world.refusals(),
        [None, None, last],
        "the last row stands for all that follow"
    );
    assert_eq!(world.plain.connections(), 2);
}

async fn a_connection_that_stands_still_is_closed(subject: &Subject) {
    let world = World::new(subject, |settings| settings.idle_timeout = Duration::from_millis(300)).await;
    let script = "
p = PLAIN.encode()
print(ask(b'GET http://' + p + b'/hang HTTP/1.1\\r\\nHost: ' + p + b'\\r\\n\\r\\n'))
";
    assert_eq!(world.run(world.open(), script).await, "b''");
    assert_eq!(world.refusals(), [Some(Refusal::Idle)]);
    eventually("the server to see the end", async || world.plain.ended() == 1).await;
}

async fn wildcards_name_what_is_below_them_at_their_port(subject: &Subject) {
    let world = World::new(subject, |_| {}).await;
    let port = world.plain.address.port();
    let script = "print(fetch(f'http://{PLAIN}/'))";
    let (below, itself) = (format!("*.test:{port}"), format!("*.plain.test:{port}"));
    for (environment, job, expected) in [
        (&below, &below, "b'hello from outside'"),
        (&below, &itself, "403 not_in_job"),
        (&itself, &below, "403 not_in_environment"),
        (&"*.test".to_owned(), &below, "403 not_in_environment"),
        (&below, &"*.test:1".to_owned(), "403 not_in_job"),
    ] {
        let policy = Policy::new(std::slice::from_ref(environment), std::slice::from_ref(job));
        assert_eq!(world.run(policy, script).await, expected, "{environment} {job}");
    }
    assert_eq!(world.plain.connections(), 1);
}

async fn much_passes_unchanged_both_ways(subject: &Subject) {
    let world = World::new(subject, |_| {}).await;
    let script = "
body = os.urandom(3 << 20); back = urllib.request.urlopen(f'http://{PLAIN}/echo', data=body, timeout=20).read()
context = ssl.create_default_context(cadata=os.environ['CA'])
again = urllib.request.urlopen(f'https://{TLS}/echo', data=body, timeout=20, context=context).read()
print(back == body, again == body)
";
    assert_eq!(world.run(world.open(), script).await, "True True");
    assert!(
        world
            .rows()
            .iter()
            .all(|row| row.sent_bytes > 3 << 20 && row.received_bytes > 3 << 20)
    );
}

async fn one_silent_connection_holds_up_no_other(subject: &Subject) {
    let world = World::new(subject, |_| {}).await;
    let script = "
raw = b'GET http://' + PLAIN.encode() + b'/flood HTTP/1.1\\r\\nHost: ' + PLAIN.encode() + b'\\r\\n\\r\\n'
silent = [proxy() for _ in range(8)]
for s in silent: s.sendall(raw)
print(fetch(f'http://{PLAIN}/'))
";
    assert_eq!(world.run(world.open(), script).await, "b'hello from outside'");
}
