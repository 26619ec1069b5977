-- What a worker says of its own progress.

alter table workers add column stalled text[] not null default '{}';
comment on column workers.stalled is 'Parts of it that make no progress, as it said with its last sign of life.';
