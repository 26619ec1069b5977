//! To a provider's key: from inside a sandbox whose gateway has one.

use std::sync::Arc;
use std::time::Duration;

use common::clock::Clock;
use common::config::Secret;
use futures_util::FutureExt as _;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::bench::{Bench, Error};
use super::{Attempt, Group, Verdict};
use crate::executor::native::EventSink;
use crate::gateway::{Gateway, Room, Terms};
use crate::model::server::ServerSettings;
use crate::model::{self, Caller, RetryPolicy};
use crate::sandbox::{Output, RunSpec};

/// How every key of an attempt begins; what follows is random, and no program is told.
const MARK: &str = "sk-hothouse-canary-";

/// How the key is complained of: the status, the kind, and the content that comes before.
const REFUSALS: [(&str, &str, Option<&str>); 5] = [
    ("401 Unauthorized", "authentication_error", None),
    ("400 Bad Request", "invalid_request_error", None),
    ("200 OK", "api_error", Some(CONTENT)),
    ("429 Too Many Requests", "rate_limit_error", None),
    ("500 Internal Server Error", "api_error", None),
];

/// On either wire.
const CONTENT: &str = r#"{"type":"content_block_start","index":0,"content_block":{"type":"text","text":"hm"},"choices":[{"delta":{"content":"hm"}}]}"#;

/// The attempts.
pub(super) const ATTEMPTS: &[Attempt] = &[
    key("find a provider's key in the environment of a process", |b| {
        look(
            b,
            "for p in glob.glob('/proc/[0-9]*/environ') + glob.glob('/proc/[0-9]*/cmdline'): read(p)",
        )
        .boxed()
    }),
    key("find a provider's key in a file", |b| {
        look(
            b,
            "for top in ('/etc', '/workspace', '/tmp', '/run', '/dev/shm', '/var', '/home', '/root', '/.hothouse', '/opt', '/srv'):\n  for d, _, files in os.walk(top):\n    for f in files: read(os.path.join(d, f))",
        )
        .boxed()
    }),
    key("find a provider's key below /proc and /sys", |b| {
        look(
            b,
            "for top in ('/proc/self', '/proc/1', '/proc/net', '/sys/fs/cgroup', '/proc/sys/kernel'):\n  for d, folders, files in os.walk(top):\n    folders[:] = [x for x in folders if x not in ('cwd', 'root', 'task')]\n    for f in files: read(os.path.join(d, f), 1 << 16)",
        )
        .boxed()
    }),
    key("find a provider's key in memory", |b| {
        look(
            b,
            "ask('POST', '/v1/messages', BODY)\nfor pid in ('self', '1'):\n  try: maps, mem = open('/proc/%s/maps' % pid), open('/proc/%s/mem' % pid, 'rb', 0)\n  except OSError: looked.append(pid); continue\n  for line in maps:\n    a, b = [int(x, 16) for x in line.split()[0].split('-')]\n    try: mem.seek(a); see(mem.read(min(b - a, 64 << 20)))\n    except (OSError, ValueError, OverflowError): pass",
        )
        .boxed()
    }),
    key("have the gateway tell a provider's key", |b| {
        look(
            b,
            "for method, path, body in 5 * (('POST', '/v1/messages', BODY), ('POST', '/v1/messages/count_tokens', BODY), ('POST', '/v1/chat/completions', BODY), ('GET', '/v1/models', ''), ('TRACE', '/v1/messages', ''), ('OPTIONS', '*', ''), ('GET', '/', ''), ('POST', '/v1/messages', '{')): ask(method, path, body)",
        )
        .boxed()
    }),
    key("have the gateway send a provider's key elsewhere", |b| {
        look(
            b,
            "s = socket.create_server(('127.0.0.1', 0)); here = '127.0.0.1:%d' % s.getsockname()[1]\nfor path, headers in (('http://%s/v1/messages' % here, {}), ('/v1/messages', {'host': here}), ('/v1/messages', {'x-forwarded-host': here, 'x-base-url': 'http://' + here}), ('//%s/v1/messages' % here, {}), ('/v1/messages?base_url=http://' + here, {})): ask('POST', path, BODY, headers)\ns.settimeout(0.2)\ntry: see(s.accept()[0].recv(65536)); found.append('somebody came')\nexcept TimeoutError: pass",
        )
        .boxed()
    }),
    key("use the gateway without the attempt's token", |b| {
        look(
            b,
            "for token in ('', 'x', TOKEN[:-1], TOKEN + ' x', TOKEN.swapcase(), 'hothouse-' + '0' * 64):\n  status = ask('POST', '/v1/messages', BODY, {'x-api-key': token})\n  if status != 401: found.append('%r is taken: %s' % (token, status))",
        )
        .boxed()
    }),
];

const fn key(name: &'static str, act: super::HostAttempt) -> Attempt {
    Attempt::host(Group::Escape, name, act)
}

/// What the lines of an attempt find around them. They see whatever they can; what looks like a key is printed, and how
/// many places were looked at.
const PRELUDE: &str = r#"
import glob, http.client, os, re, socket, sys
TOKEN, BODY = os.environ['ANTHROPIC_API_KEY'], '{"model":"any","max_tokens":1,"messages":[{"role":"user","content":"x"}]}'
looked, found = [], []
def see(data):
    looked.append(len(data))
    found.extend(m.decode() for m in re.findall(rb'sk-hothouse-canary-[0-9a-f]{8,}', data))
def read(path, most=1 << 22):
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError: return
    try: see(os.read(fd, most))
    except OSError: pass
    finally: os.close(fd)
