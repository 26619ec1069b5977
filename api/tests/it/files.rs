//! The files of a conversation's workspace, and the artifacts of jobs.

use common::ids::TenantId;
use common::job::spec::{JobSpec, Kind, SlotClass};
use common::objects::{self, Objects, artifact_key};
use common::queue::{Mode, Want};
use common::store::workspaces::{Save, Saved, Writer};
use common::testing::TestWorker;
use common::workspace::{Owner, Workspaces};
use reqwest::{Method, Response};
use serde_json::{Value, json};
use sqlx::PgPool;

use crate::fixture::Api;

struct Files {
    api: Api,
    /// Of its conversation.
    base: String,
    folder: tempfile::TempDir,
}

impl Files {
    async fn new(pool: PgPool) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("file://{}", folder.path().display());
        let api = Api::start_with(pool, |config| {
            config.objects.url = url;
            config.http.file_max = 3_000_000;
            config.http.workspace_max = 5_000_000;
        })
        .await;
        let agent = json!({"harness": "chat", "models": ["scripted/demo"]});
        let conversation = api.post("/conversations", json!({"agent": agent})).await.expect(201);
        let base = format!("/conversations/{}/files", conversation["id"].as_str().unwrap());
        Self { api, base, folder }
    }

    async fn send(&self, method: Method, path: &str, headers: &[(&str, &str)], body: Option<Vec<u8>>) -> Response {
        let mut request = self.api.request(method, &format!("{}{path}", self.base));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        match body {
            Some(body) => request.body(body).send().await.unwrap(),
            None => request.send().await.unwrap(),
        }
    }

    async fn put(&self, path: &str, content: &[u8]) -> Response {
        self.send(Method::PUT, path, &[], Some(content.to_vec())).await
    }

    async fn get(&self, path: &str, headers: &[(&str, &str)]) -> Response {
        self.send(Method::GET, path, headers, None).await
    }

    async fn paths(&self, query: &str) -> Vec<String> {
        let list = self.api.get(&format!("{}{query}", self.base)).await.expect(200);
        let paths = list["data"].as_array().unwrap().iter();
        paths.map(|file| file["path"].as_str().unwrap().to_owned()).collect()
    }
}

fn header(response: &Response, name: &str) -> String {
    response.headers()[name].to_str().unwrap().to_owned()
}

