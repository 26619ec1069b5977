//! Objects: artifacts and the archives of workspaces, in a folder or a bucket.
//!
//! Keys are made here alone, from ids and hashes, so that nothing a job names ever becomes a path.

use bytes::Bytes;
use futures_util::{Stream, TryStreamExt as _};
use object_store::buffered::BufWriter;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{GetOptions, GetRange, ObjectStore, ObjectStoreExt, PutPayload};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::ops::Range;
use std::sync::Arc;
use tokio::io::AsyncWriteExt as _;
use tokio::runtime::Handle;
use tokio_util::task::TaskTracker;

use crate::config;
use crate::ids::JobId;

/// `[objects]`: where objects are kept.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// `file:///folder` (one that all processes share) or `s3://bucket/prefix`; empty is none, and then a job that asks
    /// for artifacts fails with a clear message.
    pub url: String,
}

/// Why an object was not stored or read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no place for objects.
    #[error("no object store is configured (objects.url)")]
    NotConfigured,
    /// There is no such object.
    #[error("there is no such object")]
    NotFound,
    /// The store does not answer, or refuses.
    #[error("the object store failed")]
    Store(#[source] object_store::Error),
}

/// A place for objects. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Objects {
    store: Option<(Arc<dyn ObjectStore>, Path)>,
    /// The same, where it is a folder.
    folder: Option<Arc<LocalFileSystem>>,
    /// Uploads that are being forgotten.
    aborts: TaskTracker,
}

impl Objects {
    /// No place: nothing is kept.
    pub fn none() -> Self {
        Self::over(None, None)
    }

    fn over(store: Option<(Arc<dyn ObjectStore>, Path)>, folder: Option<Arc<LocalFileSystem>>) -> Self {
        Self {
            store,
            folder,
            aborts: TaskTracker::new(),
        }
    }

    /// Opens the place that the settings name; a folder is made when it is not there.
    ///
    /// # Errors
    /// When the URL cannot be used.
    pub fn open(settings: &Settings) -> Result<Self, config::Error> {
        if settings.url.is_empty() {
            return Ok(Self::none());
        }
        let invalid = |error: &dyn std::fmt::Display| config::Error::Invalid(format!("objects.url: {error}"));
        let url = url::Url::parse(&settings.url).map_err(|error| invalid(&error))?;
        if url.scheme() == "file" {
            std::fs::create_dir_all(url.path()).map_err(|error| invalid(&error))?;
            // Folders that become empty are deleted with the last object in them.
            let store = Arc::new(LocalFileSystem::new().with_automatic_cleanup(true));
            let prefix = Path::from_url_path(url.path()).map_err(|error| invalid(&error))?;
            let folder = Arc::clone(&store);
            return Ok(Self::over(Some((store, prefix)), Some(folder)));
        }
        let environment = std::env::vars().filter(|(name, _)| name.starts_with("AWS_"));
        let (store, prefix) = object_store::parse_url_opts(&url, environment).map_err(|error| invalid(&error))?;
        Ok(Self::over(Some((Arc::from(store), prefix)), None))
    }

    /// Whether there is a place at all.
    pub fn is_configured(&self) -> bool {
        self.store.is_some()
    }

    fn at(&self, key: &str) -> Result<(&Arc<dyn ObjectStore>, Path), Error> {
        let (store, prefix) = self.store.as_ref().ok_or(Error::NotConfigured)?;
        let path = key.split('/').fold(prefix.clone(), Path::join);
        Ok((store, path))
    }

