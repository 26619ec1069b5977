//! `install`, and what a job may reach, through whole attempts: a pool, an executor, an index of packages on this machine.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]

use std::io::Write;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::routing::get;
use base64::Engine;
use common::cancel::Canceller;
use common::job::FailureCode;
use common::job::decision::Outcome;
use common::job::event::{Event, EventBody};
use common::job::spec::{JobSpec, SlotClass};
use common::lifecycle::Lifecycle;
use common::objects::{self, Objects};
use common::queue::Want;
use common::store::egress::Decision;
use common::testing::TestEnv;
use common::workspace::Workspaces;
use serde_json::{Value, json};
use sha2::{Digest, Sha512};
use sqlx::PgPool;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::task::TaskTracker;
use uuid::Uuid;
use worker::consumer::held::Orders;
use worker::egress::Settings;
use worker::environment::{Environment, Environments};
use worker::events::{EventLog, LogTarget, Outlets};
use worker::executor::{Context, Ended, Machine, Means, execute};
use worker::model;
use worker::pool::{self, Asks, Pool};

use crate::docker::{driver, image, profile};

const PAGE: &str = "<a href='../../files/tiny-1.0-py3-none-any.whl'>tiny-1.0-py3-none-any.whl</a>";

/// An index for pip and a registry for npm, each with one package.
struct Registry {
    address: SocketAddr,
    _tasks: JoinSet<()>,
}

impl Registry {
    async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (wheel, tarball) = (wheel(), tarball());
        let integrity = base64::engine::general_purpose::STANDARD.encode(Sha512::digest(&tarball));
        let dist = json!({
            "tarball": format!("http://packages.test:{}/npm/tiny.tgz", address.port()),
            "integrity": format!("sha512-{integrity}"),
        });
        let document = json!({"name": "tiny", "dist-tags": {"latest": "1.0.0"},
            "versions": {"1.0.0": {"name": "tiny", "version": "1.0.0", "dist": dist}}});
        let app = Router::new()
            .route("/simple/tiny/", get(async || axum::response::Html(PAGE)))
            .route("/files/tiny-1.0-py3-none-any.whl", get(async || wheel))
            .route("/npm/tiny", get(async || axum::Json(document)))
            .route("/npm/tiny.tgz", get(async || tarball));
        let mut tasks = JoinSet::new();
        tasks.spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self { address, _tasks: tasks }
    }
}

/// A Python package of one module.
fn wheel() -> Vec<u8> {
    let about = "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n";
    let kind = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n";
    let record = "tiny.py,,\ntiny-1.0.dist-info/METADATA,,\ntiny-1.0.dist-info/WHEEL,,\ntiny-1.0.dist-info/RECORD,,\n";
    zip(&[
        ("tiny.py", "word = 'from pip'\n"),
        ("tiny-1.0.dist-info/METADATA", about),
        ("tiny-1.0.dist-info/WHEEL", kind),
        ("tiny-1.0.dist-info/RECORD", record),
    ])
}

/// A zip archive whose files are stored as they are.
fn zip(files: &[(&str, &str)]) -> Vec<u8> {
    let (mut out, mut directory) = (Vec::new(), Vec::new());
    for (name, content) in files {
        let len = u32::try_from(content.len()).unwrap().to_le_bytes();
        let name_len = u16::try_from(name.len()).unwrap().to_le_bytes();
        let crc = crc32(content.as_bytes()).to_le_bytes();
        let common = [
            &[20, 0, 0, 0, 0, 0, 0, 0, 0x21, 0x50][..],
            &crc,
            &len,
            &len,
            &name_len,
            &[0, 0],
        ]
        .concat();
        let offset = u32::try_from(out.len()).unwrap().to_le_bytes();
        directory.extend([&b"PK\x01\x02\x14\0"[..], &common, &[0; 10], &offset, name.as_bytes()].concat());
        out.extend([&b"PK\x03\x04"[..], &common, name.as_bytes(), content.as_bytes()].concat());
    }
    let count = u16::try_from(files.len()).unwrap().to_le_bytes();
    let (size, start) = (
        u32::try_from(directory.len()).unwrap(),
        u32::try_from(out.len()).unwrap(),
    );
    out.extend(directory);
    let end = [
        &b"PK\x05\x06\0\0\0\0"[..],
        &count,
        &count,
        &size.to_le_bytes(),
        &start.to_le_bytes(),
        &[0, 0],
    ]
    .concat();
    out.extend(end);
    out
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            if crc & 1 == 1 {
                (crc >> 1) ^ 0xedb8_8320
            } else {
                crc >> 1
            }
        })
    })
}

