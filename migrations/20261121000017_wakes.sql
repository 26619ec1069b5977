-- The scheduler sleeps until the next time that it knows: whatever is due before that, or leaves something to do, says so
-- when it is committed.

-- One index for all times: it names no state, so that a change of state alone leaves it as it is.
drop index jobs_due;
drop index jobs_waiting;
create index jobs_due_at on jobs (due_at) where due_at is not null;

create function tell_due() returns trigger language plpgsql as $$
begin
    perform pg_notify('hothouse_due', tg_argv[0]);
    return null;
end $$;
comment on function tell_due is 'Wakes the scheduler at commit; many rows of a transaction wake it once.';

-- What is due later is found by the scheduler's own looks, which are less than this apart.
create trigger jobs_tell_due after insert or update of due_at on jobs for each row
    when (new.due_at < now() + interval '15 s') execute function tell_due('jobs');

create trigger schedules_tell_new after insert on schedules for each row
    when (new.enabled and new.due_at < now() + interval '15 s') execute function tell_due('schedules');
-- A fire moves the time on, and wakes nobody.
create trigger schedules_tell_due after update of due_at, enabled on schedules for each row
    when (new.enabled and new.deleted_at is null and new.due_at < now() + interval '15 s'
        and (not old.enabled or old.due_at is null or new.due_at < old.due_at)) execute function tell_due('schedules');

-- A job that ends while it waits for children leaves them open.
create trigger jobs_tell_orphans after update of finished_at on jobs for each row
    when (new.finished_at is not null and new.waits_for is not null) execute function tell_due('orphans');
