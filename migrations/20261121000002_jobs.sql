-- Jobs, their attempts and their event log: partitioned by day on the time-ordered job id (UUIDv7), so that old days
-- are dropped whole and never deleted row by row.

create table jobs (
    id                   uuid        not null primary key,
    tenant_id            uuid        not null,
    kind                 text        not null check (kind in ('noop', 'exec', 'agent_run', 'chat_turn')),
    queue                text        not null,
    class                text        not null,
    labels               text[]      not null,
    priority             smallint    not null check (priority between 0 and 9),
    state                text        not null,
    attempt              integer     not null default 0 check (attempt >= 0),
    failures             integer     not null default 0 check (failures >= 0),
    losses               integer     not null default 0 check (losses >= 0),
    max_attempts         integer     not null check (max_attempts between 1 and 100),
    backoff_initial_ms   bigint      not null,
    backoff_factor       float8      not null,
    backoff_max_ms       bigint      not null,
    retry_on             text[]      not null,
    timeout_ms           bigint      not null check (timeout_ms > 0),
    run_at               timestamptz,
    due_at               timestamptz,
    created_at           timestamptz not null,
    queued_at            timestamptz,
    started_at           timestamptz,
    finished_at          timestamptz,
    worker_id            uuid,
    cancel_requested_at  timestamptz,
    seq                  bigint      not null check (seq >= 1),
    input                bytea       not null,
    result               bytea,
    error_code           text,
    error_message        text,
    usage                json,
    concurrency_key      text,
    concurrency_limit    integer check (concurrency_limit > 0),
    concurrency_strategy text check (concurrency_strategy in ('queue', 'reject', 'cancel_running')),
    user_id              text,
    api_key_id           uuid,
    metadata             jsonb       not null,
    agent_id             uuid,
    agent_version        integer,
    conversation_id      uuid,
    schedule_id          uuid,
    parent_id            uuid,
    redrive_of           uuid,

    constraint jobs_state check (state in
        ('scheduled', 'queued', 'running', 'waiting', 'retrying', 'succeeded', 'failed', 'cancelled')),
    constraint jobs_finished check ((state in ('succeeded', 'failed', 'cancelled')) = (finished_at is not null)),
    constraint jobs_due check ((state in ('scheduled', 'retrying')) = (due_at is not null)),
    constraint jobs_running check (state <> 'running' or (worker_id is not null and started_at is not null and attempt > 0)),
    constraint jobs_queued check (state <> 'queued' or queued_at is not null),
    constraint jobs_failed check (state <> 'failed' or error_code is not null),
    constraint jobs_succeeded check (state <> 'succeeded' or error_code is null)
) partition by range (id);

comment on table jobs is 'The truth of every job. Redis only indexes who may work on one now.';
comment on column jobs.class is 'What a slot must be: light or sandbox, followed by the required labels, each after a plus sign.';
comment on column jobs.attempt is 'The fence: grows with each claim; a write that names another attempt is refused.';
comment on column jobs.failures is 'Attempts that failed by the job''s own fault: counts towards max_attempts.';
comment on column jobs.losses is 'Workers that died under the job.';
comment on column jobs.retry_on is 'Error codes that are retried although they usually are not.';
comment on column jobs.run_at is 'When the submitter wanted it to run; never changes.';
comment on column jobs.due_at is 'When a scheduled or retrying job becomes queued.';
comment on column jobs.started_at is 'When the current, or the last, attempt was claimed.';
comment on column jobs.worker_id is 'Who holds, or last held, the attempt.';
comment on column jobs.seq is 'Number of the last event that a committed change of this row took.';
comment on column jobs.input is 'JSON as submitted; bytea because JSON text may contain what text and jsonb refuse.';
comment on column jobs.result is 'JSON of the kind''s result.';
comment on column jobs.error_message is 'Safe to show to the submitter; details are in the event log.';
comment on column jobs.usage is 'Totals of tokens, cost and machine time over all attempts.';
comment on column jobs.user_id is 'The submitter''s own name for its user.';
comment on column jobs.redrive_of is 'The finished job that this one repeats.';

create index jobs_tenant on jobs (tenant_id, id);
create index jobs_queued on jobs (tenant_id, queue, class, priority desc, id) where state = 'queued';
create index jobs_due on jobs (due_at) where state in ('scheduled', 'retrying');
create index jobs_running on jobs (worker_id, id) where state = 'running';
create index jobs_conversation on jobs (conversation_id, id) where conversation_id is not null;
create index jobs_agent on jobs (agent_id, id) where agent_id is not null;
create index jobs_schedule on jobs (schedule_id, id) where schedule_id is not null;
create table jobs_default partition of jobs default;

