-- Agents, conversations and their messages.

create table agents (
    id         uuid        not null primary key,
    tenant_id  uuid        not null references tenants,
    name       text        not null check (length(name) between 1 and 200),
    version    integer     not null check (version > 0),
    definition json        not null,
    created_at timestamptz not null,
    updated_at timestamptz not null,
    deleted_at timestamptz
);
create index agents_tenant on agents (tenant_id, id) where deleted_at is null;
comment on column agents.definition is 'json, not jsonb: instructions may hold what jsonb refuses.';
comment on column agents.version is 'The current version; definition repeats its content so that a run reads one row.';

create table agent_versions (
    agent_id   uuid        not null references agents,
    version    integer     not null,
    definition json        not null,
    created_at timestamptz not null,
    primary key (agent_id, version)
);

create table conversations (
    id            uuid        not null primary key,
    tenant_id     uuid        not null references tenants,
    agent_id      uuid        references agents,
    agent         json,
    title         text        not null default '',
    metadata      jsonb       not null,
    position      bigint      not null default 0,
    active_job_id uuid,
    user_id       text,
    created_at    timestamptz not null,
    updated_at    timestamptz not null,
    deleted_at    timestamptz,
    check ((agent_id is null) <> (agent is null))
);
create index conversations_tenant on conversations (tenant_id, id) where deleted_at is null;
comment on column conversations.agent is 'The definition of an inline agent, where no saved one is named.';
comment on column conversations.position is 'Position of the last message.';
comment on column conversations.active_job_id is 'The turn under way, taken at claim by compare-and-set: one turn at a time.';

create table messages (
    id              uuid        not null primary key,
    conversation_id uuid        not null references conversations,
    position        bigint      not null,
    role            text        not null check (role in ('user', 'assistant')),
    parts           json        not null,
    job_id          uuid,
    usage           json,
    created_at      timestamptz not null,
    unique (conversation_id, position)
);
create index messages_job on messages (job_id) where job_id is not null;
comment on column messages.parts is 'Typed parts as API.md lists them; json, not jsonb, because text may hold what jsonb refuses.';
