-- Jobs that wait for others or for an answer, and finished jobs that were repeated.

alter table jobs drop constraint jobs_kind_check;
alter table jobs add constraint jobs_kind check (kind in ('noop', 'exec', 'agent_run', 'chat_turn', 'group'));

alter table jobs add column waits_for json;
alter table jobs add column woken_by text check (woken_by in ('children', 'answer', 'deadline'));
alter table jobs add column redriven_as uuid;
comment on column jobs.parent_id is 'The job that submitted it and waits for it.';
comment on column jobs.waits_for is 'What the job waits for, or waited for last; on a job that has ended: its children may be open still.';
comment on column jobs.woken_by is 'What ended its last wait.';
comment on column jobs.redriven_as is 'The last job that repeats it.';
comment on column jobs.due_at is 'When a scheduled or retrying job becomes queued; the deadline of one that waits.';

alter table jobs drop constraint jobs_due;
alter table jobs add constraint jobs_due check (case state
    when 'scheduled' then due_at is not null
    when 'retrying' then due_at is not null
    when 'waiting' then true
    else due_at is null end);
alter table jobs add constraint jobs_waiting check (state <> 'waiting' or waits_for is not null);

-- Partial, so that they cost nothing for jobs that neither have a parent nor wait, fail or come back.
create index jobs_children on jobs (parent_id, state, id) where parent_id is not null;
create index jobs_waiting on jobs (due_at) where state = 'waiting';
create index jobs_orphans on jobs (id) where finished_at is not null and waits_for is not null;
create index jobs_failed on jobs (tenant_id, id) where state = 'failed' and redriven_as is null;
create index jobs_requeued on jobs (queued_at) where state = 'queued' and attempt > 0;

alter table tenants add column paused_at timestamptz;
comment on column tenants.paused_at is 'Since when nothing of it is released to workers.';
