-- What runs the jobs: queues, workers, and who leads the periodic duties.

create table queues (
    name       text        not null primary key,
    paused_at  timestamptz,
    created_at timestamptz not null
);
comment on table queues is 'Settings of named queues; a queue without a row has the defaults.';
comment on column queues.paused_at is 'Since when nothing of it is released to workers.';

create table workers (
    id          uuid        not null primary key,
    name        text        not null,
    version     text        not null,
    slots       jsonb       not null,
    labels      text[]      not null,
    queues      text[]      not null,
    driver      text        not null,
    started_at  timestamptz not null,
    seen_at     timestamptz not null,
    alive_until timestamptz,
    draining_at timestamptz,
    stopped_at  timestamptz
);
create index workers_live on workers (seen_at) where stopped_at is null;
comment on table workers is 'One row for each start of a worker process; its id is never used again.';
comment on column workers.slots is 'Object of class to number of slots.';
comment on column workers.queues is 'Queues that it serves; empty is all of them.';
comment on column workers.alive_until is 'Written by the worker while Redis is unreachable: until then its leases hold.';
comment on column workers.draining_at is 'Since when it claims nothing more.';

create table leaders (
    name       text        not null primary key,
    holder     uuid        not null,
    epoch      bigint      not null,
    expires_at timestamptz not null
);
comment on table leaders is 'The elected holder of a role; epoch grows with each change of holder and fences its writes.';
