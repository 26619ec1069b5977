-- A claim and an end leave every index of a job as it is, so that Postgres updates the row within its page: half of the
-- work, and no dead index entries. What is queued and what runs is found by tables of their own instead.

create table queued_jobs (
    tenant_id uuid     not null,
    queue     text     not null,
    class     text     not null,
    priority  smallint not null,
    id        uuid     not null,
    primary key (tenant_id, queue, class, priority, id)
);
comment on table queued_jobs is 'One row for each job whose state is queued, written in the transaction that changes the state.';
comment on column queued_jobs.tenant_id is 'As in the job''s row, like the other columns: none of them ever changes.';
insert into queued_jobs select tenant_id, queue, class, priority, id from jobs where state = 'queued';

create table handouts (
    id         uuid        not null primary key,
    worker_id  uuid        not null,
    claimed_at timestamptz not null,
    job_ids    uuid[]      not null
);
create index handouts_worker on handouts (worker_id);
comment on table handouts is 'What was claimed together: every running job is in one of them. Forgotten when none of its jobs runs any more.';
comment on column handouts.id is 'Made by the worker, UUIDv7.';
comment on column handouts.job_ids is 'Those that Postgres confirmed.';
insert into handouts select gen_random_uuid(), worker_id, max(started_at), array_agg(id) from jobs where state = 'running' group by worker_id;

-- What only few jobs have, without naming the state: null and unchanged for all others.
alter table jobs
    add column open_key text generated always as (case when finished_at is null then concurrency_key end) stored,
    add column stopping_since timestamptz generated always as (case when finished_at is null then cancel_requested_at end) stored,
    add column leaves_children boolean generated always as (case when finished_at is not null and waits_for is not null then true end) stored;
comment on column jobs.open_key is 'The concurrency key of a job that has not ended.';
comment on column jobs.stopping_since is 'When a job that has not ended was asked to stop.';
comment on column jobs.leaves_children is 'Whether it has ended and its children may be open.';

drop index jobs_queued, jobs_running, jobs_requeued, jobs_failed, jobs_children, jobs_orphans, jobs_concurrency, jobs_cancelling;
create index jobs_requeued on jobs (queued_at) where queued_at <> created_at;
create index jobs_failed on jobs (tenant_id, id) where error_code is not null and redriven_as is null;
create index jobs_children on jobs (parent_id, id) where parent_id is not null;
create index jobs_waits on jobs (tenant_id, id) where waits_for is not null;
create index jobs_orphans on jobs (id) where leaves_children;
create index jobs_concurrency on jobs (tenant_id, open_key, id) where open_key is not null;
create index jobs_stopping on jobs (stopping_since) where stopping_since is not null;

-- Room in each page for the next version of every row in it.
do $$
declare
    part regclass;
begin
    for part in select inhrelid::regclass from pg_inherits where inhparent = 'jobs'::regclass loop
        execute format('alter table %s set (fillfactor = 45)', part);
    end loop;
end $$;

create or replace function ensure_partitions(first_day date, last_day date) returns integer language plpgsql as $$
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
                    execute format('create table %I partition of %I for values from (%L) to (%L)%s', name, parent,
                        uuid_floor(day::timestamp at time zone 'UTC'), uuid_floor((day + 1)::timestamp at time zone 'UTC'),
                        case parent when 'jobs' then ' with (fillfactor = 45)' else '' end);
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