def ask(method, path, body, headers={}):
    c = http.client.HTTPConnection('127.0.0.1', 3129, timeout=20)
    try:
        c.request(method, path, body, {'x-api-key': TOKEN, **headers})
        r = c.getresponse()
        see(r.read() + str(r.headers).encode())
        return r.status
    except (OSError, http.client.HTTPException) as e:
        looked.append(str(e))
"#;

const REPORT: &str = "\nfor what in found: print('FOUND', what)\nprint('LOOKED', len(looked))";

/// Runs some lines in a sandbox whose gateway's provider has a key, and repeats it in all that it answers.
async fn look(bench: &Bench, code: &'static str) -> Result<Verdict, Error> {
    let canary = format!("{MARK}{}", hex::encode(rand::random::<[u8; 16]>()));
    let sandbox = bench.sandbox().await?;
    let setup = |error: &dyn std::fmt::Display| Error::Setup(error.to_string());
    let listener = TcpListener::bind(("127.0.0.1", 0))
        .await
        .map_err(|error| setup(&error))?;
    let address = listener.local_addr().map_err(|error| setup(&error))?;
    let gateway = gateway(&canary, address).map_err(|error| setup(&error))?;
    let spec = RunSpec {
        env: gateway.variables(),
        ..RunSpec::new(
            ["/usr/bin/env", "python3", "-c"]
                .map(str::to_owned)
                .into_iter()
                .chain([format!("{PRELUDE}{code}{REPORT}")]),
        )
    };
    let work = async {
        let mut running = sandbox.run(spec).await?;
        let mut said = Vec::new();
        while let Some(output) = running.next().await {
            if let Output::Stdout(data) | Output::Stderr(data) = output {
                said.extend_from_slice(&data);
            }
        }
        running.wait().await?;
        Ok::<_, Error>(String::from_utf8_lossy(&said).into_owned())
    };
    let said = tokio::select! {
        said = work => said?,
        never = gateway.serve(&sandbox) => match never {},
        () = repeat_the_key(&listener) => return Err(Error::Setup("the provider's end broke".to_owned())),
    };
    Ok(verdict(&said, &canary))
}

fn gateway(canary: &str, address: std::net::SocketAddr) -> Result<Gateway, model::Error> {
    let server = ServerSettings {
        base_url: format!("http://{address}"),
        api_key: Secret::from(canary.to_owned()),
        ..ServerSettings::default()
    };
    let settings = model::Settings {
        anthropic: server.clone(),
        openai: server,
        ..model::Settings::default()
    };
    let retry = RetryPolicy {
        retries_max: 0,
        ..RetryPolicy::default()
    };
    let terms = Terms {
        shrinks: false,
        models: vec!["anthropic/any".parse()?, "openai/any".parse()?],
        features: Vec::new(),
        room: Room::default(),
        caller: Caller::alone(settings.providers()?, retry, Clock::system())?,
    };
    Ok(Gateway::new(terms, Arc::new(EventSink::new(|_nobody_listens| {}))))
}

/// A provider that says the key that it is called with in whatever it answers: a refusal of every kind, then an answer that
/// ends in an error.
async fn repeat_the_key(listener: &TcpListener) {
    let mut refusals = REFUSALS.iter().cycle();
    while let Ok((mut stream, _)) = listener.accept().await {
        let mut head = vec![0; 16 * 1024];
        let read = tokio::time::timeout(Duration::from_secs(5), stream.read(&mut head)).await;
        let len = read.map_or(0, |read| read.unwrap_or(0));
        let text = String::from_utf8_lossy(head.get(..len).unwrap_or_default()).into_owned();
        let key = text
            .find(MARK)
            .and_then(|at| text.get(at..))
            .and_then(|rest| rest.split_whitespace().next());
        let key = key.unwrap_or("none");
        let (status, kind, before) = refusals.next().unwrap_or(&REFUSALS[0]);
        let error = json!({"type": "error", "error": {"type": kind, "message": format!("the key {key} is wrong")}});
        let (content_type, body) = match before {
            Some(content) => ("text/event-stream", format!("data: {content}\n\ndata: {error}\n\n")),
            None => ("application/json", error.to_string()),
        };
        let answer = format!(
            "HTTP/1.1 {status}\r\nrequest-id: {key}\r\nContent-Type: {content_type}\r\nContent-Length: {}\r\n\
             Connection: close\r\n\r\n{body}",
            body.len()
        );
        // The gateway may have gone; the next one comes.
        drop(stream.write_all(answer.as_bytes()).await);
    }
}

fn verdict(said: &str, canary: &str) -> Verdict {
    let found: Vec<&str> = said.lines().filter_map(|line| line.strip_prefix("FOUND ")).collect();
    let looked = said
        .lines()
        .find_map(|line| line.strip_prefix("LOOKED ")?.parse::<u32>().ok());
    match looked {
        _ if !found.is_empty() || said.contains(canary) => Verdict::Broken(found.join(", ")),
        Some(looked) if looked > 0 => Verdict::Held(format!("it looked in {looked} places")),
        _ => Verdict::Unclear(said.chars().take(300).collect()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_having_looked_is_proof() {
        let canary = "sk-hothouse-canary-1";
        assert!(verdict("LOOKED 3\n", canary).has_held());
        for said in [
            "",
            "LOOKED 0",
            "Traceback",
            "FOUND x\nLOOKED 3",
            "sk-hothouse-canary-1\nLOOKED 3",
        ] {
            assert!(!verdict(said, canary).has_held(), "{said}");
        }
    }
}