create table attempts (
    job_id        uuid        not null,
    attempt       integer     not null check (attempt > 0),
    worker_id     uuid        not null,
    started_at    timestamptz not null,
    finished_at   timestamptz not null,
    outcome       text        not null check (outcome in
        ('succeeded', 'failed', 'retrying', 'cancelled', 'interrupted', 'lost', 'waiting')),
    error_code    text,
    error_message text,
    primary key (job_id, attempt)
) partition by range (job_id);
comment on table attempts is 'One row for each attempt that ended; the one under way is in its job''s row.';
comment on column attempts.outcome is 'What became of the job: interrupted is a drained worker, lost one that died.';
create table attempts_default partition of attempts default;

create table job_events (
    job_id    uuid   not null,
    first_seq bigint not null,
    last_seq  bigint not null check (last_seq >= first_seq),
    data      bytea  not null,
    primary key (job_id, first_seq)
) partition by range (job_id);
comment on table job_events is 'The event log of a job, in chunks. A job that printed nothing has none: its events are made from its row.';
comment on column job_events.data is 'zstd of one JSON event a line.';
create table job_events_default partition of job_events default;

-- The lowest UUIDv7 of an instant: its first 48 bits are milliseconds since 1970.
create function uuid_floor(at timestamptz) returns uuid language sql immutable strict parallel safe as $$
    select rpad(lpad(to_hex((extract(epoch from at) * 1000)::bigint), 12, '0'), 32, '0')::uuid
$$;

-- Makes the daily partitions of the three tables from one day to another, both included; UTC days. Those that exist stay.
-- A day whose rows already sit in a default partition cannot be made any more: it is skipped, and the default's rows stay readable.
create function ensure_partitions(first_day date, last_day date) returns integer language plpgsql as $$
declare
    day date := first_day;
    made integer := 0;
    parent text;
    name text;
begin
    perform pg_advisory_xact_lock(hashtext('hothouse.ensure_partitions'));
    while day <= last_day loop
        foreach parent in array array['jobs', 'attempts', 'job_events'] loop
            name := format('%s_%s', parent, to_char(day, 'YYYYMMDD'));
            if to_regclass(name) is null then
                begin
                    execute format('create table %I partition of %I for values from (%L) to (%L)', name, parent,
                        uuid_floor(day::timestamp at time zone 'UTC'), uuid_floor((day + 1)::timestamp at time zone 'UTC'));
                    made := made + 1;
                exception when check_violation then
                    raise warning 'partition % not made: the default partition holds rows of that day', name;
                end;
            end if;
        end loop;
        day := day + 1;
    end loop;
    return made;
end $$;

select ensure_partitions((now() at time zone 'UTC')::date, (now() at time zone 'UTC')::date + 1);

create table idempotency_keys (
    tenant_id   uuid        not null,
    key         text        not null,
    fingerprint bytea       not null,
    job_ids     uuid[]      not null,
    created_at  timestamptz not null,
    primary key (tenant_id, key)
);
create index idempotency_keys_created on idempotency_keys (created_at);
comment on table idempotency_keys is 'Answers a repeated submission with the first one''s jobs. Written in the jobs'' transaction.';
comment on column idempotency_keys.fingerprint is 'SHA-256 of method, path and body: the same key with another body is refused.';

create table usage (
    job_id             uuid        not null,
    attempt            integer     not null,
    call               integer     not null,
    tenant_id          uuid        not null,
    user_id            text,
    agent_id           uuid,
    conversation_id    uuid,
    provider           text        not null,
    model              text        not null,
    input_tokens       bigint      not null,
    output_tokens      bigint      not null,
    cache_read_tokens  bigint      not null default 0,
    cache_write_tokens bigint      not null default 0,
    cost_usd           numeric,
    estimated          boolean     not null default false,
    at                 timestamptz not null,
    primary key (job_id, attempt, call)
);
create index usage_tenant on usage (tenant_id, at);
comment on table usage is 'Facts: one row for each model call, accepted from any attempt that existed, never changed.';
comment on column usage.estimated is 'The provider did not report usage (a cut stream): counted from the text.';
