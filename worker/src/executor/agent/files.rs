//! Files that go in with a turn: those that a run was given, and the images that the model is shown.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use common::job::exec::InputFile;
use common::message::{Message, Part, Role};
use common::workspace::Owner;
use common::workspace::tar::{Kind, Reader};

use super::super::Context;
use super::super::exec::archive;
use crate::model::Attachment;

/// Bytes of one image; what is larger no provider takes.
const IMAGE_MAX: u64 = 5 << 20;

/// Bytes of all images of a turn.
const IMAGES_MAX: u64 = 20 << 20;

/// The files that a run was given.
#[derive(Debug, Default)]
pub(super) struct Given(Vec<(String, Vec<u8>)>);

impl Given {
    pub(super) fn new(files: &[InputFile]) -> Self {
        let files = files.iter().filter_map(|file| Some((file.path.clone(), file.bytes()?)));
        Self(files.collect())
    }

    /// What the model is told of them.
    pub(super) fn parts(&self) -> impl Iterator<Item = Part> {
        self.0.iter().map(|(path, content)| Part::File {
            path: path.clone(),
            media_type: image_type(content).map(str::to_owned),
            bytes: u64::try_from(content.len()).ok(),
        })
    }

    /// The images among them.
    pub(super) fn images(&self) -> BTreeMap<String, Attachment> {
        let mut room = IMAGES_MAX;
        let fits = |(path, content): &(String, Vec<u8>)| {
            let attachment = attachment(Bytes::copy_from_slice(content))?;
            let bytes = u64::try_from(content.len()).ok()?;
            room = room.checked_sub(bytes).filter(|_| bytes <= IMAGE_MAX)?;
            Some((path.clone(), attachment))
        };
        self.0.iter().filter_map(fits).collect()
    }

    /// A tar stream of them; none when there are none.
    pub(super) fn archive(&self) -> std::io::Result<Option<Vec<u8>>> {
        if self.0.is_empty() {
            return Ok(None);
        }
        archive(&self.0).map(Some)
    }
}

/// The images of a workspace that messages of a conversation name. An image that cannot be had is left out: the model is
/// told its name.
pub(super) async fn images_of(context: &Context, owner: Owner, history: &[Message]) -> BTreeMap<String, Attachment> {
    let wanted = named(history);
    if wanted.is_empty() {
        return BTreeMap::new();
    }
    match find(context, owner, wanted).await {
        Ok(found) => found,
        Err(error) => {
            tracing::warn!(%error, job_id = %context.job.id, "images of a conversation cannot be read");
            BTreeMap::new()
        }
    }
}

/// The files that users' messages name and that may be images.
fn named(history: &[Message]) -> BTreeSet<&str> {
    let users = history.iter().filter(|message| message.role == Role::User);
    let files = users.flat_map(|message| &message.parts).filter_map(|part| match part {
        Part::File { path, media_type, .. } => {
            let may_be = media_type.as_ref().is_none_or(|kind| kind.starts_with("image/"));
            may_be.then_some(path.as_str().trim_start_matches("./"))
        }
        _ => None,
    });
    files.collect()
}

async fn find(
    context: &Context,
    owner: Owner,
    mut wanted: BTreeSet<&str>,
) -> anyhow::Result<BTreeMap<String, Attachment>> {
    let machine = &context.machine;
    let mut found = BTreeMap::new();
    if !machine.workspaces.is_configured() {
        return Ok(found);
    }
    let Some(present) = machine.store.workspace(context.job.tenant_id, owner).await? else {
        return Ok(found);
    };
    let mut room = IMAGES_MAX;
    let mut reader = Reader::new(machine.workspaces.open(Some(&present)).await?);
    while !wanted.is_empty() {
        let Some(entry) = reader.next().await? else { break };
        if !wanted.remove(entry.path.as_str()) || entry.kind != Kind::File || entry.size > IMAGE_MAX.min(room) {
            continue;
        }
        let mut content = Vec::new();
        loop {
            let piece = reader.read().await?;
            if piece.is_empty() {
                break;
            }
            content.extend_from_slice(&piece);
        }
        if let Some(attachment) = attachment(content.into()) {
            room -= entry.size;
            found.insert(entry.path, attachment);
        }
    }
    Ok(found)
}

fn attachment(data: Bytes) -> Option<Attachment> {
    let media_type = image_type(&data)?.to_owned();
    Some(Attachment { media_type, data })
}

/// The type of an image by its first bytes, whatever its name says.
fn image_type(content: &[u8]) -> Option<&'static str> {
    match content {
        [0x89, b'P', b'N', b'G', ..] => Some("image/png"),
        [0xff, 0xd8, 0xff, ..] => Some("image/jpeg"),
        [b'G', b'I', b'F', b'8', ..] => Some("image/gif"),
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => Some("image/webp"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_known_by_its_content() {
        let file = |path: &str, content: &str| InputFile {
            path: path.to_owned(),
            content: Some(content.to_owned()),
            content_base64: None,
        };
        let given = Given::new(&[
            file("a.gif", "GIF89a…"),
            file("b.png", "no picture"),
            file("c", "RIFF1234WEBP"),
        ]);
        let images = given.images();
        let kinds: Vec<(&str, &str)> = images
            .iter()
            .map(|(path, image)| (path.as_str(), image.media_type.as_str()))
            .collect();
        assert_eq!(kinds, [("a.gif", "image/gif"), ("c", "image/webp")]);
        assert_eq!(given.parts().count(), 3);
        assert!(Given::default().archive().unwrap().is_none());
    }
}
