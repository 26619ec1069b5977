//! Turns: a user's message, and the job that answers it.

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use common::ids::{ConversationId, JobId, MessageId};
use common::job::{Job, Kind, NewJob};
use common::message::{Message, Role};
use common::queue::Dispatch;
use common::store::conversations::Conversation;
use common::store::idempotency::Idempotency;
use common::store::take_turn::{NewTurn, TurnAccepted};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::messages::MessageDocument;
use super::read;
use super::said::{SaidPart, said};
use crate::auth::Caller;
use crate::extract::{PathId, RawBody};
use crate::job::{AgentRef, JobFields, JobView, ResolvedAgent, Runnable, fits, job_for, split};
use crate::openapi::BASE;
use crate::problem::{Code, Document, Problem};
use crate::routes::jobs::cancel::cancel_one;
use crate::routes::jobs::idempotency::{self, Keyed};
use crate::routes::jobs::{accepted_job, read_job, strategy};
use crate::state::App;

/// What happens when another turn is open.
#[derive(Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum IfBusy {
    /// This one waits for it.
    #[default]
    Queue,
    /// This one is refused with 409.
    Reject,
    /// The open ones are cancelled.
    Interrupt,
}

/// What a turn is made of, besides the fields of a job: `text` or `parts`.
#[derive(Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
struct TurnFields {
    /// The message as one text.
    text: Option<String>,
    /// The message as typed parts: `text` and `file`.
    #[schema(value_type = Option<Vec<Object>>)]
    parts: Option<Vec<SaidPart>>,
    /// `queue`.
    if_busy: Option<IfBusy>,
}

/// The body of a turn.
#[derive(ToSchema)]
#[expect(
    dead_code,
    reason = "only its schema is used: serde cannot refuse unknown fields through flattened structs"
)]
pub(super) struct TurnRequest {
    #[serde(flatten)]
    turn: TurnFields,
    #[serde(flatten)]
    job: JobFields,
}

/// A turn that was accepted.
#[derive(Serialize)]
struct TurnView<'a> {
    job: JobView<'a>,
    message: &'a Message,
}

/// A turn that was accepted.
#[derive(ToSchema)]
#[schema(as = Turn)]
#[expect(dead_code, reason = "only its schema is used")]
pub(super) struct TurnDocument {
    /// The job that answers.
    job: JobView<'static>,
    /// The user's message.
    message: MessageDocument,
}

/// The input of a turn as its worker reads it, beside the messages of the conversation.
#[derive(Serialize, Deserialize)]
struct StoredTurn<A> {
    message_id: MessageId,
    agent: A,
    agent_version: Option<u32>,
}

/// The agent that answers in a conversation, as it is now.
///
/// # Errors
/// As for a turn: 404 or 409 when it is gone or archived.
pub(in crate::routes) async fn answering(
    app: &App,
    caller: &Caller,
    conversation: &Conversation,
) -> Result<ResolvedAgent, Problem> {
    match (&conversation.agent_id, &conversation.agent) {
        (Some(id), _) => ResolvedAgent::saved(app, caller, *id).await,
        (None, definition) => {
            let agent = AgentRef {
                agent_id: None,
                agent: definition.clone(),
            };
            agent.resolve(app, caller, "/agent").await
        }
    }
}

/// Take a turn: add a message, and submit the job that answers it.
///
/// Turns of a conversation run one at a time, in the order of their messages.
#[utoipa::path(post, path = "/conversations/{id}/turns", tag = "conversations", request_body = TurnRequest,
    params(("id" = String, Path, description = "The conversation"),
        ("Idempotency-Key" = Option<String>, Header, description = "1 to 255 visible characters")),
    responses(
        (status = 202, body = TurnDocument),
        (status = 404, body = Document, content_type = "application/problem+json"),
        (status = 409, body = Document, content_type = "application/problem+json"),
        (status = 422, body = Document, content_type = "application/problem+json")))]
pub(super) async fn submit(
    State(app): State<App>,
    caller: Caller,
    PathId(id): PathId<ConversationId>,
    key: Keyed,
    body: RawBody,
) -> Result<Response, Problem> {
    let conversation = read(&app, &caller, id).await?;
    fits(&app, body.text(), "/text")?;
    let (turn, fields): (TurnFields, JobFields) = split(body.text(), &["text", "parts", "if_busy"])?;
    let if_busy = turn.if_busy.unwrap_or_default();
    let message = Message::new(Role::User, said(turn.text, turn.parts, "")?, app.clock().now());
    let rejects = if_busy == IfBusy::Reject;
    let idempotency = key.fingerprint(body.bytes());
    let place = (&conversation, None);
    let taken = take(&app, &caller, place, message, (fields, rejects), idempotency).await?;
    if if_busy == IfBusy::Interrupt {
        interrupt(&app, &caller, id, taken.job_id()).await?;
    }
    Ok(match &taken {
        Taken::New(job, message) => answer(job.id, JobView::accepted(job), message),
        Taken::Before(job, message) => answer(job.id, JobView::new(job), message),
    })
}

/// Cancels the turns that are open before one that was taken. A request that is repeated does what the first may not have come
/// to.
async fn interrupt(app: &App, caller: &Caller, id: ConversationId, taken: JobId) -> Result<(), Problem> {
    let open = app.store().open_turns(caller.tenant_id(), id).await?;
    // A turn's id is above those of the turns before it.
    for before in open.into_iter().filter(|open| *open < taken) {
        cancel_one(app, caller, before).await?;
    }
    Ok(())
}

