-- Cron schedules and what became of each due time.

create table schedules (
    id            uuid        not null primary key,
    tenant_id     uuid        not null references tenants,
    name          text        not null check (length(name) between 1 and 200),
    cron          text        not null,
    timezone      text        not null,
    target        bytea       not null,
    overlap       text        not null check (overlap in ('skip', 'queue', 'cancel_running', 'allow')),
    catch_up_ms   bigint      not null check (catch_up_ms >= 0),
    jitter_ms     bigint      not null check (jitter_ms >= 0),
    starts_at     timestamptz,
    ends_at       timestamptz,
    enabled       boolean     not null,
    paused_reason text,
    next_fire_at  timestamptz,
    last_fire_at  timestamptz,
    last_job_id   uuid,
    version       bigint      not null default 1,
    created_at    timestamptz not null,
    updated_at    timestamptz not null,
    deleted_at    timestamptz
);
create index schedules_tenant on schedules (tenant_id, id) where deleted_at is null;
create index schedules_due on schedules (next_fire_at) where enabled and deleted_at is null and next_fire_at is not null;
comment on column schedules.target is 'JSON of the job to submit at each fire, validated when the schedule was saved.';
comment on column schedules.next_fire_at is 'The next due time without jitter; null when there is none.';
comment on column schedules.version is 'Grows with each edit.';

create table fires (
    schedule_id uuid        not null references schedules,
    fire_at     timestamptz not null,
    fired_at    timestamptz not null,
    epoch       bigint      not null,
    job_id      uuid,
    outcome     text        not null check (outcome in ('fired', 'skipped', 'missed')),
    reason      text,
    manual      boolean     not null default false,
    primary key (schedule_id, fire_at)
);
comment on table fires is 'One row for each due time that was decided: the primary key makes firing twice impossible.';
comment on column fires.epoch is 'The leader''s epoch, checked in the same transaction.';
