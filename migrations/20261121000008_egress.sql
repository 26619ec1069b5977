-- What sandboxes wanted to connect to, and what became of it. Forgotten with the day of its job.

create table egress_decisions (
    job_id         uuid        not null,
    attempt        integer     not null,
    seq            integer     not null check (seq > 0),
    tenant_id      uuid        not null,
    at             timestamptz not null,
    method         text,
    host           text,
    port           integer check (port between 1 and 65535),
    address        text,
    allowed        boolean     not null,
    reason         text,
    sent_bytes     bigint      not null default 0,
    received_bytes bigint      not null default 0,
    duration_ms    bigint,
    primary key (job_id, attempt, seq)
);
comment on table egress_decisions is 'One row for each connection of a sandbox: written when it is decided, completed once when it has ended, never changed after that. Accepted from any attempt that existed.';
comment on column egress_decisions.job_id is 'The job whose sandbox connected.';
comment on column egress_decisions.attempt is 'Which attempt of it.';
comment on column egress_decisions.seq is 'Number of the connection in its attempt, from 1.';
comment on column egress_decisions.tenant_id is 'The job''s tenant.';
comment on column egress_decisions.at is 'When the connection came.';
comment on column egress_decisions.method is 'Method of the request, CONNECT for TLS; null when no request could be read.';
comment on column egress_decisions.host is 'The host that was asked for, a name or an address.';
comment on column egress_decisions.port is 'The port that was asked for.';
comment on column egress_decisions.address is 'The address that was dialled.';
comment on column egress_decisions.allowed is 'Whether bytes could reach the host.';
comment on column egress_decisions.reason is 'Code of why it was refused, or cut after it was allowed; null when neither.';
comment on column egress_decisions.sent_bytes is 'Bytes of the sandbox that were passed on.';
comment on column egress_decisions.received_bytes is 'Bytes of the host that were passed on.';
comment on column egress_decisions.duration_ms is 'From its begin to its end; null while it is open, and when its worker died before it ended.';