/// A Node package of one module.
fn tarball() -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, content) in [
        (
            "package/package.json",
            r#"{"name":"tiny","version":"1.0.0","main":"index.js"}"#,
        ),
        ("package/index.js", "module.exports = 'from npm'\n"),
    ] {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, content.as_bytes()).unwrap();
    }
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&tar.into_inner().unwrap()).unwrap();
    gzip.finish().unwrap()
}

struct Bench {
    env: TestEnv,
    machine: Machine,
    lifecycle: Lifecycle,
    registry: Registry,
}

impl Bench {
    async fn new(pool: PgPool) -> Self {
        let (env, registry, lifecycle) = (TestEnv::new(pool).await, Registry::start().await, Lifecycle::new());
        let port = registry.address.port();
        let mut environment = Environment::built_in().with_image(image());
        environment.profile = profile();
        environment.warm.size = 1;
        environment.warm.max = 1;
        environment.egress = vec![format!("packages.test:{port}"), "private.test".to_owned()];
        environment.install.allow = vec![format!("packages.test:{port}")];
        environment.install.pip_index = Some(format!("http://packages.test:{port}/simple"));
        environment.install.npm_registry = Some(format!("http://packages.test:{port}/npm"));
        let closed = Environment::parse("name = 'closed'\n[warm]\nsize = 0\nmax = 1", "closed.toml".as_ref()).unwrap();
        let environments = Environments::from([
            ("default".to_owned(), Arc::new(environment)),
            ("closed".to_owned(), Arc::new(closed.with_image(image()))),
        ]);
        let settings = pool::Settings::new(Uuid::now_v7());
        let asks = Asks::of(&env.store, &env.clock.clock());
        let pool = Pool::start(driver(), &environments, settings, asks, &lifecycle);
        let hosts = [("packages.test", "127.0.0.1"), ("private.test", "10.255.255.1")];
        let egress = Settings {
            private: vec!["127.0.0.1/32".parse().unwrap()],
            hosts: hosts
                .map(|(name, address)| (name.to_owned(), vec![address.parse().unwrap()]))
                .into(),
            ..Settings::default()
        };
        let objects = Objects::open(&objects::Settings { url: String::new() }).unwrap();
        let machine = Machine {
            workspaces: Workspaces::new(env.store.clone(), objects.clone()),
            store: env.store.clone(),
            queue: env.queue.clone(),
            canceller: Canceller::new(env.store.clone(), env.queue.clone()),
            pool: Some(pool),
            environments: Arc::new(environments),
            objects,
            providers: Arc::new(model::Settings::default().providers().unwrap()),
            egress: Arc::new(Means {
                settings: egress,
                certificates: "a certificate\n".into(),
            }),
            policy: model::Policy::alone(model::RetryPolicy::default()),
            books: model::books::Books::open(&model::Settings::default(), env.store.clone()).unwrap(),
            room: worker::gateway::Room::default(),
            claude_code: worker::claude::Settings::default(),
        };
        Self {
            env,
            machine,
            lifecycle,
            registry,
        }
    }

    /// Runs a job of this input as its worker would; answers what it became, what it said and where it connected.
    async fn run(&self, input: Value) -> Done {
        let mut spec = JobSpec::new(common::job::Kind::Exec);
        spec.timeout = Duration::from_mins(1);
        self.env
            .enqueue(&self.env.job(spec, input.to_string().into_bytes()))
            .await;
        let worker = self.env.worker();
        let want = Want {
            slot: SlotClass::Sandbox,
            free: 1,
            labels: Vec::new(),
            queues: Vec::new(),
            mode: common::queue::Mode::Busy,
        };
        let claimed = worker.claim_as(&want).await.remove(0);
        let target = LogTarget {
            tenant_id: claimed.job.tenant_id,
            job_id: claimed.job.id,
            attempt: claimed.job.attempt,
            worker_id: worker.id,
            outlets: Outlets::spawn(
                worker.id,
                self.env.store.clone(),
                self.env.queue.clone(),
                &TaskTracker::new(),
            ),
            clock: self.env.clock.clock(),
        };
        let started = Event {
            seq: claimed.job.seq,
            at: self.env.clock.now(),
            attempt: claimed.job.attempt,
            body: EventBody::Started { worker: worker.id },
        };
        let log = EventLog::begin(target, started, &TaskTracker::new());
        let run_until = Instant::now() + Duration::from_mins(5);
        let (_orders, orders) = watch::channel(Orders { run_until, stop: None });
        let context = Context {
            job: claimed.job.clone(),
            input: claimed.input,
            worker_id: worker.id,
            events: log.sink().clone(),
            orders,
            clock: self.env.clock.clock(),
            machine: self.machine.clone(),
        };
        let ended = Box::pin(execute(context)).await;
        let said = log.end().await.events.into_iter().map(|event| event.body).collect();
        let decisions = self.env.store.egress(claimed.job.id, (0, 0), 100).await.unwrap();
        Done { ended, said, decisions }
    }