/// A turn that was taken.
pub(super) enum Taken {
    /// By this request.
    New(Box<NewJob>, Message),
    /// By the first request with this key.
    Before(Box<Job>, Message),
}

impl Taken {
    pub(super) fn job_id(&self) -> JobId {
        match self {
            Self::New(job, _) => job.id,
            Self::Before(job, _) => job.id,
        }
    }

    pub(super) fn conversation_id(&self) -> Option<ConversationId> {
        match self {
            Self::New(job, _) => job.links.conversation_id,
            Self::Before(job, _) => job.conversation_id,
        }
    }
}

/// Adds a message and the job that answers it, and makes the job known: to a conversation, or to a branch of it before the
/// turn of a message. The flag: whether it is refused while another turn is open.
///
/// # Errors
/// 404, 409 and 422 as for a turn.
pub(super) async fn take(
    app: &App,
    caller: &Caller,
    (conversation, branch_at): (&Conversation, Option<MessageId>),
    message: Message,
    (fields, reject_if_busy): (JobFields, bool),
    idempotency: Option<Idempotency>,
) -> Result<Taken, Problem> {
    let job = job(app, caller, conversation, fields, message.id).await;
    // A whole conversation is not copied for a request that was made before.
    if (job.is_err() || branch_at.is_some())
        && let Some(ids) = idempotency::earlier(app, caller, idempotency.as_ref()).await?
    {
        let first = ids.into_iter().next().flatten().ok_or_else(idempotency::gone)?;
        return repeated(app, caller, first).await;
    }
    let new = NewTurn {
        job: job?,
        message: message.clone(),
        seen: conversation.position,
        reject_if_busy,
        idempotency,
    };
    let (store, id) = (app.store(), conversation.id);
    let accepted = match branch_at {
        None => store.insert_turn(id, new).await?,
        Some(asked) => {
            store
                .insert_turn_in_branch(id, asked, ConversationId::new(), new)
                .await?
        }
    };
    match accepted {
        TurnAccepted::Inserted(job) => {
            if job.spec.run_at.is_none_or(|run_at| run_at <= job.created_at) {
                app.submitter().dispatch(vec![Dispatch::from_new(&job)]);
            }
            app.hub().announce(job.id);
            Ok(Taken::New(job, message))
        }
        TurnAccepted::Repeated(job_id) => repeated(app, caller, job_id).await,
        TurnAccepted::KeyReused => Err(idempotency::reused()),
        TurnAccepted::Busy => Err(Problem::new(Code::Conflict, "another turn of the conversation is open")),
        TurnAccepted::Rejected => Err(strategy::rejected()),
        TurnAccepted::Gone => Err(Problem::not_found("conversation")),
    }
}

fn answer(job_id: JobId, job: JobView<'_>, message: &Message) -> Response {
    let view = TurnView { job, message };
    let location = format!("{BASE}/jobs/{job_id}");
    (StatusCode::ACCEPTED, [(header::LOCATION, location)], Json(view)).into_response()
}

/// The job that answers a message of a conversation.
async fn job(
    app: &App,
    caller: &Caller,
    conversation: &Conversation,
    mut fields: JobFields,
    message_id: MessageId,
) -> Result<NewJob, Problem> {
    let agent = answering(app, caller, conversation).await?;
    let agent_version = agent.link.map(|(_, version)| version);
    let stored = StoredTurn {
        message_id,
        agent: &agent.definition,
        agent_version,
    };
    let runnable = Runnable {
        input: serde_json::to_vec(&stored).unwrap_or_default(),
        slot: agent.definition.slot_class(),
        agent: agent.link,
        timeout: Some(agent.definition.timeout),
        alone: None,
    };
    fields.user_id = fields.user_id.or_else(|| conversation.user_id.clone());
    let mut job = job_for(app, caller, Kind::ChatTurn, fields, runnable)?;
    job.links.conversation_id = Some(conversation.id);
    Ok(job)
}

/// The first request's job and message.
async fn repeated(app: &App, caller: &Caller, job_id: JobId) -> Result<Taken, Problem> {
    let detail = read_job(app, caller, job_id).await?;
    let stored: StoredTurn<serde::de::IgnoredAny> = serde_json::from_slice(&detail.input)
        .map_err(|_unreadable| Problem::new(Code::Internal, "the first turn cannot be read"))?;
    let gone = || Problem::not_found("message: the first one is gone");
    let conversation_id = detail.job.conversation_id.ok_or_else(gone)?;
    let message = app.store().message(conversation_id, stored.message_id).await?;
    Ok(Taken::Before(Box::new(detail.job), message.ok_or_else(gone)?))
}

/// Stop the turn under way. The next one that waits goes on.
#[utoipa::path(post, path = "/conversations/{id}/cancel", tag = "conversations",
    params(("id" = String, Path, description = "The conversation")),
    responses(
        (status = 202, body = JobView<'static>),
        (status = 404, body = Document, content_type = "application/problem+json"),
        (status = 409, body = Document, content_type = "application/problem+json")))]
pub(super) async fn cancel(
    State(app): State<App>,
    caller: Caller,
    PathId(id): PathId<ConversationId>,
) -> Result<Response, Problem> {
    read(&app, &caller, id).await?;
    let open = app.store().open_turns(caller.tenant_id(), id).await?;
    let first = open
        .first()
        .ok_or_else(|| Problem::new(Code::Conflict, "no turn of the conversation is open"))?;
    let job = cancel_one(&app, &caller, *first)
        .await?
        .ok_or_else(|| Problem::not_found("job"))?;
    Ok(accepted_job(&job))
}
