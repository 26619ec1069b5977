-- The journal of turns and runs, and what people are asked.

create table journal (
    job_id  uuid        not null,
    attempt integer     not null check (attempt > 0),
    step    integer     not null check (step >= 0),
    place   integer     not null check (place >= -1),
    parent  integer     check (parent > 0),
    data    json        not null,
    at      timestamptz not null,
    primary key (job_id, attempt, step, place)
);
comment on table journal is 'Calls of models and tools that have ended, written before anything follows from them. Insert-only facts, accepted from any attempt that existed.';
comment on column journal.place is 'Which of the step''s tool calls; -1 is the call of the model.';
comment on column journal.parent is 'The attempt whose answer it builds on.';
comment on column journal.data is 'What the call brought: the answer, or what the tool said. json, not jsonb, because text may hold what jsonb refuses.';

create table journal_begun (
    job_id  uuid        not null,
    attempt integer     not null check (attempt > 0),
    step    integer     not null check (step >= 0),
    place   integer     not null check (place >= -1),
    at      timestamptz not null,
    primary key (job_id, attempt, step, place)
);
comment on table journal_begun is 'Calls that began. One that is missing in journal was made again by the next attempt: so repeated calls are counted.';

create table approvals (
    id           uuid        not null primary key,
    tenant_id    uuid        not null,
    job_id       uuid        not null,
    conversation_id uuid,
    agent_id     uuid,
    step         integer     not null,
    place        integer     not null,
    parent       integer     not null,
    tool_call_id text        not null,
    tool         text        not null,
    input        json        not null,
    state        text        not null check (state in ('open', 'approved', 'denied', 'expired')),
    comment      text,
    created_at   timestamptz not null,
    deadline     timestamptz not null,
    answered_at  timestamptz,
    answered_by  uuid,
    check ((state = 'open') = (answered_at is null)),
    unique (job_id, step, place, parent)
);
create index approvals_tenant on approvals (tenant_id, id);
create index approvals_open on approvals (tenant_id, id) where state = 'open';
comment on table approvals is 'Tool calls that run only when a person says so. Written with the change that lets the job wait.';
comment on column approvals.parent is 'The attempt whose answer holds the call.';
comment on column approvals.deadline is 'When the answer is no unless there was one.';
comment on column approvals.answered_by is 'The API key that answered; null when the deadline did.';