    /// Stores an object, replacing the one of the same key.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn put(&self, key: &str, content: Bytes) -> Result<(), Error> {
        let (store, path) = self.at(key)?;
        store
            .put(&path, PutPayload::from_bytes(content))
            .await
            .map_err(Error::Store)?;
        Ok(())
    }

    /// The content of an object.
    ///
    /// # Errors
    /// [`Error::NotFound`], or when the store does not answer.
    pub async fn get(&self, key: &str) -> Result<Bytes, Error> {
        let (store, path) = self.at(key)?;
        let found = store.get(&path).await.map_err(|error| match error {
            object_store::Error::NotFound { .. } => Error::NotFound,
            other => Error::Store(other),
        })?;
        found.bytes().await.map_err(Error::Store)
    }

    /// The content of an object as it comes.
    ///
    /// # Errors
    /// [`Error::NotFound`], or when the store does not answer; what breaks later comes through the stream.
    pub async fn stream(&self, key: &str) -> Result<impl Stream<Item = Result<Bytes, Error>> + Send + use<>, Error> {
        self.read(key, None).await
    }

    /// The content of an object, or a part of it, as it comes.
    ///
    /// # Errors
    /// As [`Self::stream`].
    pub async fn read(
        &self,
        key: &str,
        range: Option<Range<u64>>,
    ) -> Result<impl Stream<Item = Result<Bytes, Error>> + Send + use<>, Error> {
        let (store, path) = self.at(key)?;
        let options = GetOptions {
            range: range.map(GetRange::Bounded),
            ..GetOptions::default()
        };
        let found = store.get_opts(&path, options).await.map_err(|error| match error {
            object_store::Error::NotFound { .. } => Error::NotFound,
            other => Error::Store(other),
        })?;
        Ok(found.into_stream().map_err(Error::Store))
    }

    /// The size of an object, bytes.
    ///
    /// # Errors
    /// As [`Self::stream`].
    pub async fn size(&self, key: &str) -> Result<u64, Error> {
        let (store, path) = self.at(key)?;
        store
            .head(&path)
            .await
            .map(|meta| meta.size)
            .map_err(|error| match error {
                object_store::Error::NotFound { .. } => Error::NotFound,
                other => Error::Store(other),
            })
    }

    /// Begins an object that is written piece by piece; it is there when [`Upload::finish`] says so, and not before.
    ///
    /// # Errors
    /// [`Error::NotConfigured`].
    pub fn upload(&self, key: &str) -> Result<Upload, Error> {
        let (store, path) = self.at(key)?;
        Ok(Upload {
            writer: Some(BufWriter::with_capacity(Arc::clone(store), path, PART)),
            aborts: self.aborts.clone(),
        })
    }

    /// Deletes an object; one that is not there is deleted already.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn delete(&self, key: &str) -> Result<(), Error> {
        let (store, path) = self.at(key)?;
        match store.delete(&path).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => {}
            Err(error) => return Err(Error::Store(error)),
        }
        if let Some(folder) = &self.folder {
            let file = folder.path_to_filesystem(&path).map_err(Error::Store)?;
            delete_uploads(&file).await;
        }
        Ok(())
    }
}

/// Deletes what uploads of this file left behind whose process died: they are written beside it, as `file#1`, `file#2` and so
/// on, and the store knows them no more.
async fn delete_uploads(file: &std::path::Path) {
    for number in 1_u32.. {
        let mut upload = file.as_os_str().to_owned();
        upload.push(format!("#{number}"));
        match tokio::fs::remove_file(&upload).await {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return,
            Err(error) => return tracing::warn!(%error, ?upload, "an upload that was broken off stays"),
        }
    }
}

impl Objects {
    /// Up to `limit` artifacts of jobs whose id is below `before`, by their keys.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn artifacts_before(&self, before: JobId, limit: usize) -> Result<Vec<(JobId, String)>, Error> {
        let (store, folder) = self.at("artifacts")?;
        let mut listed = store.list(Some(&folder));
        let mut found = Vec::new();
        while let Some(meta) = listed.try_next().await.map_err(Error::Store)? {
            let Some(names) = meta.location.prefix_match(&folder) else {
                continue;
            };
            let names: Vec<String> = names.map(|name| name.as_ref().to_owned()).collect();
            let job_id = names.first().and_then(|name| name.parse::<JobId>().ok());
            let Some(job_id) = job_id else { continue };
            if job_id < before {
                found.push((job_id, format!("artifacts/{}", names.join("/"))));
            }
            if found.len() >= limit {
                break;
            }
        }
        Ok(found)
    }
}

/// What goes to the store in one request, bytes: at least what S3 asks of a part.
const PART: usize = 8 << 20;

/// An object that is being written. One that is dropped is forgotten behind: a bucket keeps the parts of an upload, and asks
/// for their price, until somebody says that it is over.
#[derive(Debug)]
pub struct Upload {
    // None once it is finished.
    writer: Option<BufWriter>,
    aborts: TaskTracker,
}

impl Upload {
    /// Takes another piece.
    ///
    /// # Errors
    /// When the store does not answer.
    pub async fn write(&mut self, piece: Bytes) -> Result<(), Error> {
        let writer = self.writer.as_mut().expect("only finish takes it, and ends the upload");
        writer.put(piece).await.map_err(Error::Store)
    }

    /// Makes the object.
    ///
    /// # Errors
    /// When the store does not answer: then there is none.
    pub async fn finish(mut self) -> Result<(), Error> {
        let mut writer = self.writer.take().expect("only finish takes it, and ends the upload");
        writer.shutdown().await.map_err(|source| {
            let source = Box::new(source);
            Error::Store(object_store::Error::Generic {
                store: "upload",
                source,
            })
        })
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        let (Some(mut writer), Ok(runtime)) = (self.writer.take(), Handle::try_current()) else {
            return;
        };
        let abort = async move {
            if let Err(error) = writer.abort().await {
                tracing::warn!(%error, "parts of an upload that was given up stay");
            }
        };
        self.aborts.spawn_on(abort, &runtime);
    }
}