    async fn end(self) {
        self.machine.shutdown().await;
        assert!(!self.lifecycle.has_failed());
    }
}

struct Done {
    ended: Ended,
    said: Vec<EventBody>,
    decisions: Vec<Decision>,
}

impl Done {
    fn stdout(&self) -> String {
        let result: Value = serde_json::from_slice(self.ended.result.as_deref().unwrap()).unwrap();
        assert_eq!(result["exit_code"], 0, "{result}");
        result["stdout"].as_str().unwrap().trim().to_owned()
    }

    fn failure(&self) -> (FailureCode, &str) {
        match &self.ended.outcome {
            Outcome::Failed { failure, .. } => (failure.code, &failure.message),
            other => panic!("{other:?}"),
        }
    }

    fn phases(&self) -> Vec<&str> {
        let mut phases = Vec::new();
        for body in &self.said {
            if let EventBody::Status { phase, .. } = body {
                phases.push(phase.as_str());
            }
        }
        phases
    }
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn pip_and_npm_install_what_a_job_names_and_only_while_they_do(pool: PgPool) {
    let bench = Bench::new(pool).await;
    // What the program itself tries is refused: it named no host.
    let code = "import tiny, urllib.request, urllib.error, os\n\
                try: urllib.request.urlopen(os.environ['INDEX'])\n\
                except urllib.error.HTTPError as e: print(tiny.word, e.code, open(os.environ['PIP_CERT']).read())";
    let index = format!("http://packages.test:{}/simple/tiny/", bench.registry.address.port());
    let done = bench
        .run(json!({"language": "python", "code": code, "install": ["tiny==1.0"], "env": {"INDEX": index}}))
        .await;
    assert_eq!(done.stdout(), "from pip 403 a certificate");
    let (phases, installs) = (done.phases(), done.decisions.iter().filter(|it| it.is_allowed).count());
    assert!(
        phases.contains(&"installing") && phases.contains(&"egress_refused"),
        "{phases:?}"
    );
    assert!(
        installs >= 2
            && done
                .decisions
                .iter()
                .filter(|it| it.is_allowed)
                .all(|it| it.duration.is_some())
    );
    let last = done.decisions.last().unwrap();
    assert_eq!((last.is_allowed, last.reason.as_deref()), (false, Some("not_in_job")));

    let done = bench
        .run(json!({"language": "javascript", "code": "console.log(require('tiny'))", "install": ["tiny"]}))
        .await;
    assert_eq!(done.stdout(), "from npm");
    bench.end().await;
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn what_cannot_be_installed_is_told_with_the_tool_s_last_lines(pool: PgPool) {
    let bench = Bench::new(pool).await;
    let done = bench
        .run(json!({"language": "python", "code": "", "install": ["absent"]}))
        .await;
    let (code, message) = done.failure();
    assert_eq!(code, FailureCode::InstallFailed);
    assert!(
        message.starts_with("pip failed (exit code 1)\n") && message.contains("absent"),
        "{message}"
    );

    let done = bench.run(json!({"command": ["true"], "install": ["npm:absent"]})).await;
    let (code, message) = done.failure();
    assert!(
        code == FailureCode::InstallFailed && message.contains("404"),
        "{message}"
    );

    let done = bench
        .run(json!({"language": "python", "code": "", "install": ["tiny"], "environment": "closed"}))
        .await;
    assert_eq!(done.failure().0, FailureCode::InstallFailed);
    assert!(done.decisions.is_empty());
    bench.end().await;
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_job_reaches_what_it_and_its_environment_name(pool: PgPool) {
    let bench = Bench::new(pool).await;
    let port = bench.registry.address.port();
    let code = format!(
        "import urllib.request, urllib.error\n\
         def get(url):\n    try: return urllib.request.urlopen(url).status\n    except urllib.error.HTTPError as e: return e.code\n\
         print(get('http://packages.test:{port}/npm/tiny'), get('http://private.test/'))"
    );
    let asked = json!({"allow": ["*.test", format!("*.test:{port}")]});
    let done = bench
        .run(json!({"language": "python", "code": code, "egress": asked}))
        .await;
    assert_eq!(done.stdout(), "200 403");
    let seen: Vec<_> = done
        .decisions
        .iter()
        .map(|it| (it.seq, it.host.as_deref().unwrap(), it.is_allowed, it.reason.as_deref()))
        .collect();
    let private = (2, "private.test", false, Some("private_address"));
    assert_eq!(seen, [(1, "packages.test", true, None), private]);
    bench.end().await;
}
