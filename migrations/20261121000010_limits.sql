-- Limits: how many jobs run at once, how many start within a window of time, and keys that are paused until a time.

alter table jobs add column rate_key text;
alter table jobs add column rate_limit integer check (rate_limit > 0);
alter table jobs add column rate_window_ms bigint check (rate_window_ms > 0);
alter table jobs add constraint jobs_rate check ((rate_key is null) = (rate_limit is null) and (rate_key is null) = (rate_window_ms is null));
comment on column jobs.rate_key is 'Key whose starts are limited: rate_limit of them within any rate_window_ms.';
comment on column jobs.concurrency_key is 'Key whose places are limited: concurrency_limit jobs of it run at once.';

-- Open jobs of a key: what reject counts, and what cancel_running ends. Jobs without a key cost nothing.
create index jobs_concurrency on jobs (tenant_id, concurrency_key, id)
    where concurrency_key is not null and finished_at is null;

alter table tenants add column run_limit integer check (run_limit > 0);
alter table tenants add column run_window_ms bigint check (run_window_ms > 0);
alter table tenants add constraint tenants_run_rate check ((run_limit is null) = (run_window_ms is null));
comment on column tenants.run_limit is 'Jobs that may start within any run_window_ms; null is no limit.';

alter table queues add column weight integer not null default 1 check (weight between 1 and 1000);
alter table queues add column max_running integer check (max_running > 0);
alter table queues add column run_limit integer check (run_limit > 0);
alter table queues add column run_window_ms bigint check (run_window_ms > 0);
alter table queues add constraint queues_run_rate check ((run_limit is null) = (run_window_ms is null));
comment on column queues.weight is 'Share of the free slots relative to other queues that have work waiting.';
comment on column queues.max_running is 'Jobs that may run at once; null is no limit. Split over the shards.';
comment on column queues.run_limit is 'Jobs that may start within any run_window_ms; null is no limit. Split over the shards.';

alter table agents add column max_running integer check (max_running > 0);
comment on column agents.max_running is 'Jobs of the agent that may run at once; null is no limit.';

create table key_pauses (
    tenant_id  uuid        not null,
    key        text        not null,
    until      timestamptz,
    reason     text        not null default '',
    created_at timestamptz not null,
    primary key (tenant_id, key)
);
create index key_pauses_until on key_pauses (until);
comment on table key_pauses is 'Concurrency and rate keys of which nothing starts for a while, such as what a provider asked for.';
comment on column key_pauses.until is 'When it ends; null is until somebody resumes it.';

create index jobs_cancelling on jobs (cancel_requested_at) where cancel_requested_at is not null and finished_at is null;
