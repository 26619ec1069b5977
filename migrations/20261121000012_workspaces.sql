-- Workspaces: the files of a conversation or an agent, kept as archives in the object store.

create table workspace_archives (
    id            uuid        not null primary key,
    tenant_id     uuid        not null references tenants,
    digest        bytea       check (length(digest) = 32),
    archive_bytes bigint      check (archive_bytes >= 0),
    bytes         bigint      check (bytes >= 0),
    entries       bigint      check (entries >= 0),
    created_at    timestamptz not null,
    unused_at     timestamptz,
    constraint workspace_archives_written check (unused_at is not null or
        (digest is not null and archive_bytes is not null and bytes is not null and entries is not null))
);
create index workspace_archives_unused on workspace_archives (unused_at) where unused_at is not null;
comment on table workspace_archives is 'One object each, written down before it is uploaded: what a process leaves behind when it dies is found here.';
comment on column workspace_archives.id is 'Names the object too.';
comment on column workspace_archives.tenant_id is 'Whose files they are.';
comment on column workspace_archives.digest is 'SHA-256 of the tar stream before compression; equal files make an equal stream.';
comment on column workspace_archives.archive_bytes is 'Size of the object.';
comment on column workspace_archives.bytes is 'Size of all files together.';
comment on column workspace_archives.entries is 'Files, folders and links.';
comment on column workspace_archives.created_at is 'When its upload began.';
comment on column workspace_archives.unused_at is 'Since when no workspace has it, from the beginning until it is committed too; it is deleted some time after.';

create table workspaces (
    id         uuid        not null primary key,
    tenant_id  uuid        not null references tenants,
    owner      text        not null check (owner in ('conversation', 'agent')),
    version    bigint      not null check (version > 0),
    archive_id uuid        not null references workspace_archives,
    job_id     uuid,
    attempt    integer,
    updated_at timestamptz not null,
    check ((job_id is null) = (attempt is null))
);
create index workspaces_archive on workspaces (archive_id);
comment on table workspaces is 'The present version of each workspace. Who has none has no files yet.';
comment on column workspaces.id is 'That of the conversation or the agent. No foreign key: the duty workspaces deletes it after its owner.';
comment on column workspaces.tenant_id is 'Whose it is.';
comment on column workspaces.owner is 'What the id names.';
comment on column workspaces.version is 'Grows with each change; a writer names the one that it began with and is refused when there is another.';
comment on column workspaces.archive_id is 'Its files. Two workspaces may share an archive: a branch begins so.';
comment on column workspaces.job_id is 'The job that wrote this version; null when a request did.';
comment on column workspaces.attempt is 'The attempt of that job.';
comment on column workspaces.updated_at is 'When this version was committed.';

alter table workers add column sandboxes json;
comment on column workers.sandboxes is 'What its pool holds of each environment, as of seen_at.';