/// The key of a job's artifact. The attempt is part of it: one that lost its lease overwrites nothing.
pub fn artifact_key(job_id: JobId, attempt: u32, path: &str) -> String {
    format!("artifacts/{job_id}/{attempt}/{}", hex::encode(Sha256::digest(path)))
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::Mutex;

    use http_body_util::{BodyExt as _, Full};
    use hyper::body::Incoming;
    use hyper::service::service_fn;
    use hyper::{Method, Request, Response};
    use hyper_util::rt::TokioIo;
    use object_store::aws::AmazonS3Builder;
    use tokio::net::TcpListener;
    use tokio::task::JoinSet;

    use super::*;

    /// A bucket that takes uploads in parts, and what it was asked; it is gone with the tasks.
    async fn bucket(tasks: &mut JoinSet<()>) -> (Objects, Arc<Mutex<Vec<String>>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let heard = Arc::clone(&asked);
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let heard = Arc::clone(&heard);
                let answer = service_fn(move |request| answer(request, Arc::clone(&heard)));
                let served = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), answer);
                connections.spawn(async move { drop(served.await) });
            }
        });
        let store = AmazonS3Builder::new()
            .with_endpoint(format!("http://{address}"))
            .with_allow_http(true)
            .with_bucket_name("bucket")
            .with_access_key_id("id")
            .with_secret_access_key("key")
            .build()
            .unwrap();
        (Objects::over(Some((Arc::new(store), Path::default())), None), asked)
    }

    async fn answer(
        request: Request<Incoming>,
        heard: Arc<Mutex<Vec<String>>>,
    ) -> Result<Response<Full<Bytes>>, Infallible> {
        let (head, body) = request.into_parts();
        body.collect().await.unwrap();
        let query = head.uri.query().unwrap_or_default();
        heard.lock().unwrap().push(format!("{} {query}", head.method));
        let text = match head.method {
            Method::POST if query == "uploads=" => {
                "<InitiateMultipartUploadResult><UploadId>u</UploadId></InitiateMultipartUploadResult>"
            }
            Method::POST => "<CompleteMultipartUploadResult><ETag>e</ETag></CompleteMultipartUploadResult>",
            _ => "",
        };
        let response = Response::builder().header("etag", "e");
        Ok(response.body(Full::from(text)).unwrap())
    }

    #[tokio::test]
    async fn an_upload_that_is_given_up_leaves_no_parts_in_a_bucket() {
        let mut tasks = JoinSet::new();
        for is_finished in [false, true] {
            let (objects, asked) = bucket(&mut tasks).await;
            let mut upload = objects.upload("a").unwrap();
            for _ in 0..3 {
                upload.write(Bytes::from(vec![7; PART])).await.unwrap();
            }
            if is_finished {
                upload.finish().await.unwrap();
            } else {
                drop(upload);
            }
            objects.aborts.close();
            objects.aborts.wait().await;
            let asked = asked.lock().unwrap().clone();
            let asked: Vec<&str> = asked
                .iter()
                .map(String::as_str)
                .filter(|asked| !asked.starts_with("PUT"))
                .collect();
            let end = if is_finished {
                "POST uploadId=u"
            } else {
                "DELETE uploadId=u"
            };
            assert_eq!(asked, ["POST uploads=", end]);
        }
        // One that is small has nothing there before it is finished.
        let (objects, asked) = bucket(&mut tasks).await;
        objects
            .upload("a")
            .unwrap()
            .write(Bytes::from_static(b"x"))
            .await
            .unwrap();
        objects.aborts.close();
        objects.aborts.wait().await;
        assert!(asked.lock().unwrap().is_empty());
    }

    #[tokio::test]
    async fn what_is_put_is_got_back_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let settings = Settings {
            url: format!("file://{}/objects", folder.path().display()),
        };
        let objects = Objects::open(&settings).unwrap();
        let (job_id, path) = (JobId::new(), "../../etc/passwd");
        objects
            .put(&artifact_key(job_id, 1, path), Bytes::from_static(b"x"))
            .await
            .unwrap();
        assert_eq!(objects.get(&artifact_key(job_id, 1, path)).await.unwrap(), "x");
        assert!(matches!(
            objects.get(&artifact_key(job_id, 2, path)).await,
            Err(Error::NotFound)
        ));
    }

    #[tokio::test]
    async fn what_an_upload_left_whose_process_died_goes_with_its_object() {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("file://{}", folder.path().display());
        let objects = Objects::open(&Settings { url }).unwrap();
        for name in ["a#1", "a#2", "b#1"] {
            std::fs::write(folder.path().join(name), "half").unwrap();
        }
        objects.put("a", Bytes::from_static(b"x")).await.unwrap();
        objects.delete("a").await.unwrap();
        let left = std::fs::read_dir(folder.path()).unwrap();
        let left: Vec<_> = left.map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["b#1"]);
    }

    #[tokio::test]
    async fn without_a_place_it_says_so() {
        let objects = Objects::open(&Settings { url: String::new() }).unwrap();
        assert!(matches!(
            objects.put("a", Bytes::new()).await,
            Err(Error::NotConfigured)
        ));
    }
}
