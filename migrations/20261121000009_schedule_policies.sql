-- Schedules: how many times, what after failures, what of late due times; fires that keep what became of their jobs.

alter table schedules drop constraint schedules_overlap_check;
-- What was called queue let any number wait; now it is one, and the other has a name of its own.
update schedules set overlap = 'queue_all' where overlap = 'queue';
alter table schedules
    add constraint schedules_overlap check (overlap in ('skip', 'queue', 'queue_all', 'cancel_running', 'allow')),
    add column misfire text not null default 'all' constraint schedules_misfire check (misfire in ('none', 'last', 'all')),
    add column max_fires bigint check (max_fires > 0),
    add column fired bigint not null default 0,
    add column pause_after_failures integer check (pause_after_failures > 0),
    add column failures_in_row integer not null default 0,
    add column prior_job_id uuid,
    add column keeps_result boolean not null default false,
    add column last_result bytea;
comment on column schedules.misfire is 'Which due times within catch_up are fired after a downtime.';
comment on column schedules.max_fires is 'After so many jobs it is over; null is no limit. Fires by hand and backfills do not count.';
comment on column schedules.fired is 'Due times that made a job.';
comment on column schedules.pause_after_failures is 'After so many failed jobs in a row it is paused; null is never.';
comment on column schedules.prior_job_id is 'The job before last_job_id: with overlap queue one may run and one may wait.';
comment on column schedules.keeps_result is 'Whether its input names last_result, so that it is worth keeping.';
comment on column schedules.last_result is 'JSON of the last succeeded job''s result, at most 64 KiB; kept here because jobs are forgotten.';

alter table fires
    add column backfill boolean not null default false,
    add column job_state text constraint fires_job_state check (job_state in ('succeeded', 'failed', 'cancelled', 'forgotten')),
    add column job_error text,
    add column job_ended_at timestamptz;
create index fires_open on fires (schedule_id, job_id) where job_id is not null and job_state is null;
comment on column fires.backfill is 'Whether somebody asked for this due time afterwards.';
comment on column fires.job_state is 'What became of the job, kept for ever; null while it has not ended.';
comment on column fires.job_error is 'The error code of a job that failed.';