async fn code(response: Response) -> (u16, String) {
    let status = response.status().as_u16();
    let problem: Value = response.json().await.unwrap();
    (status, problem["code"].as_str().unwrap().to_owned())
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn files_are_put_listed_read_and_deleted(pool: PgPool) {
    let files = Files::new(pool).await;
    assert_eq!(files.paths("").await, [""; 0]);
    assert_eq!(files.put("/a/b/one.txt", b"hello").await.status(), 201);
    assert_eq!(files.put("/a/two.bin", &[7; 700]).await.status(), 201);
    assert_eq!(files.put("/z%20%C3%A9.png", b"png").await.status(), 201);
    assert_eq!(files.put("/a/b/one.txt", b"hello again").await.status(), 200);
    assert_eq!(files.paths("").await, ["a", "z é.png"]);
    assert_eq!(files.paths("?path=a").await, ["a/b", "a/two.bin"]);
    assert_eq!(
        files.paths("?recursive=true").await,
        ["a", "a/b", "a/b/one.txt", "a/two.bin", "z é.png"]
    );
    let first = files
        .api
        .get(&format!("{}?recursive=true&limit=2", files.base))
        .await
        .expect(200);
    let next = format!(
        "?recursive=true&limit=2&cursor={}",
        first["next_cursor"].as_str().unwrap()
    );
    assert_eq!(files.paths(&next).await, ["a/b/one.txt", "a/two.bin"]);
    files
        .api
        .get(&format!("{}?path=nothing", files.base))
        .await
        .is_problem(404, "not_found");

    let response = files.get("/a/b/one.txt", &[]).await;
    assert_eq!(header(&response, "content-type"), "text/plain; charset=utf-8");
    assert_eq!(
        header(&response, "content-disposition"),
        "attachment; filename=\"one.txt\""
    );
    assert_eq!(header(&response, "x-content-type-options"), "nosniff");
    assert_eq!(response.text().await.unwrap(), "hello again");
    assert_eq!(code(files.get("/nothing", &[]).await).await.0, 404);
    assert_eq!(
        files.send(Method::DELETE, "/a/b/one.txt", &[], None).await.status(),
        204
    );
    assert_eq!(
        code(files.send(Method::DELETE, "/a/b/one.txt", &[], None).await)
            .await
            .0,
        404
    );
    assert_eq!(files.send(Method::DELETE, "/a", &[], None).await.status(), 204);
    assert_eq!(files.paths("?recursive=true").await, ["z é.png"]);

    let (_, stranger) = files.api.tenant(json!({"name": "stranger"})).await;
    stranger.get(&files.base).await.is_problem(404, "not_found");
    let taken = stranger
        .request(Method::PUT, &format!("{}/x", files.base))
        .body("x")
        .send()
        .await
        .unwrap();
    assert_eq!(code(taken).await.0, 404);
    assert!(
        std::fs::read_dir(files.folder.path())
            .unwrap()
            .all(|entry| entry.unwrap().file_name() == "workspaces")
    );
}

/// An archive as init packs a file of three names, the first of them in a folder.
fn three_names(content: &[u8]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let head = |kind, size: usize| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(0o640);
        header.set_mtime(1_000_000_000);
        header.set_size(size as u64);
        header
    };
    let mut first = head(tar::EntryType::Regular, content.len());
    builder.append_data(&mut first, "a/first", content).unwrap();
    for path in ["b", "c"] {
        let mut other = head(tar::EntryType::Link, 0);
        let size = format!("{:011o}\0", content.len());
        other.as_gnu_mut().unwrap().realsize.copy_from_slice(size.as_bytes());
        builder.append_link(&mut other, path, "a/first").unwrap();
    }
    builder.into_inner().unwrap()
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_file_of_several_names_is_each_of_them(pool: PgPool) {
    let files = Files::new(pool.clone()).await;
    let tenant_id = sqlx::query_scalar("select tenant_id from conversations");
    let tenant_id: TenantId = tenant_id.fetch_one(&pool).await.unwrap();
    let env = &files.api.env;
    let url = format!("file://{}", files.folder.path().display());
    let workspaces = Workspaces::new(env.store.clone(), Objects::open(&objects::Settings { url }).unwrap());
    let content: Vec<u8> = (0..400_000_u32).flat_map(u32::to_le_bytes).collect();
    let mut saving = workspaces.begin(tenant_id, env.clock.now()).await.unwrap();
    saving.write(&three_names(&content)).await.unwrap();
    let save = Save {
        tenant_id,
        owner: Owner::Conversation(files.base.split('/').nth(2).unwrap().parse().unwrap()),
        expected: 0,
        packed: saving.finish(None).await.unwrap().unwrap(),
        bytes: content.len() as u64,
        entries: 3,
        writer: Writer::Request,
    };
    let saved = env.store.save_workspace(&save, env.clock.now()).await.unwrap();
    assert_eq!(saved, Saved::Committed(1));
    let read = async |path: &str| files.get(path, &[]).await.bytes().await.unwrap();

    let list = files
        .api
        .get(&format!("{}?recursive=true", files.base))
        .await
        .expect(200);
    let shown: Vec<_> = list["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|it| (&it["path"], &it["size"]))
        .collect();
    let size = json!(content.len());
    let (folder, first, b, c) = (json!("a"), json!("a/first"), json!("b"), json!("c"));
    assert_eq!(shown, [(&folder, &json!(0)), (&first, &size), (&b, &size), (&c, &size)]);
    assert!(read("/c").await == content && read("/a/first").await == content);
    let part = files.get("/b", &[("range", "bytes=4-7")]).await;
    assert_eq!(
        (part.status().as_u16(), &part.bytes().await.unwrap()[..]),
        (206, &[1, 0, 0, 0][..])
    );

    // Without the first name the next has the content, and without that the last.
    assert_eq!(files.send(Method::DELETE, "/a", &[], None).await.status(), 204);
    assert_eq!(files.paths("?recursive=true").await, ["b", "c"]);
    assert!(read("/b").await == content && read("/c").await == content);
    let mode = files.api.get(&files.base).await.expect(200)["data"][0]["mode"].clone();
    assert_eq!(mode, list["data"][1]["mode"]);
    assert_eq!(files.put("/b", b"another").await.status(), 200);
    assert!(read("/b").await == "another" && read("/c").await == content);
    assert_eq!(files.send(Method::DELETE, "/c", &[], None).await.status(), 204);
    assert_eq!(files.paths("").await, ["b"]);
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn ranges_and_tags_are_those_of_the_content(pool: PgPool) {
    let files = Files::new(pool).await;
    // One that is kept from the first look, and one that is not.
    let large: Vec<u8> = (0..500_000_u32).flat_map(u32::to_le_bytes).collect();
    for (path, content) in [("/small", &b"0123456789"[..]), ("/large", &large)] {
        let put = files.put(path, content).await;
        let etag = header(&put, "etag");
        let whole = files.get(path, &[]).await;
        assert_eq!((whole.status().as_u16(), header(&whole, "etag")), (200, etag.clone()));
        assert_eq!(header(&whole, "accept-ranges"), "bytes");
        assert!(whole.bytes().await.unwrap() == content);
        for (range, expected) in [
            ("bytes=2-4", 2..5),
            ("bytes=-3", content.len() - 3..content.len()),
            ("bytes=5-", 5..content.len()),
        ] {
            let part = files.get(path, &[("range", range)]).await;
            assert_eq!(part.status(), 206);
            let said = format!("bytes {}-{}/{}", expected.start, expected.end - 1, content.len());
            assert_eq!(header(&part, "content-range"), said);
            assert!(part.bytes().await.unwrap() == content[expected]);
        }
        let beyond = files.get(path, &[("range", "bytes=99999999-")]).await;
        assert_eq!(header(&beyond, "content-range"), format!("bytes */{}", content.len()));
        assert_eq!(code(beyond).await, (416, "range_not_satisfiable".to_owned()));
        let same = files.get(path, &[("if-none-match", &etag)]).await;
        assert_eq!((same.status().as_u16(), header(&same, "etag")), (304, etag.clone()));
        let stale = files
            .get(path, &[("range", "bytes=0-1"), ("if-range", "\"other\"")])
            .await;
        assert_eq!(stale.status(), 200);

        let put = |tag: &'static str, value: String| {
            let files = &files;
            async move {
                files
                    .send(Method::PUT, path, &[(tag, &value)], Some(b"new".to_vec()))
                    .await
            }
        };
        assert_eq!(code(put("if-match", "\"other\"".to_owned()).await).await.0, 412);
        for tag in ["*", &etag, &format!("\"other\", W/{etag}")] {
            assert_eq!(code(put("if-none-match", tag.to_owned()).await).await.0, 412, "{tag}");
        }
        assert_eq!(put("if-match", etag.clone()).await.status(), 200);
        assert_eq!(
            code(put("if-match", etag.clone()).await).await.0,
            412,
            "it was changed since"
        );
        assert_eq!(
            put("if-none-match", etag).await.status(),
            200,
            "it is not that any more"
        );
    }
    let deleted = files
        .send(Method::DELETE, "/small", &[("if-match", "\"other\"")], None)
        .await;
    assert_eq!(code(deleted).await.0, 412);
    let listed = files.get("", &[]).await;
    let etag = header(&listed, "etag");
    assert_eq!(files.get("", &[("if-none-match", &etag)]).await.status(), 304);
    files.put("/other", b"").await;
    assert_eq!(files.get("", &[("if-none-match", &etag)]).await.status(), 200);
    let empty = files.get("/other", &[]).await;
    assert_eq!(empty.status(), 200);
    assert_eq!(empty.text().await.unwrap(), "");
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn what_is_no_file_of_the_workspace_is_refused(pool: PgPool) {
    let files = Files::new(pool).await;
    files.put("/file", b"x").await;
    files.put("/folder/x", b"x").await;
    // As bytes, because clients tidy such paths up.
    for path in [
        "/a/../../x",
        "/..",
        "/%2e%2e/x",
        "/..%2f..%2fx",
        "/./x",
        "//x",
        "/a//x",
        "/x%00y",
        "/%ff",
    ] {
        let id = files
            .base
            .trim_start_matches("/conversations/")
            .trim_end_matches("/files");
        for method in ["GET", "PUT", "DELETE"] {
            let status = raw(&files, method, &format!("/api/v1/conversations/{id}/files{path}")).await;
            assert!((400..500).contains(&status), "{method} {path}: {status}");
        }
    }
    assert_eq!(
        code(files.put("/folder", b"x").await).await,
        (409, "conflict".to_owned())
    );
    assert_eq!(
        code(files.put("/file/below", b"x").await).await,
        (409, "conflict".to_owned())
    );
    assert_eq!(files.paths("?recursive=true").await, ["file", "folder", "folder/x"]);
    assert_eq!(
        code(files.put("/large", &vec![0; 3_000_001]).await).await,
        (413, "too_large".to_owned())
    );
    assert_eq!(files.put("/large", &vec![0; 3_000_000]).await.status(), 201);
    assert_eq!(
        code(files.put("/more", &vec![0; 2_500_000]).await).await,
        (413, "too_large".to_owned())
    );
    let stream = reqwest::Body::wrap_stream(futures_util::stream::iter([Ok::<_, std::io::Error>("x")]));
    let chunked = files
        .api
        .request(Method::PUT, &format!("{}/chunked", files.base))
        .body(stream)
        .send()
        .await
        .unwrap();
    assert_eq!(code(chunked).await, (422, "invalid_request".to_owned()));
    files
        .api
        .get(&format!("{}?path=../x", files.base))
        .await
        .is_problem(422, "invalid_request");
    files
        .api
        .get(&format!("{}?nonsense=1", files.base))
        .await
        .is_problem(422, "invalid_request");
}

/// The status of a request whose path nobody tidies up.
async fn raw(files: &Files, method: &str, path: &str) -> u16 {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(files.api.address).await.unwrap();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\ncontent-length: 1\r\nconnection: close\r\n\r\nx",
        files.api.key
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    String::from_utf8_lossy(&answer)
        .split(' ')
        .nth(1)
        .unwrap()
        .parse()
        .unwrap()
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn while_a_turn_is_under_way_the_files_are_the_turns(pool: PgPool) {
    let files = Files::new(pool).await;
    files.put("/x", b"before").await;
    let turns = files.base.replace("/files", "/turns");
    files.api.post(&turns, json!({"text": "hello"})).await.expect(202);
    assert_eq!(files.put("/x", b"queued").await.status(), 200, "it has not begun");
    let worker = files.api.env.worker();
    let claimed = worker.one().await;
    assert_eq!(
        code(files.put("/x", b"running").await).await,
        (409, "conflict".to_owned())
    );
    assert_eq!(code(files.send(Method::DELETE, "/x", &[], None).await).await.0, 409);
    assert_eq!(files.get("/x", &[]).await.text().await.unwrap(), "queued");
    assert!(worker.succeed(&claimed).await);
    assert_eq!(files.put("/x", b"after").await.status(), 200);
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn a_workspace_is_downloaded_whole(pool: PgPool) {
    let files = Files::new(pool).await;
    let archive = format!("{}.tar.gz", files.base);
    let content: Vec<u8> = (0..100_000_u32).flat_map(u32::to_le_bytes).collect();
    let read = async || {
        let response = files.api.request(Method::GET, &archive).send().await.unwrap();
        assert_eq!(header(&response, "content-type"), "application/gzip");
        let bytes = response.bytes().await.unwrap();
        let mut entries = Vec::new();
        for entry in tar::Archive::new(flate2::read::GzDecoder::new(&bytes[..]))
            .entries()
            .unwrap()
        {
            let mut entry = entry.unwrap();
            let mut content = Vec::new();
            std::io::Read::read_to_end(&mut entry, &mut content).unwrap();
            entries.push((entry.path().unwrap().display().to_string(), content));
        }
        entries
    };
    assert_eq!(read().await, []);
    files.put("/d/large", &content).await;
    files.put("/small", b"x").await;
    let entries = read().await;
    assert!(entries == [("d/large".to_owned(), content), ("small".to_owned(), b"x".to_vec())]);
    let head = files.api.request(Method::GET, &archive).send().await.unwrap();
    let etag = header(&head, "etag");
    let same = files
        .api
        .request(Method::GET, &archive)
        .header("if-none-match", etag)
        .send()
        .await
        .unwrap();
    assert_eq!(same.status(), 304);
}

#[sqlx::test(migrator = "common::store::MIGRATOR")]
async fn artifacts_are_listed_and_read_in_parts(pool: PgPool) {
    let files = Files::new(pool).await;
    let job = files.api.env.job(JobSpec::new(Kind::Exec), b"{}".to_vec());
    let tenant = files.api.get("/tenants").await.expect(200)["data"][0]["id"]
        .as_str()
        .unwrap()
        .to_owned();
    let job = common::job::NewJob {
        tenant_id: tenant.parse().unwrap(),
        ..job
    };
    files.api.env.enqueue(&job).await;
    let worker = files.api.env.worker();
    settle(
        &worker,
        &json!({"artifacts": [{"path": "out/a.png", "size": 10, "url": "u"}]}),
    )
    .await;
    let url = format!("file://{}", files.folder.path().display());
    let objects = Objects::open(&objects::Settings { url }).unwrap();
    objects
        .put(&artifact_key(job.id, 1, "out/a.png"), "0123456789".into())
        .await
        .unwrap();

    let list = files.api.get(&format!("/jobs/{}/artifacts", job.id)).await.expect(200);
    assert_eq!(
        list["data"][0],
        json!({"path": "out/a.png", "size": 10, "content_type": "image/png", "url": "u"})
    );
    let path = format!("/jobs/{}/artifacts/out/a.png", job.id);
    let get = async |name: &'static str, value: &str| {
        files
            .api
            .request(Method::GET, &path)
            .header(name, value)
            .send()
            .await
            .unwrap()
    };
    let whole = get("accept", "*/*").await;
    let etag = header(&whole, "etag");
    assert_eq!(
        (header(&whole, "content-type"), header(&whole, "content-length")),
        ("image/png".to_owned(), "10".to_owned())
    );
    assert_eq!(whole.text().await.unwrap(), "0123456789");
    let part = get("range", "bytes=3-5").await;
    assert_eq!(
        (part.status().as_u16(), part.text().await.unwrap()),
        (206, "345".to_owned())
    );
    assert_eq!(get("if-none-match", &etag).await.status(), 304);
    assert_eq!(get("range", "bytes=10-").await.status(), 416);
    let (_, stranger) = files.api.tenant(json!({"name": "stranger"})).await;
    stranger.get(&path).await.is_problem(404, "not_found");
    stranger
        .get(&format!("/jobs/{}/artifacts", job.id))
        .await
        .is_problem(404, "not_found");
}

async fn settle(worker: &TestWorker, result: &Value) {
    let want = Want {
        slot: SlotClass::Sandbox,
        free: 1,
        labels: Vec::new(),
        queues: Vec::new(),
        mode: Mode::Busy,
    };
    let claimed = worker.claim_as(&want).await.pop().unwrap();
    let mut settlement = worker.settlement(&claimed, common::job::decision::Decision::Succeed, &[]);
    settlement.result = Some(result.to_string().into_bytes());
    assert!(worker.commit(&settlement).await);
}
