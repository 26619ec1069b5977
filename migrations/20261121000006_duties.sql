-- What the periodic duties last did, so that any API replica can answer for the leader.

create table duties (
    name          text        not null primary key,
    epoch         bigint      not null,
    interval_ms   bigint      not null check (interval_ms >= 0),
    last_at       timestamptz not null,
    last_ok_at    timestamptz,
    changed       bigint      not null,
    ticks         bigint      not null,
    failures      bigint      not null,
    changed_total bigint      not null,
    error         text
);
comment on table duties is 'One row for each periodic duty: written by the leader at most once a second, and at once when a tick failed.';
comment on column duties.epoch is 'Epoch of the leader that wrote it last.';
comment on column duties.interval_ms is 'Pause between two ticks when the last one left nothing over.';
comment on column duties.last_ok_at is 'End of the last tick that did not fail.';
comment on column duties.changed is 'Things that the last tick changed.';
comment on column duties.error is 'Why the last tick failed; null when it did not.';

-- A schedule's due time is its next fire plus its own, stable share of its jitter.
alter table schedules add column due_at timestamptz;
comment on column schedules.due_at is 'When the next fire is acted on: next_fire_at plus the jitter of this schedule.';
drop index schedules_due;
create index schedules_due on schedules (due_at) where enabled and deleted_at is null and due_at is not null;
